"""The same pairs from one process as from a Ray cluster of two workers under Prefect."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ip2p.stages import PAIRS, TRIPLETS
from ip2p.store import digest

ROOT = Path(__file__).parents[2]
SCRIPT = """
from flows.server import prefect_server
with prefect_server():
    from flows.pairs import pairs
    from flows.stage import main
    main(pairs)
"""


@pytest.mark.timeout(500)
def test_a_ray_cluster_makes_the_bits_of_one_process(tiny, made, tmp_path):
    section = tiny.pairs.model_copy(update={"workers": 2, "engine": "ray"})
    written = tiny.model_copy(update={"pairs": section}).model_dump(mode="json", by_alias=True)
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(written))
    shutil.copytree(made / "triplets", tmp_path / TRIPLETS)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "RAY"))}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pairs 4/4" in done.stdout
    assert digest(tmp_path / PAIRS) == digest(made / "pairs")
