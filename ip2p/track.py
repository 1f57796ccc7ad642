"""What a run leaves behind: parameters, metrics, pictures. MLflow tracking lives only here.

`MLFLOW_TRACKING_URI` in the environment wins over params. Runs that resume continue the same MLflow run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from ip2p.errors import UserError, first_line
from ip2p.params import TrackParams
from ip2p.store import write_bytes

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
MADE = "ip2p.editor"
"""Tag of the run that made an editor: the editor's digest."""
_VARIABLE = "MLFLOW_TRACKING_URI"
_SOON = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""When MLflow's client gives up, unless the environment says otherwise: by itself it tries for minutes."""
_AT_ONCE = 1000
"""Numbers that MLflow takes at once."""


def tracking_uri(section: TrackParams) -> str:
    """Where runs are kept; makes the folder of a local database."""
    uri = os.environ.get(_VARIABLE, section.uri)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return uri


def point_mlflow(section: TrackParams) -> Any:
    """Make MLflow's tracking and registry those of the parameters; returns a client. The environment stays as it was."""
    import mlflow

    uri, before = tracking_uri(section), os.environ.get(_VARIABLE)
    mlflow.set_tracking_uri(uri)  # would set the variable, which wins over the parameters of the next
    mlflow.set_registry_uri(uri)
    if before is None:
        os.environ.pop(_VARIABLE, None)
    return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def give_up_soon() -> None:
    """From now on MLflow's client gives up soon in this process, where somebody waits who can ask again."""
    for name, value in _SOON.items():
        os.environ.setdefault(name, value)


@contextmanager
def mlflow_in_reach() -> Iterator[None]:
    """Raises `UserError` if MLflow cannot be used."""
    from mlflow import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise UserError(f"MLflow (track.uri, MLFLOW_TRACKING_URI) cannot be used: {first_line(error)}") from error


@dataclass(frozen=True)
class Run:
    """An open run."""

    client: Any
    id: str
    unsent: list[Any] = field(default_factory=list)
    """Numbers that a server out of reach did not take, the latest; they go with the next."""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log numbers at a step. If the server cannot be reached, says so and keeps them for the next call or the end of the run."""
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        self.unsent.extend(Metric(k, float(v), now, step) for k, v in values.items())
        del self.unsent[:-_AT_ONCE]
        if self._sent("numbers are kept and sent with the next", lambda: self.client.log_batch(self.id, metrics=list(self.unsent))):
            self.unsent.clear()

    def picture(self, image: Image.Image, name: str) -> None:
        """Keep a picture under `name` (such as `grids/0100.png`). If the server cannot be reached, says so and does not."""
        self._sent(f"{name} is lost", lambda: self.client.log_image(self.id, image, artifact_file=name))

    def _sent(self, otherwise: str, send: Callable[[], None]) -> bool:
        from mlflow import MlflowException

        try:
            with _soon():
                send()
        except (MlflowException, OSError) as error:
            print(f"track: MLflow cannot be reached, {otherwise} ({first_line(error)})", flush=True)
            return False
        return True

    def tag(self, name: str, value: str) -> None:
        """Say something of the run by which it can be found. If the server cannot be reached, says so and does not."""
        self._sent(f"{name} is not told", lambda: self.client.set_tag(self.id, name, value))

    def file(self, path: Path) -> None:
        """Keep a file."""
        self.client.log_artifact(self.id, str(path))


def address_of(section: TrackParams, run: str) -> str | None:
    """Where a run can be looked at in MLflow's pages, without the name and password of `track.uri`; None if a file of this machine has it.

    Raises `UserError` if MLflow cannot be used.
    """
    uri = tracking_uri(section)
    if not uri.startswith("http"):
        return None
    with mlflow_in_reach():
        experiment = point_mlflow(section).get_run(run).info.experiment_id
    at = urlsplit(uri)
    public = at._replace(netloc=at.netloc.rpartition("@")[2]).geturl()
    return f"{public.rstrip('/')}/#/experiments/{experiment}/runs/{run}"


def run_tagged(client: Any, section: TrackParams, name: str, value: str) -> str | None:
    """The latest run of the experiment with this tag, or None."""
    experiment = client.get_experiment_by_name(section.experiment)
    found = client.search_runs([experiment.experiment_id], f"tags.`{name}` = '{value}'", max_results=1) if experiment else []
    return str(found[0].info.run_id) if found else None


@contextmanager
def track(section: TrackParams, name: str, parameters: Mapping[str, object], *, resume: Path | None = None) -> Iterator[Run]:
    """Open a run; `resume` is a file that remembers its id, so that a killed stage goes on in the same run.

    Raises `UserError` if MLflow cannot be used.
    """
    with mlflow_in_reach():
        run = _opened(section, name, parameters, resume)
    client, run_id = run.client, run.id
    try:
        yield run
    except BaseException:
        run._sent("the run stays open there", lambda: client.set_terminated(run_id, "FAILED"))
        raise
    with mlflow_in_reach():
        if run.unsent:  # now or never, so this one may fail
            client.log_batch(run_id, metrics=run.unsent)
        client.set_terminated(run_id, "FINISHED")


@contextmanager
def _soon() -> Iterator[None]:
    """MLflow's client gives up soon, since training waits."""
    added = {name: value for name, value in _SOON.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _opened(section: TrackParams, name: str, parameters: Mapping[str, object], resume: Path | None) -> Run:
    from mlflow import MlflowClient, MlflowException
    from mlflow.entities import Param

    uri = tracking_uri(section)
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    found = client.get_experiment_by_name(section.experiment)
    artifacts = Path("work/artifacts").resolve().as_uri() if uri.startswith("sqlite:") else None
    experiment = found.experiment_id if found else client.create_experiment(section.experiment, artifact_location=artifacts)
    run_id = resume.read_text().strip() if resume is not None and resume.exists() else ""
    try:
        client.get_run(run_id)
    except MlflowException:
        run_id = client.create_run(experiment, run_name=name).info.run_id
        client.log_batch(run_id, params=[Param(k, str(v)[:500]) for k, v in parameters.items()])
        if resume is not None:
            write_bytes(resume, run_id.encode())
    return Run(client, run_id)
