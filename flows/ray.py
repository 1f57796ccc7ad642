"""The engine of many machines: each unit of pairs a Prefect task on Ray, retried alone; shards come back and are written here.

Without an address a cluster of this machine is started for the time of the stage, on the loopback address alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from ip2p.dataset.pairs import Unit, make_shard
from ip2p.errors import ParamsError, UserError
from ip2p.models import resolve_device
from ip2p.params import Params
from ip2p.store import write_bytes

_AHEAD = 2
"""Units submitted for each worker, so that none waits."""


def _can_pass_later(_task: Any, _run: Any, state: Any) -> bool:
    return not isinstance(state.result(raise_on_failure=False), UserError)


@task(
    name="pairs-unit",
    task_run_name="{name}",
    retries=2,
    retry_delay_seconds=[2, 20],
    retry_condition_fn=_can_pass_later,
    cache_policy=NO_CACHE,
)
def _make(name: str, params: Params, unit: Unit) -> bytes:
    return make_shard(params, unit)


def make_on_ray(params: Params, pending: list[Unit], work: Path) -> Iterator[int]:
    """Make shards on the workers of a Ray cluster; yields how many are done."""
    try:
        import ray
        from prefect_ray import RayTaskRunner
        from prefect_ray.context import remote_options
    except ImportError as error:
        raise ParamsError("pairs.engine: Ray is not installed; `pip install 'ip2p[ray]'`, or set it to `processes`") from error
    section = params.pairs
    gpus = {"num_gpus": 1} if resolve_device(params.models.device).type == "cuda" else {}
    local = {"num_cpus": section.workers, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    cluster = {} if section.ray_address else local
    units = iter(pending)
    under_way: dict[Any, tuple[Unit, Any]] = {}
    done = 0
    with (
        RayTaskRunner(address=section.ray_address, init_kwargs={"log_to_driver": False, **cluster}) as runner,
        remote_options(num_cpus=1, max_calls=0, **gpus),  # 0: a worker is kept, with its models
    ):
        while True:
            for unit in islice(units, section.workers * _AHEAD - len(under_way)):
                future = runner.submit(_make, {"name": unit.name, "params": params, "unit": unit})
                under_way[future.wrapped_future] = (unit, future)
            if not under_way:
                return
            for ended in ray.wait(list(under_way))[0]:
                unit, future = under_way.pop(ended)
                write_bytes(work / unit.name, future.result())
                done += 1
                yield done
