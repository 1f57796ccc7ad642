"""Kill the dataset stages and training at random instants and go on, until all is done: as if nothing had happened.

`python -m tests.torture --kills 100 --train-kills 50` (`make torture`). Data and editor must be those of an undisturbed run,
bit for bit, and so must the losses of all steps. The writer is a language model on
a local endpoint with a quarter of all requests failing; no reply may be paid twice but those whose answers
nobody was left to hear. `tests/e2e/test_torture.py` is the short version.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from safetensors import safe_open

from ip2p.dataset.llm.journal import Journal
from ip2p.store import digest
from ip2p.world.edits import EDIT_TYPES
from tests.dataset.llm.endpoint import endpoint

DATA = ("triplets", "pairs", "filter", "validate")
STAGES = (*DATA, "train")
ANEW = {"pairs": ("data/pairs", "work/pairs"), "train": ("models/editor", "work/train")}
"""What a stage that ended before it was killed makes again, so that kills are of work."""
MADE = ("data/triplets", "data/pairs", "data/dataset", "data/validated.json", "models/editor")


def parameters(url: str, root: Path) -> dict:
    llm = {"base_url": url, "model": "toy", "format": "json_schema", "backoff": 0.01, "timeout": 1.5, "retries": 12, "concurrency": 4}
    return {
        "models": {"threads": 1},
        "triplets": {"writer": "llm", "count": 24, "edit_types": list(EDIT_TYPES), "llm": llm},
        "pairs": {"samples": 3, "strategy": "adaptive", "patience": 2, "steps": 4, "unit": 4, "batch": 4, "workers": 1, "abandon_at": 0.5},
        "filter": {"caption": -1, "image": -1, "direction": 0.1, "keep": 1},
        "validate": {"min_pairs": 3},
        "train": {"steps": 12, "batch": 4, "optimizer": "muon", "checkpoint_every": 1, "log_every": 3, "grid_every": 5, "workers": 2},
        "evaluate": {"steps": 2},
        "track": {"uri": f"sqlite:///{root.resolve()}/mlflow.db"},  # made once, so that training is what is killed
    }


def start(stage: str, folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "ip2p.cli", "--params", "params.yaml", stage]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


def finish(stage: str, folder: Path) -> float:
    began = time.monotonic()
    if start(stage, folder).wait() != 0:
        raise SystemExit(f"{stage} failed:\n{(folder / 'log.txt').read_text()[-3000:]}")
    return time.monotonic() - began


def prepare(folder: Path, url: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(parameters(url, folder.parent)))
    return folder


def losses(folder: Path) -> list[float]:
    newest = max(folder.glob("work/train/*/step-*.safetensors"))
    with safe_open(newest, framework="pt") as file:
        return file.get_tensor("extra.losses").tolist()


def torture(root: Path, *, kills: int, train_kills: int, seed: int = 0, say=print) -> None:
    """Raises `AssertionError` if the data differ from an undisturbed run's, or a reply was paid twice."""
    stages = STAGES if train_kills else DATA
    with endpoint() as calm:
        reference = prepare(root / "calm", calm.url)
        seconds = {stage: finish(stage, reference) for stage in stages}
    rng = random.Random(seed)
    killed = 0
    with endpoint(faults=0.25, hang=2.0) as server:
        folder = prepare(root / "storm", server.url)
        for number, stage in enumerate(stages):
            wanted = -(-kills * (number + 1) // len(DATA)) if stage in DATA else kills + train_kills
            while killed < wanted:
                child = start(stage, folder)
                try:
                    child.wait(timeout=rng.uniform(0.05, 1.0) * seconds[stage])
                except subprocess.TimeoutExpired:
                    os.killpg(child.pid, signal.SIGKILL)
                    child.wait()
                    killed += 1
                    say(f"{killed} of {kills + train_kills}: killed {stage}")
                    continue
                assert child.returncode == 0, f"{stage} failed:\n{(folder / 'log.txt').read_text()[-3000:]}"
                for made in ANEW.get(stage, ()):
                    shutil.rmtree(folder / made)
            finish(stage, folder)
        with Journal(folder / "work/triplets/journal.jsonl") as journal:
            lost = journal.lost
    assert server.paid_again <= lost, f"{server.paid_again} replies were paid again, and {lost} answers were lost"
    compared = [made for made in MADE if (reference / made).exists()]
    for made in compared:
        assert digest(folder / made) == digest(reference / made), f"{made} differs from an undisturbed run's"
    if train_kills:
        assert losses(folder) == losses(reference), "the losses differ from an undisturbed run's"
    paid = f"{len(server.paid)} replies, {server.paid_again} paid again of {lost} whose answers were lost"
    say(f"{killed} kills, {paid}; {', '.join(compared)} equal an undisturbed run's")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--train-kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        torture(Path(root), kills=options.kills, train_kills=options.train_kills, seed=options.seed)
