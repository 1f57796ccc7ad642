"""Where compiling pays while the embedded models are trained: `python -m benchmarks.pretrain` (twenty minutes on a CPU).

Each part of `ip2p pretrain` as it runs, drawing and optimizer included, in a leg that tries its steps plain and compiled as long ones do
(`pretrain.compile`), and what its log says of that. `--batch` is the teacher's and CLIP's (a GPU wants 1024), sixteen times the
autoencoder's, which sees whole pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from ip2p.params import Params
from ip2p.world.pretrain import pretrain, quicker

FOLDERS = {"clip": "clip", "autoencoder": "vae", "teacher": "unet"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64, help="samples a step (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", default=list(FOLDERS), choices=FOLDERS, help="default: all")
    options = parser.parse_args()
    quicker.WORTH = 0.0  # however short the leg
    print("| | samples a step | samples/s | compiled | what its log says |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/compiled"  # nothing was compiled before
        for part in options.parts:
            batch = options.batch // 16 if part == "autoencoder" else options.batch
            said = tried(Path(folder), part, batch)
            seconds = re.match(r"a step takes (\S+) s compiled .*, (\S+) s plain", said)
            compiled, plain = (f"{batch / float(s):.1f}" for s in seconds.groups()) if seconds else ("", "")
            print(f"| {part} | {batch} | {plain} | {compiled} | {said} |", flush=True)


def tried(work: Path, part: str, batch: int) -> str:
    """What a leg says of its trial."""
    torch.compiler.reset()
    steps = 2 * quicker.TRIED + 1
    section = {"scenes": 4096, "workers": 1, "autoencoder_crop": 96, f"{part}_steps": steps, f"{part}_batch": batch}
    params = Params.model_validate({"pretrain": section})
    with contextlib.redirect_stdout(sys.stderr):
        for needed in ("tokenizer", pretrain.ADOPT):  # the teacher wants an autoencoder's latents
            pretrain.run(params, work=work, part=needed)
        shutil.rmtree(work / FOLDERS[part])
        pretrain.run(params, work=work, part=part)
    (said,) = re.findall(r"^\w+ (.*: goes on \w+)$", (work / FOLDERS[part] / "log.txt").read_text(), re.MULTILINE)
    return str(said)


if __name__ == "__main__":
    main()
