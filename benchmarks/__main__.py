"""`python -m benchmarks` runs the benchmarks below, each in a process of its own, and writes docs/benchmarks.md."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
PARTS = (
    (
        "Kept pairs an hour",
        ["benchmarks/pairs.py"],
        "Against the reference algorithm written plainly: same models, thresholds and triplets, one run. Each row adds one "
        "ingredient to the row above. *Direction* is the mean CLIP direction similarity of what is kept, *read right* the share of "
        "edited images that prefer their caption to the unedited one and to those of six other edits, *outside* the mean change "
        "outside the edited region. Adaptive sampling keeps the first pairs that pass and not the best of all, which costs some "
        "direction; `pairs.strategy: best_of_n` has the row without it.",
    ),
    (
        "Filter precision and recall",
        ["-m", "ip2p.cli", "filter", "calibrate"],
        "Against the world's truth: of each of 220 triplets a true edit and three that are not one (another edit, no edit, the edit "
        "laid out anew). Thresholds are found on half of the triplets and judged on the other half.",
    ),
    (
        "Filtering ten million candidates",
        ["benchmarks/filter.py"],
        "The whole chain over scores in shards of 100,000; images are not read.",
    ),
    (
        "Stable Diffusion 1.5's shape",
        ["benchmarks/sd15.py", "--small", "--pairs", "8", "--steps", "8"],
        "This line only shows that the command runs (few channels, CPU). `python benchmarks/sd15.py` on a GPU builds the true size, "
        "with random weights, at 512 px; it has not been run on one yet.",
    ),
)


def run(command: list[str]) -> str:
    """A benchmark's output, shown as it comes."""
    lines = []
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return "".join(lines).strip()


def main() -> None:
    cores = f"{os.cpu_count()} CPU cores, torch {torch.__version__.split('+')[0]}"
    parts = [f"# Benchmarks\n\nWritten by `python -m benchmarks` ({cores}, {torch.get_num_threads()} threads).\n"]
    for title, command, about in PARTS:
        print(title, flush=True)
        parts.append(f"## {title}\n{about}\n\n{run(command)}\n")
    (ROOT / "docs" / "benchmarks.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
