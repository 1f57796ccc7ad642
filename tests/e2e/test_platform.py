"""The platform from end to end, on real servers: Postgres, S3, MLflow, Prefect, a worker, the editor service.

Servers up → deployments → a run through the worker → data in S3, MLflow on Postgres → promoted → served → edited by the `openai`
client → feedback stored in Postgres → exported. Then a second clone takes the dataset from S3 and trains on it.
"""

from __future__ import annotations

import os
import shutil
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
from tests.e2e.test_pipeline import SMALL, clone
from tests.serve.conftest import png

SMALLER = SMALL | {"train": SMALL["train"] | {"steps": 6, "checkpoint_every": 3}}
NEEDED = ("postgres", "weed")


def missing() -> list[str]:
    found = []
    for name in NEEDED:
        try:
            local._program(name)
        except local.TopologyError:
            found.append(name)
    return found


pytestmark = pytest.mark.skipif(bool(missing()), reason=f"not here: {', '.join(missing())}")


@pytest.fixture(scope="module")
def platform():
    """The servers, for a clone of the working tree with small parameters."""
    root = Path(tempfile.mkdtemp(prefix="ip2p-platform-"))  # not pytest's: Postgres, which is another user, must be able to enter
    root.chmod(0o755)
    project = clone(root / "project")
    params = yaml.safe_load((project / "params.yaml").read_text())
    (project / "params.yaml").write_text(yaml.safe_dump(params | SMALLER | {"serve": {"poll_seconds": 0.5}}))
    topology = local.Topology.new(root / "infra", project)
    try:
        local.up(topology, say=lambda line: None)
        yield topology
    finally:
        local.down(topology, say=lambda line: None)
        shutil.rmtree(root, ignore_errors=True)


def call(topology, project, *command):
    """Run one of the project's commands as a client of the servers."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "MLFLOW"))}
    environment |= topology.environment() | {"PYTHONPATH": str(project), "HF_HUB_OFFLINE": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    done = subprocess.run([sys.executable, "-m", *command], cwd=project, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def objects(topology, prefix):
    import boto3

    keys = {"aws_access_key_id": topology.secret["s3_key"], "aws_secret_access_key": topology.secret["s3_secret"]}
    client = boto3.client("s3", endpoint_url=topology.url("s3"), region_name="us-east-1", **keys)
    return client.list_objects_v2(Bucket=local.BUCKET, Prefix=prefix).get("KeyCount", 0)


@pytest.mark.timeout(900)
def test_from_deployment_to_feedback_and_a_second_clone_trains_on_the_data_of_the_first(platform, tmp_path):
    topology, project = platform, platform.project

    # a run through the worker; its data go to S3, its models to MLflow, which keeps them in Postgres and S3
    call(topology, project, "prefect", "deployment", "run", "pipeline/pipeline", "--watch", "--watch-timeout", "450")
    assert objects(topology, "dvc/") > 0 and objects(topology, "mlflow/") > 0
    import psycopg

    with psycopg.connect(topology.database("mlflow", "x").replace("postgresql+x", "postgresql")) as connection:
        assert connection.execute("SELECT count(*) FROM model_versions").fetchone() == (1,)

    # so small an editor beats nobody: a person promotes it, and the service takes it over
    told = call(topology, project, "ip2p.cli", "release", "status")
    if "champion" not in told.splitlines()[1]:
        call(topology, project, "ip2p.cli", "release", "promote", "1", "--reason", "the only one there is")
    deadline = time.monotonic() + 60
    while httpx.get(f"{topology.url('editor')}/readyz").json()["version"] != "1":
        assert time.monotonic() < deadline
        time.sleep(0.3)

    # edited by OpenAI's client, judged, exported
    client = openai.OpenAI(base_url=f"{topology.url('editor')}/v1", api_key="none", max_retries=0)
    assert client.images.edit(image=png(), prompt="make it winter", extra_body={"num_inference_steps": 2}).data[0].b64_json
    edit = httpx.get(f"{topology.url('editor')}/api/v1/edits").json()["edits"][0]
    vote = {"kind": "thumb", "edit": edit["id"], "value": 1, "reason": "instruction"}
    assert httpx.post(f"{topology.url('editor')}/api/v1/feedback", json=vote).status_code == 201
    with psycopg.connect(topology.database("ip2p", "x").replace("postgresql+x", "postgresql")) as connection:
        assert connection.execute("SELECT value, reason FROM votes").fetchall() == [(1, "instruction")]
    assert "and 1 votes" in call(topology, project, "ip2p.cli", "feedback", "export")

    # a second clone has the versions (dvc.lock) and no data; it pulls the dataset and trains, and nothing is made again
    second = clone(tmp_path / "second")
    for name in ("dvc.lock", "params.yaml"):
        shutil.copyfile(project / name, second / name)
    local._configure_dvc(local.Topology(topology.home, topology.ports, topology.secret, second))
    call(topology, second, "dvc", "pull", "data/dataset", "data/validated.json")
    call(topology, second, "ip2p.cli", "train")
    assert (second / "models/editor/unet").is_dir()
    assert not (second / "data/pairs").exists()
