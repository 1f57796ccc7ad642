"""Milliseconds of one UNet call at Stable Diffusion 1.5's true size (512 px, bfloat16, random weights), and what makes it faster.

`python -m benchmarks.unet` wants a GPU: rows of 1, 4 and 8 edits (three each), as diffusers' pipeline calls it and as ours does, by
CUDA graphs, compiled, and both; and the autoencoder for 8 pictures. `--small` checks the command anywhere.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.card import seconds
from benchmarks.sd15 import build
from ip2p.diffusion import Diffusion, decode_latents, encode_images, encode_text, run_unet
from ip2p.model.edit import load_editor
from ip2p.models import resolve_device

ROWS = (3, 12, 24)
PICTURES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="few channels, 64 px: checks the command, its speed says nothing")
    parser.add_argument("--calls", type=int, default=12, help="calls timed, of which the median counts (default: %(default)s)")
    options = parser.parse_args()
    heads = (*(f"{n} rows" for n in ROWS), f"{PICTURES} decoded", f"{PICTURES} encoded")
    print(f"| ms | {' | '.join(heads)} |\n|---{'|---' * len(heads)}|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, editor in ways(build(Path(folder) / "sd15", small=options.small, editor=True), resolve_device("auto")):
            spent = [median(call, editor, options.calls) for call in calls(editor)]
            print(f"| {name} | {' | '.join(f'{x * 1e3:.1f}' for x in spent)} |", flush=True)


def ways(folder: Path, device: torch.device) -> Iterator[tuple[str, Diffusion]]:
    """The ways to call the same UNet, each loaded when it is wanted."""
    load = partial(load_editor, folder, device=device, dtype=torch.bfloat16)
    for name, layout in (("contiguous, as diffusers' pipeline", torch.contiguous_format), ("channels last", torch.channels_last)):
        editor = replace(load(), graphed=None)
        for part in (editor.unet, editor.vae):
            part.to(memory_format=layout)
        yield name, editor
    if device.type == "cuda":
        yield "contiguous, by CUDA graphs (ours)", load()
        editor = load(compiled=True)
        yield "compiled, channels last", replace(editor, graphed=None)
        yield "compiled, by CUDA graphs (ours, `models.compile`)", editor


def calls(editor: Diffusion) -> Iterator[Callable[[], Tensor]]:
    """The UNet's calls, and the autoencoder's."""
    side, text = editor.image_size // editor.factor, encode_text(editor, ["make it winter"])
    for count in ROWS:
        rows = torch.randn(count, 2 * editor.latent_channels, side, side, device=editor.device)
        yield partial(run_unet, editor, rows, torch.tensor(500.0, device=editor.device), text.expand(count, -1, -1))
    yield partial(decode_latents, editor, torch.randn(PICTURES, editor.latent_channels, side, side, device=editor.device))
    images = torch.rand(PICTURES, 3, editor.image_size, editor.image_size, device=editor.device)
    yield lambda: encode_images(editor, images)[0]


@torch.inference_mode()
def median(call: Callable[[], Tensor], editor: Diffusion, count: int) -> float:
    for _ in range(3):  # warms up
        call()
    return statistics.median(seconds(call, editor.device) for _ in range(count))


if __name__ == "__main__":
    main()
