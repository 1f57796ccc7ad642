"""What larger pictures would cost `make run`: `python -m benchmarks.side` after `make run` (two minutes on a CPU).

The same embedded models at 96 and at 128 px, as they are used: a training step, guided sampling, encoding and decoding. Then the
seconds of the run's stages, as its reports tell them, by the ratio of what each mostly does.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.card import seconds
from ip2p.attention import Float32Attention
from ip2p.diffusion import Diffusion, decode_latents, encode_images, encode_text, run_unet
from ip2p.model.data import TrainBatch
from ip2p.model.objective import loss_of, new_optimizer
from ip2p.model.unet import new_editor_unet
from ip2p.models import load_diffusion, resolve_device, resolve_dtype
from ip2p.params import load_params
from ip2p.stages import REPORTS
from ip2p.store import read_json

SIDES = (96, 128)
MOSTLY = {"pairs": "sampling", "train": "training", "evaluate": "sampling"} | dict.fromkeys(("triplets", "filter", "validate", "register"))
"""What a stage's seconds mostly go to; None: nothing that grows with the pictures, or little."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=7, help="repeats, of which the median counts (default: %(default)s)")
    times = parser.parse_args().times
    device = resolve_device("auto")
    dtype = resolve_dtype("auto", device)
    models = {held: load_diffusion("world", device=device, dtype=dtype, exact=held == "trained") for held in ("used", "trained")}
    found = {side: {n: median(work, times, device) for n, work in works(models, side).items()} for side in SIDES}
    sides, kind = " | ".join(f"{s} px" for s in SIDES), str(dtype).removeprefix("torch.")
    print(f"| milliseconds, batches of 16, {kind} | {sides} | × |\n|---|---|---|---|")
    ratio = {n: found[SIDES[1]][n] / found[SIDES[0]][n] for n in found[SIDES[0]]}
    for name in ratio:
        print(f"| {name} | {' | '.join(f'{found[s][name] * 1e3:.0f}' for s in SIDES)} | {ratio[name]:.2f} |")
    spent = {s: float(read_json(REPORTS / f"{s}.json")["seconds"]) for s in MOSTLY if (REPORTS / f"{s}.json").exists()}
    if spent:
        then = {s: v * (ratio[what] if (what := MOSTLY[s]) else 1.0) for s, v in spent.items()}
        print(f"\nThe stages of this run: {sum(spent.values()) / 60:.1f} minutes; at {SIDES[1]} px {sum(then.values()) / 60:.1f}.")


def works(models: dict[str, Diffusion], side: int) -> dict[str, Callable[[], Any]]:
    """What the stages do most, at this side of the pictures."""
    used, trained = models["used"], models["trained"]
    section, generator = load_params(Path("params.yaml")).train, torch.Generator().manual_seed(0)
    shape = (16, used.latent_channels, side // used.factor, side // used.factor)
    latents, noise, source = torch.randn(3, *shape, generator=generator)
    images = torch.rand(16, 3, side, side, generator=generator)
    text = encode_text(used, [""]).expand(16, -1, -1).float().cpu()
    batch = TrainBatch(latents, noise, torch.randint(0, 1000, (16,), generator=generator), source, text)
    unet = new_editor_unet(trained.unet, trained.latent_channels).to(trained.device, memory_format=torch.channels_last).train()
    if trained.device.type == "cpu" and trained.dtype != torch.float32:
        unet.set_attn_processor(Float32Attention())
    optimizer = new_optimizer(unet, section)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with trained.arithmetic():
            loss = loss_of(unet, batch, trained)
        loss.backward()
        optimizer.step()

    def call() -> None:
        with torch.inference_mode():
            run_unet(used, latents.to(used.device), torch.tensor(500.0), text.to(used.device))

    return {
        "training": step,
        "sampling": call,
        "encoding": partial(encode_images, used, images),
        "decoding": partial(decode_latents, used, latents.to(used.device)),
    }


def median(work: Callable[[], Any], times: int, device: torch.device) -> float:
    """Seconds, after a warm-up."""
    work()
    return statistics.median(seconds(work, device) for _ in range(times))


if __name__ == "__main__":
    main()
