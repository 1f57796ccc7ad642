"""What a Prefect server is told of the project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.server import prefect_server

ROOT = Path(__file__).parents[2]
LOST = """
import os, time
from datetime import timedelta
from flows import deploy
from prefect import flow
from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.states import Running

@flow
def long(): pass

deploy.crash_lost_runs()
assert Automation.read(name=deploy.LOST).trigger.within.total_seconds() == 90
Automation.read(name=deploy.LOST).delete()
deploy.crash_lost_runs(timedelta(seconds=10))
with get_client(sync_client=True) as client:
    lost, ended = (client.create_flow_run(long, state=Running()) for _ in range(2))
    for run in (lost, ended):
        emit_event("prefect.flow-run.heartbeat", {"prefect.resource.id": f"prefect.flow-run.{run.id}"})
    from prefect.states import Completed
    client.set_flow_run_state(ended.id, Completed())
    deadline = time.monotonic() + 150
    while (state := client.read_flow_run(lost.id).state).is_running() and time.monotonic() < deadline:
        time.sleep(0.5)
    print(state.type.value, state.message, client.read_flow_run(ended.id).state.type.value, sep="|")
"""

ON = """
from prefect.client.orchestration import get_client

with get_client(sync_client=True) as client:
    (told,) = client.read_deployment_by_name("pipeline/pipeline").schedules
    print(told.active)
    client.update_deployment_schedule(told.deployment_id, told.id, active=True)
"""


@pytest.mark.timeout(600)
def test_deploying_twice_keeps_what_people_changed_and_a_run_that_is_lost_crashes(tmp_path, monkeypatch):
    for name in [n for n in os.environ if n.startswith("PREFECT")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IP2P_HOME", str(ROOT))
    with prefect_server(tmp_path / "prefect"):

        def call(*command):
            done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=200)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        lost = call("-c", LOST)
        call("-m", "flows.deploy")
        call("-m", "prefect", "gcl", "update", "gpu", "--limit", "3")
        call("-m", "prefect", "work-pool", "set-concurrency-limit", "ip2p", "2")
        assert call("-c", ON).strip().endswith("False")
        call("-m", "flows.deploy")
        assert '"limit": 3' in call("-m", "prefect", "gcl", "inspect", "gpu", "-o", "json")
        assert '"concurrency_limit": 2' in call("-m", "prefect", "work-pool", "inspect", "ip2p", "-o", "json")
        assert call("-c", ON).strip().endswith("True")
        assert "pipeline/pipeline" in call("-m", "prefect", "deployment", "ls")
    assert lost.strip().splitlines()[-1].startswith("CRASHED|nothing was heard of it") and lost.strip().endswith("|COMPLETED")
