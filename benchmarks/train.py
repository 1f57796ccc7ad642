"""Training samples a second: ours against a plain loop that does what diffusers' `train_instruct_pix2pix.py` does.

The plain loop decodes, crops, flips, encodes both images and the text anew in every step. Same start, data, loss, optimizer and
batch; the loss is the mean over the later half of the steps, with its standard error. All ways take turns, for a machine that others
use too is not as fast from one minute to the next: × is the median over the turns of how many times as fast as the first way a way
was in that turn. `--model sd15` builds a folder of Stable Diffusion 1.5's true size with random weights (256 px, the paper's) and
wants a GPU; `sd15-small` checks that command anywhere.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F
from safetensors import safe_open

from benchmarks.card import Cost, cost_of, synchronize
from benchmarks.sd15 import build
from ip2p.dataset.world_writer import write_triplets
from ip2p.diffusion import Diffusion
from ip2p.errors import UserError
from ip2p.model import train
from ip2p.model.unet import new_editor_unet
from ip2p.models import resolve_device
from ip2p.params import Params
from ip2p.pictures import from_bytes, to_png
from ip2p.store import digest, read_shards, write_json, write_shard
from ip2p.world.truth import truth_of


@dataclass
class Way:
    """A way to train, its samples a second in each turn, and the losses of its steps."""

    name: str
    loop: Callable[[Params, Path], tuple[float, list[float]]]
    params: Params
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    refused: str = ""
    """Why it cannot be trained so here: compiled, it may learn something else."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("world", "sd15", "sd15-small"), default="world")
    parser.add_argument("--pairs", type=int, default=128, help="image pairs (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="samples a step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=24, help="steps of each loop (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="of each loop (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="ours also with torch.compile, compiled before its steps are timed")
    parser.add_argument("--half", action="store_true", help="bfloat16 alone, for a GPU that is had for minutes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        root = Path(work)
        teacher = "world" if options.model == "world" else str(build(root / "sd15", small=options.model == "sd15-small", sample_size=32))
        params = parameters(root, teacher, options)
        make_dataset(root / "dataset", options.pairs, size=train.load_base(params).image_size)
        write_json(root / "validated.json", {"dataset": digest(root / "dataset")})
        table = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what training tells on its way is not part of the table
        tried = list(ways(params, half=options.half, compiled=options.compile))
        for turn in range(options.turns):
            for way in (w for w in tried if not w.refused):
                try:
                    rate, way.losses = way.loop(way.params, root)
                except UserError as error:
                    way.refused = str(error)
                    continue
                way.rates.append(rate)
                print(f"turn {turn + 1} of {options.turns}: {way.name}, {rate:.1f} samples/s", file=sys.stderr, flush=True)
        print("| | samples/s | × | loss | peak | bandwidth |\n|---|---|---|---|---|---|", file=table)
        for way in tried:
            print(row(way, tried[0].rates, options.batch), file=table, flush=True)


def row(way: Way, first: list[float], batch: int) -> str:
    """What a way came to, against the first way's rates."""
    if way.refused:
        return f"| {way.name} | {way.refused} | | | | |"
    rate, times = statistics.median(way.rates), statistics.median(b / a for a, b in zip(first, way.rates, strict=True))
    late = way.losses[len(way.losses) // 2 :]
    base = train.load_base(way.params)
    shares = cost_of_step(base, batch).shares(batch / rate, base.device, base.dtype)
    loss = f"{statistics.mean(late):.3f} ± {statistics.stdev(late) / len(late) ** 0.5:.3f}"
    return f"| {way.name} | {rate:.1f} | {times:.1f} | {loss} | {shares} |"


def ways(params: Params, *, half: bool, compiled: bool) -> Iterator[Way]:
    """The plain loop and ours in each arithmetic, then what else ours can do."""
    plain, cached = ("the plain loop", run_plain), ("ours: cached latents and texts", run_ours)
    for name, loop in (plain, cached):
        for dtype in ("bfloat16",) if half else ("float32", "bfloat16"):
            yield Way(f"{name}, {dtype}", loop, changed(params, dtype))
    if compiled:
        yield Way(f"ours, {dtype}, compiled", run_ours, changed(params, dtype, compile=True))
    if resolve_device(params.models.device).type == "cpu":
        yield Way("+ a process a core", run_ours, changed(params, "bfloat16", workers=2))


def changed(params: Params, dtype: str, **changes: Any) -> Params:
    """The same in this arithmetic, with another `train` section."""
    return params.changed("models", dtype=dtype).changed("train", **changes)


def parameters(root: Path, teacher: str, options: argparse.Namespace) -> Params:
    section = {"steps": options.steps, "batch": options.batch, "log_every": options.steps // 2, "checkpoint_every": options.steps}
    return Params.model_validate(
        {
            "models": {"teacher": teacher},
            "train": {**section, "grid_every": 10**6, "workers": 1},
            "evaluate": {"steps": 2},
            "track": {"uri": f"sqlite:///{root}/mlflow.db"},
        }
    )


def make_dataset(folder: Path, count: int, *, size: int) -> None:
    """Sources and true edits of the world, as `filter` writes them."""
    rows = []
    for number, t in enumerate(write_triplets(count=count, stream="benchmark-train")):
        truth = truth_of(t.caption.text, t.instruction, seed=number, size=size)
        images = {n: {"bytes": to_png(x), "path": f"{n}.png"} for n, x in (("original", truth.source_CHW), ("edited", truth.target_CHW))}
        row = {"pair_id": f"{t.id}-0", "triplet_id": t.id, "original_prompt": t.caption.text, "edit_prompt": t.instruction}
        rows.append(row | {f"{n}_image": x for n, x in images.items()})
    write_shard(folder / "train-00000.parquet", pa.Table.from_pylist(rows), "benchmark")


def run_ours(params: Params, root: Path) -> tuple[float, list[float]]:
    with tempfile.TemporaryDirectory(dir=root) as folder:
        work = Path(folder) / "work"
        train.run(params, dataset=root / "dataset", marker=root / "validated.json", out=Path(folder) / "editor", work=work)
        progress = json.loads(next(work.glob("*/progress.json")).read_text())
        with safe_open(max(work.glob("*/step-*.safetensors")), framework="pt") as newest:
            return progress["samples_per_second"], newest.get_tensor("extra.losses").tolist()


def run_plain(params: Params, root: Path) -> tuple[float, list[float]]:
    """One process, every step from the stored pictures; the rate is that of the later half, as ours is."""
    from diffusers.training_utils import EMAModel

    section, base = params.train, train.load_base(params)
    device, vae = base.device, base.vae
    unet = new_editor_unet(base.unet, base.latent_channels).to(device).train()
    ema = EMAModel(unet.parameters(), decay=section.ema, use_ema_warmup=True)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=section.lr, weight_decay=section.weight_decay)
    rows = read_shards(root / "dataset", "train-").to_pylist()
    generator = torch.Generator().manual_seed(0)
    alphas, losses, began = base.scheduler.alphas_cumprod.to(device), [], 0.0
    for step in range(section.steps):
        if step == section.steps // 2:
            synchronize(device)
            began = time.monotonic()
        picked = [rows[i] for i in torch.randint(0, len(rows), (section.batch,), generator=generator).tolist()]
        pairs = torch.stack([augmented(row, base.image_size, generator) for row in picked]).to(device)
        before, after = (pairs * 2 - 1).chunk(2, dim=1)
        with torch.no_grad(), base.arithmetic():
            latents = vae.encode(after).latent_dist.sample() * vae.config.scaling_factor
            source = vae.encode(before).latent_dist.mode()
            texts = ["" if torch.rand((), generator=generator) < 0.1 else row["edit_prompt"] for row in picked]
            length = base.text_encoder.config.max_position_embeddings
            tokens = base.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
            states = base.text_encoder(tokens.input_ids.to(device)).last_hidden_state
        keep = (torch.rand(section.batch, 1, 1, 1, generator=generator) > 0.1).to(device)
        timesteps = torch.randint(0, 1000, (section.batch,), generator=generator).to(device)
        noise = torch.randn(latents.shape, generator=generator).to(device)
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * latents.float() + (1 - alpha).sqrt() * noise
        target = (
            noise if base.scheduler.config.prediction_type == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * latents.float()
        )
        with base.arithmetic():
            prediction = unet(torch.cat([noisy, source.float() * keep], dim=1), timesteps, states).sample
        loss = F.mse_loss(prediction.float(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.step(unet.parameters())
        losses.append(loss.item())
    synchronize(device)
    return (section.steps - section.steps // 2) * section.batch / (time.monotonic() - began), losses


def augmented(row: dict, size: int, generator: torch.Generator) -> torch.Tensor:
    """Both images decoded, resized, cropped and flipped alike."""
    pair = torch.cat([from_bytes(row[f"{n}_image"]["bytes"], where=row["pair_id"]) for n in ("original", "edited")])
    zoom, x, y, flip = torch.rand(4, generator=generator).tolist()
    large = round(size * (1 + 0.125 * zoom))
    pair = F.interpolate(pair[None], size=(large, large), mode="bilinear", antialias=True)[0]
    left, top = int(x * (large - size + 1)), int(y * (large - size + 1))
    pair = pair[:, top : top + size, left : left + size]
    return pair.flip(-1) if flip < 0.5 and not {"left", "right"} & set(row["edit_prompt"].split()) else pair


def cost_of_step(base: Diffusion, batch: int) -> Cost:
    """Of one forward and backward pass of the editor's UNet over a batch; what else a step does is not counted."""
    unet = new_editor_unet(base.unet, base.latent_channels).to(base.device, memory_format=torch.channels_last)
    side, length = base.image_size // base.factor, base.text_encoder.config.max_position_embeddings
    rows = torch.zeros(batch, unet.config.in_channels, side, side, device=base.device)
    text = torch.zeros(batch, length, unet.config.cross_attention_dim, device=base.device)

    def step() -> None:
        with base.arithmetic():
            loss = unet(rows, 500, text).sample.float().sum()
        loss.backward()

    return cost_of(step)


if __name__ == "__main__":
    main()
