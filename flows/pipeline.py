"""The whole recipe, as the parent flow: walks DVC's graph in order, one tracked task a stage; DVC decides what is stale.

`python -m flows` starts a Prefect server for it if none is running (this is `make run`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from prefect import flow, task
from prefect.client.schemas.objects import State
from prefect.logging.handlers import APILogWorker
from prefect.runtime import task_run
from prefect.states import Completed, Failed

from flows.lock import keep_lock
from flows.stage import PARENT
from flows.watch import watched
from ip2p.errors import UserError

_UNSENT = "dvc push failed (see above); the data are here still, run again when the remote can be reached"


class StageFailedError(UserError):
    """A stage ended with an error, told above."""


def stages(path: Path = Path("dvc.yaml")) -> list[str]:
    """Stage names in the order in which they depend on each other (dvc.yaml is written so; a test checks)."""
    return list(yaml.safe_load(path.read_text(encoding="utf-8"))["stages"])


def call_dvc(*arguments: str, **environment: str) -> int:
    """DVC in a process group of its own, which ends with this process; its exit code."""
    keep_lock()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # the stages' `python` is this one
    inherited = {**os.environ, **environment, "PATH": path}
    child = subprocess.Popen(watched([sys.executable, "-m", "dvc", *arguments]), env=inherited, start_new_session=True)
    try:
        return child.wait()
    except BaseException:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait()
        raise


def reproduce(stage: str, parent: str) -> None:
    """`dvc repro --single-item STAGE`. Raises on failure."""
    if call_dvc("repro", "--single-item", stage, **{PARENT: parent}) != 0:
        raise StageFailedError(f"stage {stage} failed (see above); what was made is kept, run again to resume there")


@task
def stage(name: str) -> Any:
    """One stage of DVC's graph."""
    try:
        reproduce(name, str(task_run.id))
    except StageFailedError as error:
        return Failed(message=str(error), data=error)


@task(task_run_name="push", retries=3, retry_delay_seconds=[2, 10, 60])
def push_data() -> None:
    """Send the data of this version to DVC's default remote; what is there already is not sent again."""
    if call_dvc("push") != 0:
        raise StageFailedError(_UNSENT)


@flow(name="pipeline", flow_run_name="pipeline", description="From nothing to a registered editor")
def pipeline(push: bool = False) -> Any:
    """All stages, in order; stops at the first that fails.

    With `push` the data go to DVC's default remote before the editor is registered: none is served whose data are on one machine alone.
    """
    for name in stages():
        if push and name == "register":
            state = push_data(return_state=True)
            if not state.is_completed():
                return Failed(message=_UNSENT)
        state = stage.with_options(name=name, task_run_name=name)(name, return_state=True)
        if not state.is_completed():
            return Failed(message=state.message)
    return Completed(message="all stages are up to date")


def run_pipeline() -> None:
    """Run the flow; raises `StageFailedError` with its message if a stage failed."""
    state: State[Any] = pipeline(return_state=True)  # type: ignore[assignment]
    APILogWorker.drain_all(timeout=10)  # before the server stops
    if not state.is_completed():
        raise StageFailedError(state.message or "the pipeline did not complete")
