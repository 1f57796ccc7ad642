"""The platform from end to end, on real servers: Postgres, S3, MLflow, Prefect, a worker, the editor service.

Servers up → deployments → a run through the worker, which is killed, and one that goes on → data in S3, MLflow on Postgres → promoted →
served → edited by the `openai` client → feedback stored in Postgres → exported. Then a second clone takes the dataset from S3 and
trains on it. docs/operations.md has the log (IP2P_PLATFORM_LOG names the file that it is written to).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import openai
import pytest
import yaml

from infra import local
from tests.e2e.test_pipeline import SMALL, clone, running_in
from tests.serve.conftest import png
from tests.services import here, until

SMALLER = SMALL | {
    "triplets": {"count": 22},
    "pairs": SMALL["pairs"] | {"workers": 1},
    "train": SMALL["train"] | {"steps": 6, "checkpoint_every": 3, "workers": 1},
}
MISSING = [name for name in ("postgres", "s3") if not here(name)]
BEGAN = time.monotonic()
WEB = httpx.Client(timeout=60)
SENTINEL = "sk-sentinel-3c1f9a"


pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not here: {', '.join(MISSING)}")


@pytest.fixture(scope="module")
def platform():
    """The servers, for a clone of the working tree with small parameters."""
    root = Path(tempfile.mkdtemp(prefix="ip2p-platform-"))  # not pytest's: Postgres, which is another user, must be able to enter
    root.chmod(0o755)
    project = clone(root / "project")
    params = yaml.safe_load((project / "params.yaml").read_text())
    (project / "params.yaml").write_text(yaml.safe_dump(params | SMALLER | {"serve": {"poll_seconds": 0.5}}))
    topology = local.Topology.new(root / "infra", project, preferred={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", SENTINEL)
        try:
            local.up(topology, say=tell)
            yield topology
        finally:
            local.down(topology, say=tell)
            shutil.rmtree(root, ignore_errors=True)


def tell(line):
    """A line of the log."""
    if path := os.environ.get("IP2P_PLATFORM_LOG"):
        with Path(path).open("a") as log:
            print(f"{time.monotonic() - BEGAN:5.0f} s  {line}", file=log)


def call(topology, project, *command):
    """Run one of the project's commands as a client of the servers."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))}
    environment |= topology.environment() | {"PYTHONPATH": str(project), "HF_HUB_OFFLINE": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run([sys.executable, "-m", *command], cwd=project, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def runs(topology, *names):
    """The latest flow runs of these names, newest first."""
    found = WEB.post(f"{topology.url('prefect')}/api/flow_runs/filter", json={"sort": "START_TIME_DESC"}).json()
    return [f for f in found if f["name"] in names]


def artifact(topology, key):
    """What Prefect shows under a key."""
    asked = {"artifacts": {"key": {"any_": [key]}}}
    (found,) = WEB.post(f"{topology.url('prefect')}/api/artifacts/latest/filter", json=asked).json()
    return found["data"]


def tasks(topology, flow_run):
    """The task runs of a flow run in the order in which they began."""
    asked = {"flow_runs": {"id": {"any_": [flow_run]}}, "sort": "EXPECTED_START_TIME_ASC"}
    return [t["name"] for t in WEB.post(f"{topology.url('prefect')}/api/task_runs/filter", json=asked).json()]


def begin(topology, *names):
    """Ask for a run of each of these deployments; their ids."""
    told = [call(topology, topology.project, "prefect", "deployment", "run", f"{name}/{name}") for name in names]
    return [re.search(r"UUID: ([0-9a-f-]+)", line)[1] for line in told]


def finished(topology, ids, seconds=450):
    """Wait until all runs have ended well."""
    deadline, states = time.monotonic() + seconds, {}
    while set(states.values()) != {"COMPLETED"} or len(states) < len(ids):
        asked = {"flow_runs": {"id": {"any_": ids}}}
        found = WEB.post(f"{topology.url('prefect')}/api/flow_runs/filter", json=asked).json()
        states = {f["id"]: f["state_type"] for f in found}
        assert not set(states.values()) & {"FAILED", "CRASHED", "CANCELLED"}, [f["state"] for f in found]
        assert time.monotonic() < deadline, states
        time.sleep(0.5)


def command_of(process):
    """Its command line; nothing if it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return ""


def shards_made(topology, count):
    """Wait until the run has made so many shards of pairs."""
    until(lambda: len(list((topology.project / "work/pairs").glob("*.parquet"))) >= count, seconds=450)


def slots(topology):
    """When the GPU slot was taken and given back, in order."""
    asked = {"filter": {"event": {"prefix": ["prefect.concurrency-limit."]}, "order": "ASC"}, "limit": 50}
    events = WEB.post(f"{topology.url('prefect')}/api/events/filter", json=asked).json()["events"]
    return [e["event"].rsplit(".", 1)[1] for e in events if not e["event"].endswith(".created")]


def texts(topology):
    """Everything that Prefect and MLflow keep in Postgres, and all logs."""
    import psycopg

    for name in ("mlflow", "prefect"):
        with psycopg.connect(topology.database(name, "x").replace("postgresql+x", "postgresql")) as connection:
            tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
            assert len(tables) > 10
            for (table,) in tables:
                for (row,) in connection.execute(f'SELECT t::text FROM "{table}" t'):
                    yield f"{name}.{table}", row
    for path in topology.home.glob("*.log"):
        yield path.name, path.read_text(errors="replace")


def objects(topology, prefix):
    import boto3

    keys = {"aws_access_key_id": topology.secret["s3_key"], "aws_secret_access_key": topology.secret["s3_secret"]}
    client = boto3.client("s3", endpoint_url=topology.url("s3"), region_name="us-east-1", **keys)
    return client.list_objects_v2(Bucket=local.BUCKET, Prefix=prefix).get("KeyCount", 0)


@pytest.mark.timeout(900)
def test_from_deployment_to_feedback_and_a_second_clone_trains_on_the_data_of_the_first(platform, tmp_path):
    topology, project = platform, platform.project

    # Prefect's pages talk to this server, not to whoever has its usual port
    assert WEB.get(f"{topology.url('prefect')}/ui-settings").json()["api_url"] == f"{topology.url('prefect')}/api"

    # a run is cancelled in the middle of `pairs`: whatever it started ends, and nothing is half-written
    (cancelled,) = begin(topology, "pipeline")
    shards_made(topology, 1)
    state = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": True}
    WEB.post(f"{topology.url('prefect')}/api/flow_runs/{cancelled}/set_state", json=state).raise_for_status()
    until(lambda: runs(topology, "pipeline")[0]["state_type"] == "CANCELLED")
    until(lambda: not [p for p in running_in(project) if "flows.pairs" in command_of(p)])
    assert not (project / "data/pairs").exists()
    tell("a run cancelled in the middle of pairs: cancelled, and nothing of it runs")

    # the worker is killed in the middle of the next; the run crashes, what was made is kept
    begin(topology, "pipeline")
    shards_made(topology, 3)
    os.killpg(local._pid(topology, "worker"), signal.SIGKILL)
    tell("worker killed in the middle of pairs")
    local.up(topology, say=lambda line: None)
    tell("worker started again")

    # another run goes on there; its data go to S3, its models to MLflow, which keeps them in Postgres and S3
    finished(topology, begin(topology, "pipeline"))
    until(lambda: [f["state_type"] for f in runs(topology, "pipeline")] == ["COMPLETED", "CRASHED", "CANCELLED"])
    assert artifact(topology, "train-progress") == 100 and f"({topology.url('mlflow')}/#/experiments/" in artifact(topology, "train-mlflow")
    until(lambda: tasks(topology, runs(topology, "pipeline")[0]["id"])[-3:] == ["push", "register", "report"])
    resumed = json.loads((project / "reports/pairs.json").read_text())["extra"]["shards_resumed"]
    assert resumed >= 3
    tell(f"pipeline run again through the worker: {resumed} shards of pairs went on, data pushed to S3, version 1 registered")
    assert objects(topology, "dvc/") > 0 and objects(topology, "mlflow/") > 0
    import psycopg

    with psycopg.connect(topology.database("mlflow", "x").replace("postgresql+x", "postgresql")) as connection:
        assert connection.execute("SELECT count(*) FROM model_versions").fetchone() == (1,)

    # one GPU slot, two stages that want it at once: one after the other
    until(lambda: slots(topology)[-1:] == ["released"])
    before = len(slots(topology))
    finished(topology, begin(topology, "pairs", "train"))
    until(lambda: len(slots(topology)) >= before + 4)  # events arrive a little later
    assert slots(topology)[before:] == ["acquired", "released"] * 2
    tell("pairs and train at once: one at a time has the GPU slot")

    # so small an editor beats nobody: a person promotes it, and the service takes it over
    told = call(topology, project, "ip2p.cli", "release", "status")
    if "champion" not in told.splitlines()[1]:
        call(topology, project, "ip2p.cli", "release", "promote", "1", "--reason", "the only one there is")
    until(lambda: WEB.get(f"{topology.url('editor')}/readyz").json()["version"] == "1")
    tell("version 1 promoted, and served")

    # edited by OpenAI's client, judged, exported
    client = openai.OpenAI(base_url=f"{topology.url('editor')}/v1", api_key="none", max_retries=0)
    assert client.images.edit(image=png(), prompt="make it winter", extra_body={"num_inference_steps": 2}).data[0].b64_json
    edit = WEB.get(f"{topology.url('editor')}/api/v1/edits").json()["edits"][0]
    vote = {"kind": "thumb", "edit": edit["id"], "value": 1, "reason": "instruction"}
    assert WEB.post(f"{topology.url('editor')}/api/v1/feedback", json=vote).status_code == 201
    with psycopg.connect(topology.database("ip2p", "x").replace("postgresql+x", "postgresql")) as connection:
        assert connection.execute("SELECT value, reason FROM votes").fetchall() == [(1, "instruction")]
    assert "and 1 votes" in call(topology, project, "ip2p.cli", "feedback", "export")
    tell("edited by the openai client; a vote is in Postgres; exported")

    # no secret is in what Prefect and MLflow keep, nor in a log
    for secret in (SENTINEL, *topology.secret.values()):
        assert [where for where, text in texts(topology) if secret in text] == []
    tell("no secret in the databases of Prefect and MLflow, nor in a log")

    # a second clone has the versions (dvc.lock) and no data; it pulls the dataset and trains, and nothing is made again
    second = clone(tmp_path / "second")
    for name in ("dvc.lock", "params.yaml"):
        shutil.copyfile(project / name, second / name)
    local._configure_dvc(local.Topology(topology.home, topology.ports, topology.secret, second))
    call(topology, second, "dvc", "pull", "data/dataset", "data/validated.json")
    call(topology, second, "ip2p.cli", "train")
    assert (second / "models/editor/unet").is_dir()
    assert not (second / "data/pairs").exists()
    tell("a second clone pulled the dataset from S3 and trained on it")
