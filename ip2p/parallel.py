"""Several processes that train as one: start them here, or join those that `accelerate launch` started; average their gradients."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable
from multiprocessing import connection, parent_process
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException  # type: ignore[attr-defined]

from ip2p.errors import UserError
from ip2p.startup import processes

_LOOK = 1.0
"""Seconds between two looks at how far the processes are."""
_BUCKET = 2**24
"""Gradients that are sent at once."""


def joined(*, cpu: bool) -> tuple[int, int]:
    """Rank and number of the processes that `accelerate launch` (or torchrun) started, this one among them; alone, 0 and 1."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    from accelerate import PartialState

    state = PartialState(cpu=True, backend="gloo") if cpu else PartialState()
    return state.process_index, state.num_processes


def barrier() -> None:
    """Wait for the others, if there are any."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()


def agree(number: int, device: torch.device) -> bool:
    """Whether all processes that train together have the same number."""
    if not (dist.is_available() and dist.is_initialized()):
        return True
    both = torch.tensor([number, -number], device=device)
    dist.all_reduce(both, op=dist.ReduceOp.MAX)
    most, least = both.tolist()
    return bool(most == -least)


def launch(workers: int, work: Callable[..., None], *arguments: object, watch: Callable[[], None] = lambda: None) -> None:
    """Run `work(rank, workers, *arguments)` here, or in `workers` processes of one thread each; `watch` is then called here each second."""
    if workers == 1:
        work(0, 1, *arguments)
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            started = {"nprocs": workers, "join": False, "start_method": processes().get_start_method()}
            both = torch.multiprocessing.start_processes(_joined, args=(workers, folder, work, arguments), **started)  # type: ignore[no-untyped-call,attr-defined]
            while not both.join(timeout=_LOOK):
                watch()
        except (ProcessRaisedException, ProcessExitedException) as error:
            told = Path(folder) / "error"
            if told.exists():
                raise UserError(told.read_text(encoding="utf-8")) from error
            raise


def average_gradients(parameters: list[nn.Parameter], workers: int) -> None:
    """Replace each gradient by its mean over the workers."""
    if workers == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    while gradients:
        bucket = [gradients.pop()]
        while gradients and sum(map(torch.numel, bucket)) + gradients[-1].numel() <= _BUCKET:
            bucket.append(gradients.pop())
        flat = torch.cat([x.flatten() for x in bucket])
        dist.all_reduce(flat)
        flat /= workers
        for target, source in zip(bucket, flat.split([x.numel() for x in bucket]), strict=True):
            target.copy_(source.view_as(target))


def average(value: torch.Tensor, workers: int) -> float:
    """The mean of a number over the workers."""
    if workers > 1:
        dist.all_reduce(value)
    return value.item() / workers


def leave_with_parent() -> None:
    """Watch from a thread: end this process when the one that asked for it is gone, even by SIGKILL."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _joined(rank: int, workers: int, folder: str, work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    leave_with_parent()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=workers)
    try:
        work(rank, workers, *arguments)
    except UserError as error:
        (Path(folder) / "error").write_text(str(error), encoding="utf-8")
        raise
    finally:
        dist.destroy_process_group()
