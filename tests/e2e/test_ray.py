"""The same pairs from one process, two processes, and a Ray cluster of two workers under Prefect."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ip2p.params import load_params
from ip2p.stages import PAIRS, TRIPLETS
from ip2p.store import digest

ROOT = Path(__file__).parents[2]
PARAMS = {
    "models": {"threads": 1},
    "triplets": {"count": 10},
    "pairs": {"samples": 2, "steps": 3, "unit": 2, "batch": 4},
}
SCRIPT = """
from flows.server import prefect_server
with prefect_server():
    from flows.pairs import pairs
    from flows.stage import main
    main(pairs)
"""


def run(folder: Path, *command: str, **changes: object) -> str:
    written = {**PARAMS, "pairs": {**PARAMS["pairs"], **changes}}
    (folder / "params.yaml").write_text(yaml.safe_dump(written))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT", "RAY"))}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(500)
def test_one_process_two_and_ray_make_the_same_bits(tmp_path: Path) -> None:
    digests = {}
    (tmp_path / "first").mkdir()
    run(tmp_path / "first", "-m", "ip2p.cli", "triplets")
    for name, command, changes in (
        ("one", ("-m", "ip2p.cli", "pairs"), {"workers": 1}),
        ("two", ("-m", "ip2p.cli", "pairs"), {"workers": 2}),
        ("ray", ("-c", SCRIPT), {"workers": 2, "engine": "ray"}),
    ):
        folder = shutil.copytree(tmp_path / "first", tmp_path / name)
        told = run(folder, *command, **changes)
        assert load_params(folder / "params.yaml").pairs.workers == changes["workers"] and (folder / TRIPLETS).is_dir()
        digests[name] = digest(folder / PAIRS)
    assert "pairs 5/5" in told
    assert len(set(digests.values())) == 1
