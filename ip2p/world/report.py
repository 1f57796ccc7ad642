"""`ip2p world report`: what the embedded models can do, measured on held-out scenes, as docs/world.md with pictures.

CLIP retrieval and attribute reading on renders, autoencoder PSNR, and attribute reading of teacher samples by a CLIP
whose own accuracy stands beside it.
"""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import torch
from torch import Tensor

from ip2p.clip import Clip, image_features, load_clip
from ip2p.diffusion import Diffusion, decode_latents, encode_text, reconstruct, run_guided
from ip2p.models import load_diffusion, resolve_device
from ip2p.pictures import from_pillow, grid, to_pillow
from ip2p.sampler import draw_noise, make_schedule, sample
from ip2p.store import write_bytes
from ip2p.world.language import write_caption
from ip2p.world.reading import ATTRIBUTES, Accuracy, read_attribute, retrieval
from ip2p.world.render import render
from ip2p.world.scenes import Scene, sample_scene

_GATES = {"kind": (0.90, 0.80), "colour": (0.90, 0.70), "count": (0.95, 0.60), "place": (0.95, 0.60)}
_USUAL_GATE = (0.95, 0.90)
_STEPS, _GUIDANCE, _BATCH = 12, 4.0, 16
_FIRST = "# The illustrated world: what its models can do"
_LARGER = "# The same models at 128 pixels"


def write_report(path: Path, *, count: int, model: str = "world") -> Path:
    """Measure `model` on `count` held-out scenes and write its part of the Markdown page, pictures to `img/` beside it."""
    device = resolve_device("auto")
    clip, teacher = load_clip("world", device=device), load_diffusion(model, device=device)
    suffix = model.removeprefix("world")
    scenes = held_out_scenes(count)
    captions = [write_caption(s, random.Random(f"caption/{i}")) for i, s in enumerate(scenes)]
    renders = torch.stack([from_pillow(render(s, seed=10**9 + i, size=teacher.image_size)) for i, s in enumerate(scenes)])
    decoded = reconstruct(teacher, renders)
    samples = sample_captions(teacher, captions)
    sheets = {"autoencoder": [renders, decoded], "teacher": [renders, samples]}
    for name, (left, right) in sheets.items():
        _save_sheet(path.parent / "img" / f"{name}{suffix}.png", left, right)
    table = {n: _readings(clip, x, scenes) for n, x in (("renders", renders), ("reconstructions", decoded), ("samples", samples))}
    facts = {"retrieval": retrieval(clip, renders, captions), "psnr": psnr(renders, decoded)}
    write_part(path, _LARGER if suffix else _FIRST, _markdown(table, facts, count, suffix))
    return path


def write_part(path: Path, heading: str, text: str) -> None:
    """Write the part of a page under this heading of the first level, in place of what stood there, else at the end."""
    page = path.read_text(encoding="utf-8") if path.exists() else ""
    parts = [p.strip() for p in re.split(r"(?m)^(?=# )", page) if p.strip()]
    new = f"{heading}\n\n{text.strip()}"
    kept = [new if p.startswith(f"{heading}\n") else p for p in parts]
    write_bytes(path, ("\n\n".join(kept if new in kept else [*kept, new]) + "\n").encode())


def held_out_scenes(count: int) -> list[Scene]:
    """Scenes from a stream that pretraining never draws from."""
    return [sample_scene(random.Random(f"held-out/{i}")) for i in range(count)]


@torch.inference_mode()
def sample_captions(teacher: Diffusion, captions: list[str], *, steps: int = _STEPS, guidance: float = _GUIDANCE) -> Tensor:
    """Teacher samples in [0, 1], one a caption, seeds 0, 1, …"""
    schedule = make_schedule(teacher.alphas_cumprod, steps=steps, prediction=teacher.prediction, solver="dpmpp_2m")
    empty, parts, side = encode_text(teacher, [""]), [], teacher.image_size // teacher.factor
    for first in range(0, len(captions), _BATCH):
        texts = encode_text(teacher, captions[first : first + _BATCH])
        context = torch.cat([empty.expand(len(texts), -1, -1), texts])

        def predict(x: Tensor, timestep: Tensor, i: int, context: Tensor = context) -> Tensor:
            return run_guided(teacher, x, timestep, context, guidance)

        noise = draw_noise(range(first, first + len(texts)), (teacher.latent_channels, side, side), steps).to(teacher.device)
        parts.append(decode_latents(teacher, sample(predict, schedule, noise)).cpu())
        print(f"sampled {first + len(texts)}/{len(captions)}", file=sys.stderr, flush=True)
    return torch.cat(parts)


def psnr(images_BCHW: Tensor, others_BCHW: Tensor) -> float:
    """Mean over pictures of the PSNR in dB of images in [0, 1]."""
    errors = (images_BCHW - others_BCHW).square().mean((1, 2, 3))
    return (-10 * errors.clamp(min=1e-10).log10()).mean().item()


def _readings(clip: Clip, images_BCHW: Tensor, scenes: list[Scene]) -> dict[str, Accuracy]:
    features = torch.cat([image_features(clip, x) for x in images_BCHW.split(64)])
    return {name: read_attribute(clip, features, scenes, name) for name in ATTRIBUTES}


def _save_sheet(path: Path, left: Tensor, right: Tensor) -> None:
    rows = []
    for first in range(0, 32, 8):
        rows.append([to_pillow(x) for x in left[first : first + 8]])
        rows.append([to_pillow(x) for x in right[first : first + 8]])
    path.parent.mkdir(parents=True, exist_ok=True)
    grid(rows).save(path)


def _markdown(table: dict[str, dict[str, Accuracy]], facts: dict[str, float], count: int, suffix: str) -> str:
    rows, option = [], f" --model world{suffix}" if suffix else ""
    for name in ATTRIBUTES:
        read, drawn = _GATES.get(name, _USUAL_GATE)
        cells = [table[n][name].share for n in ("renders", "reconstructions", "samples")]
        chance = table["renders"][name].chance
        marks = [_mark(cells[0], read), f"{cells[1]:.3f}", _mark(cells[2], drawn)]
        rows.append(f"| {name} | {chance:.2f} | {marks[0]} | {marks[1]} | {marks[2]} |")
    lines = "\n".join(rows)
    return f"""Written by `ip2p world report --count {count}{option}`; run it to reproduce every figure. {count} scenes that no model
was trained on.

- Autoencoder: **{facts["psnr"]:.2f} dB** PSNR (gate 28).
- CLIP retrieval: a picture's own caption is the nearest of {count} for **{facts["retrieval"]:.1%}**.

Each attribute is read by multiple choice: the caption is written with every value the attribute can have, and the picture
must prefer the true one. The last column judges the teacher's samples by this CLIP, whose own error is in the third.
A figure below its gate carries the gate.

| attribute | chance | renders | reconstructions | teacher samples |
|---|---|---|---|---|
{lines}

Renders (odd rows) and what the autoencoder makes of them (even rows):

![renders and reconstructions](img/autoencoder{suffix}.png)

Renders (odd rows) and teacher samples from the same captions (even rows):

![renders and teacher samples](img/teacher{suffix}.png)
"""


def _mark(share: float, gate: float) -> str:
    return f"{share:.3f}" if share >= gate else f"{share:.3f} (gate {gate:.2f})"
