"""Where compiling pays while the embedded models are trained: `python -m benchmarks.pretrain` (ten minutes on a CPU).

Each part of `ip2p pretrain` as it runs, drawing and optimizer included, with `pretrain.compile` and without: samples a second of the
steps 51 to 100 of a leg; compiling falls into the first 50. `--batch` is the teacher's and CLIP's (a GPU wants 1024), four times the
autoencoder's.
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from pathlib import Path

import torch

from ip2p.params import Params
from ip2p.world.pretrain import pretrain
from ip2p.world.pretrain.fit import Leg

FOLDERS = {"clip": "clip", "autoencoder": "vae", "teacher": "unet"}
STEPS = Leg.log_every


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="samples a step (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", default=list(FOLDERS), choices=FOLDERS, help="default: all")
    options = parser.parse_args()
    print("| samples/s | a step | plain | compiled | × | seconds to compile |\n|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts:
            batch = options.batch // 4 if part == "autoencoder" else options.batch
            (_, plain), (first, fast) = (speeds(Path(folder), part, batch, compiled=c) for c in (False, True))
            waited = max(0.0, STEPS / first - STEPS / fast)
            print(f"| {part} | {batch} | {plain * batch:.1f} | {fast * batch:.1f} | {fast / plain:.2f} | {waited:.0f} |", flush=True)


def speeds(work: Path, part: str, batch: int, *, compiled: bool) -> tuple[float, float]:
    """Steps a second of a leg's first and second half."""
    torch.compiler.reset()
    section = {"scenes": 4096, "compile": compiled, "workers": 1, f"{part}_steps": 2 * STEPS, f"{part}_batch": batch}
    params = Params.model_validate({"pretrain": section})
    for needed in ("tokenizer", pretrain.ADOPT):  # the teacher wants an autoencoder's latents
        pretrain.run(params, work=work, part=needed)
    shutil.rmtree(work / FOLDERS[part])
    pretrain.run(params, work=work, part=part)
    first, second = re.findall(r"([\d.]+) step/s", (work / FOLDERS[part] / "log.txt").read_text())
    return float(first), float(second)


if __name__ == "__main__":
    main()
