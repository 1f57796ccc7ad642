"""The whole pipeline as a new user runs it, killed in `pairs` and in `train`, against a run that was not."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ip2p.store import digest
from tests.conftest import TINY

ROOT = Path(__file__).parents[2]
SMALL = TINY | {
    "pairs": TINY["pairs"] | {"workers": 2},
    "train": {"steps": 8, "batch": 8, "lr": 0.0004, "checkpoint_every": 2, "log_every": 2, "grid_every": 100, "workers": 2},
    "evaluate": TINY["evaluate"] | {"sdedit_steps": 4},
}


def clone(folder: Path) -> Path:
    """A checkout of the working tree with small parameters and a DVC repository of its own."""
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in files.splitlines():
        if not name.startswith(("tests/", "docs/")) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    (folder / "params.yaml").write_text(yaml.safe_dump({**yaml.safe_load((ROOT / "params.yaml").read_text()), **SMALL}))
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def start(folder: Path, log: Path) -> subprocess.Popen[bytes]:
    """`make run`'s command, in a process group of its own."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT") and k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": str(folder), "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}", "HF_HUB_OFFLINE": "1"}
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "flows"], cwd=folder, stdout=output, stderr=output, env=environment, start_new_session=True
        )


def finish(folder: Path, log: Path) -> str:
    """Run to the end; returns what was printed."""
    process = start(folder, log)
    assert process.wait(timeout=900) == 0, log.read_text()[-4000:]
    return log.read_text()


def running_in(folder: Path) -> list[int]:
    """Processes whose working directory is the folder."""
    found = []
    for status in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (status / "cwd").readlink().is_relative_to(folder.resolve()):
                found.append(int(status.name))
    return found


def kill(process: subprocess.Popen[bytes], folder: Path) -> None:
    """SIGKILL the run alone; whatever it started must go with it."""
    process.kill()
    process.wait()
    deadline = time.monotonic() + 30
    while running_in(folder):
        assert time.monotonic() < deadline, f"still running: {running_in(folder)}"
        time.sleep(0.2)


def wait_for(condition, process: subprocess.Popen[bytes], log: Path, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, log.read_text()[-4000:]
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.02)


@pytest.mark.timeout(1500)
def test_killed_twice_the_run_finishes_with_the_same_dataset(made, track_in, tmp_path):
    home, log = clone(tmp_path / "home"), tmp_path / "run.log"
    (home / "work").mkdir()
    track_in(home / "work")

    # SIGKILL in the middle of `pairs`
    process = start(home, log)
    wait_for(lambda: len(list((home / "work/pairs").glob("*.parquet"))) >= 2, process, log)
    kill(process, home)
    assert not (home / "data/pairs").exists()

    # SIGKILL in the middle of `train`
    process = start(home, log)
    wait_for(lambda: list((home / "work/train").glob("*/step-*.safetensors")), process, log)
    kill(process, home)
    assert not (home / "models/editor").exists()

    # the third start finishes, skips what was done, and the dataset is that of an uninterrupted run of one process
    printed = finish(home, log)
    assert json.loads((home / "reports/pairs.json").read_text())["extra"]["shards_resumed"] >= 2
    assert digest(home / "data/dataset") == digest(made / "dataset")
    report = Path(re.search(r"^report: (.*)$", printed, re.M)[1])
    assert "<h1>ip2p-editor version 1</h1>" in report.read_text()

    # of the code, DVC follows what git has: compiled modules come and go
    followed = [d for stage in yaml.safe_load((home / "dvc.lock").read_text())["stages"].values() for d in stage.get("deps", ())]
    writer = next(d for d in followed if d["path"] == "ip2p/dataset/llm")
    code = home / writer["path"]
    assert writer["nfiles"] == len(list(code.glob("*.py"))) and list(code.glob("__pycache__/*"))

    # nothing is stale: a second `dvc repro` only asks the registry, which has the version, and looks at what parameters name
    again = subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=home, capture_output=True, text=True, check=True)
    assert re.findall(r"Running stage '(\w+)'", again.stdout) == ["folders", "register"]
    assert json.loads((home / "reports/register.json").read_text())["extra"]["version"] == "1"

    # a bad row ends the run in one clear line, exit code 2, and nothing that was made is lost
    (home / "captions.jsonl").write_text('{"caption": "a red cat on the left at the beach in summer"}\nnonsense\n')
    params = yaml.safe_load((home / "params.yaml").read_text())
    params["triplets"]["captions"] = "captions.jsonl"
    (home / "params.yaml").write_text(yaml.safe_dump(params))
    process = start(home, tmp_path / "bad.log")
    assert process.wait(timeout=240) == 2
    said = (tmp_path / "bad.log").read_text()
    assert "ip2p: error: captions.jsonl:2: not valid JSON" in said
    assert "Traceback" not in said
    assert (home / "models/editor/unet").exists()
    assert (home / "data/pairs").exists()
