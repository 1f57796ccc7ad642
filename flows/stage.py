"""What every stage's flow shares: run the stage as a tracked task, leave artifacts, attach to the pipeline that called.

A stage runs in a process of its own, started by DVC. If the pipeline started DVC, `IP2P_PARENT_TASK_RUN` holds the id of
the task that waits for it, and the flow run becomes that task's child; without it the flow run stands alone.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import yaml
from prefect import Flow, flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.concurrency.sync import concurrency
from prefect.exceptions import PrefectException
from prefect.flow_engine import run_flow
from prefect.states import Failed, Pending

from ip2p.errors import ParamsError, UserError, first_line
from ip2p.params import Params, TrackParams, load_params
from ip2p.records import MLFLOW_RUN, StageReport
from ip2p.stages import TELLS, Engine, run_stage
from ip2p.track import address_of

PARENT = "IP2P_PARENT_TASK_RUN"
_LEASE = 60
"""Seconds after which the GPU slot of a killed stage is free again."""


def stage_flow(
    name: str, description: str, engine: Callable[[Params], Engine | None] = lambda params: None, *, gpu: bool = False
) -> Flow[[str], Any]:
    """The flow of a stage; `engine` chooses who makes its units; with `gpu` it waits for one of the slots, if the server limits them.

    What the user can mend ends it in a failed state with one line, not in a traceback.
    """

    @task(name=name, task_run_name=name)
    def work(params_path: str) -> Any:
        try:
            params = load_params(Path(params_path))
            require_sections(Path(params_path))
            with concurrency("gpu", occupy=1, lease_duration=_LEASE) if gpu else nullcontext():
                return run_stage(name, params, progress=_progress(name), engine=engine(params))
        except UserError as error:
            return Failed(message=str(error), data=error)

    @flow(name=name, description=description, flow_run_name=name)
    def run(params_path: str = "params.yaml") -> Any:
        state = work(params_path, return_state=True)
        if not state.is_completed():
            return Failed(message=state.message, data=state.result(raise_on_failure=False))
        report: StageReport = state.result()
        print("\n".join(report.lines()), flush=True)
        with _telling(name):
            create_markdown_artifact(_markdown(report), key=f"{name}-survivors", description=f"What {name} saw, kept and dropped")
        if tracked := report.extra.get(MLFLOW_RUN):
            link(name, load_params(Path(params_path)).track, str(tracked))
        return report.as_dict()

    return run


def main(run: Flow[[str], Any]) -> None:
    """Run a stage's flow from the command line; exit code 2 and one line for what the user can mend, else 1."""
    told = f"{run.description}. Reads params.yaml; `dvc repro {run.name}` runs it if it is stale."
    argparse.ArgumentParser(prog=f"python -m flows.{run.name}", description=told).parse_args()
    parent = os.environ.get(PARENT)
    state: State[Any]
    if parent is None:
        state = run("params.yaml", return_state=True)  # type: ignore[assignment]
    else:
        parameters = {"params_path": "params.yaml"}
        with get_client(sync_client=True) as client:
            flow_run = client.create_flow_run(run, parameters=parameters, parent_task_run_id=UUID(parent), state=Pending(), name=run.name)
        state = run_flow(run, flow_run=flow_run, parameters=parameters, return_type="state")  # type: ignore[assignment]
    if not state.is_completed():
        error = state.result(raise_on_failure=False)
        print(f"ip2p: error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)


def require_sections(params: Path, graph: Path = Path("dvc.yaml")) -> None:
    """Raise `ParamsError` if params.yaml leaves out what DVC follows: a default is a value too, and DVC ends at the stage that lacks it."""
    if graph.exists():
        told, known = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in (graph, params))
        followed = {name for stage in told["stages"].values() for name in stage.get("params", ())}
        if missing := sorted(followed - known.keys()):
            raise ParamsError(f"{params}: no `{missing[0]}`, which dvc.yaml follows; add `{missing[0]}: {{}}` (all defaults), or more")


def _progress(name: str) -> Callable[[int, int], None]:
    """A progress artifact, made at the first report and updated at most a hundred times."""
    made: UUID | None = None
    shown = {"percent": -1.0, "printed": -1.0}

    def report(done: int, of: int) -> None:
        nonlocal made
        percent = 100.0 * done / max(1, of)
        if name not in TELLS and (abs(percent - shown["printed"]) >= 1 or done == of):
            print(f"{name} {done}/{of}", flush=True)
            shown["printed"] = percent
        if abs(percent - shown["percent"]) < 1 and done != of:
            return
        shown["percent"] = percent
        with _telling(name):
            if made is None:
                made = create_progress_artifact(percent, key=f"{name}-progress")  # type: ignore[assignment]
            else:
                update_progress_artifact(made, percent)

    return report


@contextmanager
def _telling(name: str) -> Iterator[None]:
    """What is told to Prefect's server here, no result hangs on: if it is away, the stage says so and goes on."""
    try:
        yield
    except (httpx.HTTPError, PrefectException) as error:
        print(f"{name}: not told to Prefect's server, which is away ({first_line(error)})", file=sys.stderr, flush=True)


def link(name: str, section: TrackParams, tracked: str) -> None:
    """Lead to the stage's run in MLflow, if that has pages and answers: what the stage made does not hang on it."""
    try:
        address = address_of(section, tracked)
    except UserError as error:
        print(f"{name}: no link to its run: {error}", file=sys.stderr, flush=True)
        return
    if address:
        with _telling(name):
            text = f"{name} in MLflow"
            create_link_artifact(address, link_text=text, key=f"{name}-mlflow", description="Figures and pictures of the run")


def _markdown(report: StageReport) -> str:
    rows = "\n".join(f"| {reason} | {count} |" for reason, count in report.dropped_by_reason.items())
    types = "\n".join(f"| {t} | {n} |" for t, n in report.kept_by_edit_type.items())
    extra = "\n".join(f"- {k}: {v}" for k, v in report.extra.items())
    return (
        f"# {report.stage}: {report.kept} of {report.seen} in {report.seconds:.1f} s\n\n{extra}\n\n"
        f"| dropped because | count |\n|---|---|\n{rows}\n\n| edit type | kept |\n|---|---|\n{types}\n"
    )
