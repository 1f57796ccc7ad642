"""`python -m benchmarks [PART …]` runs benchmarks, each in a process of its own, and writes their parts of docs/benchmarks.md.

Without a name all are run that this machine can run. Parts that are not run stay as they are; each says on what it was measured.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = "# Benchmarks\n\nWritten by `python -m benchmarks`. Each part says on what it was measured.\n"


@dataclass(frozen=True)
class Part:
    """A benchmark: its heading, its command, and what its reader has to know."""

    title: str
    command: tuple[str, ...]
    about: str
    gpu: bool = False
    """Wants a GPU."""


PARTS = {
    "pairs": Part(
        "Kept pairs an hour",
        ("-m", "benchmarks.pairs"),
        "Against the reference algorithm written plainly: same models, thresholds and triplets, one run. Each row adds one "
        "ingredient to the row above. *Direction* is the mean CLIP direction similarity of what is kept, *read right* the share of "
        "edited images that prefer their caption to the unedited one and to those of six other edits, *outside* the mean change "
        "outside the edited region. Adaptive sampling keeps the first pairs that pass and not the best of all, which costs some "
        "direction; `pairs.strategy: best_of_n` has the row without it.",
    ),
    "calibrate": Part(
        "Filter precision and recall",
        ("-m", "ip2p.cli", "filter", "calibrate"),
        "Against the world's truth: of each of 220 triplets a true edit and three that are not one (another edit, no edit, the edit "
        "laid out anew). Thresholds are found on half of the triplets and judged on the other half.",
    ),
    "filter": Part(
        "Filtering ten million candidates",
        ("-m", "benchmarks.filter"),
        "The whole chain over scores in shards of 100,000; images are not read.",
    ),
    "train": Part(
        "Training",
        ("-m", "benchmarks.train"),
        "Against a plain loop that does what diffusers' `train_instruct_pix2pix.py` does: decode, crop and encode in every step. Same "
        "start, data, loss, optimizer and batch, in turns. Ours encodes the pictures once, before its steps are timed; the plain loop pays "
        "for it in each. × is against the first row, as the script runs unless told otherwise, and the median over the turns; rows of one "
        "arithmetic show the method alone. *Loss*: mean over the later half of the steps, with its standard error.",
    ),
    "pretrain": Part(
        "Pretraining, compiled",
        ("-m", "benchmarks.pretrain"),
        "Each part of `ip2p pretrain` as it runs, drawing and optimizer included. A leg of half an hour or more makes this comparison with "
        "its first hundred steps (`pretrain.compile`), says in its log what came of it and goes on the quicker way.",
    ),
    "edit": Part(
        "Editing",
        ("-m", "benchmarks.edit", "--compile"),
        "Against diffusers' `StableDiffusionInstructPix2PixPipeline` on the same weights (the editor that ships), noise and scheduler. "
        "First the same picture (*differs*: the largest difference of a pixel from the first row's), then savings that change it, "
        "compiled, in bfloat16, with their success on edits of captions that the editor was not trained on, and its difference from the "
        "first row's, edit by edit. At the scales of params.yaml, at which all make three passes of the UNet a step. All ways take "
        "turns at each picture and at each batch of 12: × is the median over the turns of how many times as long the first row took in "
        "that turn, for these cores are shared and not as fast from one minute to the next.",
    ),
    "serve": Part(
        "Serving",
        ("-m", "benchmarks.serve"),
        "A server of its own and its clients on the same cores. Eight clients ask one after the other; then requests come at ten times "
        "that rate, whether answered or not; each is of another picture. Edits under way share the UNet's calls, each at its own step.",
    ),
    "train-sd15": Part(
        "Training at Stable Diffusion 1.5's true size",
        ("-m", "benchmarks.train", "--model", "sd15", "--half", "--compile", "--turns", "1", "--pairs", "64", "--steps", "24"),
        "The same loops over a folder of its configuration with random weights, 256 px as in the paper, batches of 32.",
        gpu=True,
    ),
    "edit-sd15": Part(
        "Editing at Stable Diffusion 1.5's true size",
        ("-m", "benchmarks.edit", "--model", "sd15", "--half", "--compile", "--edits", "16", "--batch", "8", "--timed", "5"),
        "512 px, random weights, batches of 8. *Differs* says nothing here: the pipeline draws its noise in bfloat16, which are other "
        "numbers; in float32 both make the same picture to 4e-6 on the GPU too (fewer channels), and a replayed CUDA graph gives "
        "the call's bits (tests/test_graphs.py). One edit at a time leaves the card waiting for Python, which graphs end; in batches it "
        "is busy either way and only compiling helps.",
        gpu=True,
    ),
    "unet-sd15": Part(
        "A call of the UNet at Stable Diffusion 1.5's true size",
        ("-m", "benchmarks.unet"),
        "What the edit above is made of: the UNet for one, four and eight edits (16 such calls each), the autoencoder for eight "
        "pictures. A step of diffusers' pipeline is the first row; ours is contiguous by CUDA graphs or, with `models.compile`, the last "
        "row. Compiling takes 75 seconds, once for all batches.",
        gpu=True,
    ),
    "pairs-sd15": Part(
        "Pairs at Stable Diffusion 1.5's true size",
        ("-m", "benchmarks.sd15", "--pairs", "32", "--batch", "16", "--compile"),
        "512 px, random weights, Prompt-to-Prompt by self-attention.",
        gpu=True,
    ),
}


def run(command: tuple[str, ...]) -> str:
    """A benchmark's output, shown as it comes."""
    lines = []
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return "".join(lines).strip()


def written() -> dict[str, str]:
    """The parts that the page has, by heading."""
    page = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    return {title: body.strip() for title, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"among {', '.join(PARTS)} (default: all)")
    cuda = torch.cuda.is_available()
    chosen = parser.parse_args().parts or [n for n, p in PARTS.items() if cuda or not p.gpu]
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"{', '.join(sorted(unknown))}: no such part; choose among {', '.join(PARTS)}")
    if not cuda and (wanting := [n for n in chosen if PARTS[n].gpu]):
        parser.error(f"{', '.join(wanting)}: wants a GPU; `--model sd15-small` of the same command runs without one")
    device = torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads"
    for name in chosen:
        part = PARTS[name]
        print(part.title, flush=True)
        parts = written() | {part.title: f"{part.about}\n\n{run(part.command)}\n\n*{device}, torch {torch.__version__.split('+')[0]}*"}
        order = [p.title for p in PARTS.values() if p.title in parts]
        PAGE.write_text("\n".join([HEAD, *(f"## {t}\n{parts[t]}\n" for t in order)]), encoding="utf-8")


if __name__ == "__main__":
    main()
