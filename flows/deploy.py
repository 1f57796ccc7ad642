"""What a Prefect server is told of this project: `python -m flows.deploy`, which may be run again, as at each start of a worker.

The work pool and the deployments of prefect.yaml, one slot of the limit `gpu`, and an automation that ends runs whose machine is gone.
What people have set on the server stays: the pool's and the limit's slots, and whether a schedule is on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import yaml
from prefect.automations import Automation
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import DeploymentSchedule, StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from ip2p.errors import UserError

LOST = "crash runs that are no longer heard of"
_SILENT = timedelta(seconds=90)
"""Three heartbeats (PREFECT_FLOWS_HEARTBEAT_FREQUENCY) are missing."""
_SAID = "nothing was heard of it: its machine is gone, or was ended"


def main() -> int:
    """Tell the server at PREFECT_API_URL; exit code 2 if it does not take it."""
    argparse.ArgumentParser(prog="python -m flows.deploy", description=__doc__).parse_args()
    try:
        pool = yaml.safe_load(Path("prefect.yaml").read_text(encoding="utf-8"))["definitions"]["pool"]["name"]
        make_pool(pool)
        deploy_all()
        limit_gpus()
        crash_lost_runs()
    except UserError as error:
        print(f"ip2p: error: {error}", file=sys.stderr)
        return 2
    return 0


def make_pool(name: str) -> None:
    """The pool that workers of this project take runs from, unless it is there."""
    with get_client(sync_client=True) as client:
        try:
            client.read_work_pool(name)
        except ObjectNotFound:
            _call("work-pool", "create", name, "--type", "process")


def deploy_all() -> None:
    """The deployments of prefect.yaml; their schedules are made anew, and those that were there before are as on or off as they were."""
    with get_client(sync_client=True) as client:
        before = {key: told.active for key, told in _scheduled(client).items()}
        _call("deploy", "--all")
        for (deployment, when), told in _scheduled(client).items():
            if before.get((deployment, when), told.active) != told.active:
                client.update_deployment_schedule(deployment, told.id, active=not told.active)


def _scheduled(client: SyncPrefectClient) -> dict[tuple[UUID, str], DeploymentSchedule]:
    """All schedules, by deployment and what they say."""
    return {(deployment.id, repr(told.schedule)): told for deployment in client.read_deployments() for told in deployment.schedules}


def limit_gpus() -> None:
    """One slot of the limit `gpu`, unless there are some: stages that want the GPU then wait for it."""
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name("gpu")
        except ObjectNotFound:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="gpu", limit=1))


def crash_lost_runs(silent: timedelta = _SILENT) -> None:
    """Runs of which nothing has been heard for so long become crashed: their worker died with them, and nobody else will say so."""
    try:
        Automation.read(name=LOST)  # type: ignore[unused-coroutine]
    except ValueError:
        beat, over = "prefect.flow-run.heartbeat", {f"prefect.flow-run.{n}" for n in ("Completed", "Failed", "Cancelled", "Crashed")}
        Automation(
            name=LOST,
            trigger=EventTrigger(
                match={"prefect.resource.id": "prefect.flow-run.*"},  # type: ignore[arg-type]
                for_each={"prefect.resource.id"},
                after={beat},
                expect={beat, *over},
                posture=Posture.Proactive,
                threshold=1,
                within=silent,
            ),
            actions=[ChangeFlowRunState(name=None, state=StateType.CRASHED, message=_SAID, force=False)],
        ).create()


def _call(*command: str) -> None:
    done = subprocess.run([sys.executable, "-m", "prefect", "--no-prompt", *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"prefect {' '.join(command)}: {(done.stderr or done.stdout).strip()[-2000:]}")


if __name__ == "__main__":
    sys.exit(main())
