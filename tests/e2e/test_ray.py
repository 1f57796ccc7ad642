"""The same pairs from one process as from a Ray cluster of two workers under Prefect."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.server import prefect_server
from ip2p.stages import PAIRS, TRIPLETS
from ip2p.store import digest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(500)
def test_a_ray_cluster_makes_the_bits_of_one_process(tiny, made, tmp_path, monkeypatch):
    section = tiny.pairs.model_copy(update={"workers": 2, "engine": "ray"})
    written = tiny.model_copy(update={"pairs": section}).model_dump(mode="json", by_alias=True)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(written))
    shutil.copytree(made / "triplets", tmp_path / TRIPLETS)
    for name in [n for n in os.environ if n.startswith(("PREFECT", "RAY"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-m", "flows.pairs"]
    with prefect_server(tmp_path / "prefect"):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pairs 4/4" in done.stdout
    assert digest(tmp_path / PAIRS) == digest(made / "pairs")
