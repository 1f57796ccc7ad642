"""Training data of the editor: latents and text embeddings computed once, keyed by what they were computed from.

Of each pair and view: the source latent's mode (unscaled) and the edited latent's mean and spread, so that training can
sample the posterior anew each time. Shapes: N pairs, V views, M distinct instructions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from ip2p.diffusion import Diffusion, encode_images, encode_text
from ip2p.params import TrainParams
from ip2p.pictures import from_bytes
from ip2p.store import code_mark, digest, fingerprint, read_shards

_ZOOM = 1.125
_SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_TIMESTEPS = 1000


@dataclass(frozen=True)
class Latents:
    """Cached training data; `groups` lists the pairs of each triplet."""

    source_NVCHW: Tensor
    mean_NVCHW: Tensor
    std_NVCHW: Tensor
    text_MLD: Tensor
    empty_1LD: Tensor
    text_of_N: Tensor
    groups: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.source_NVCHW)


@dataclass(frozen=True)
class TrainBatch:
    """What one training step sees: clean edited latents, noise, timesteps, and source latents and text after dropout."""

    clean_BCHW: Tensor
    noise_BCHW: Tensor
    timesteps_B: Tensor
    source_BCHW: Tensor
    text_BLD: Tensor

    def part(self, first: int, count: int) -> TrainBatch:
        """`count` samples from `first` on."""
        return TrainBatch(*(getattr(self, f.name)[first : first + count] for f in fields(self)))


def load_latents(dataset: Path, teacher: Diffusion, section: TrainParams, *, teacher_digest: str, seed: int, cache: Path) -> Latents:
    """Training latents of the dataset, from `cache` if they were computed from the same data, model and views."""
    key = fingerprint(
        "latents", digest(dataset), teacher_digest, str(teacher.dtype), section.views, section.flip, seed, code_mark("model/data.py")
    )
    path = cache / f"latents-{key}.safetensors"
    table = read_shards(dataset, "train-")
    if not path.exists():
        for old in cache.glob("latents-*.safetensors"):
            old.unlink()
        cache.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(_encode(table, teacher, section, seed), temporary)
        temporary.replace(path)
    groups: dict[str, list[int]] = {}
    for index, triplet in enumerate(table["triplet_id"].to_pylist()):
        groups.setdefault(triplet, []).append(index)
    return Latents(**load_file(path), groups=tuple(tuple(g) for g in groups.values()))


def draw_batch(latents: Latents, section: TrainParams, generator: torch.Generator) -> TrainBatch:
    """A global batch: triplets drawn evenly, one kept pair and one view of each, conditioning dropped as METHOD §4 says."""
    count = section.batch
    triplets = torch.randint(0, len(latents.groups), (count,), generator=generator).tolist()
    u = torch.rand(count, 2, generator=generator)
    picks = torch.tensor([latents.groups[t][int(x * len(latents.groups[t]))] for t, x in zip(triplets, u[:, 0].tolist(), strict=True)])
    views = (u[:, 1] * latents.source_NVCHW.shape[1]).long()
    mean, std = latents.mean_NVCHW[picks, views].float(), latents.std_NVCHW[picks, views].float()
    clean = mean + std * torch.randn(mean.shape, generator=generator)
    source = latents.source_NVCHW[picks, views].float()
    text = latents.text_MLD[latents.text_of_N[picks]].float()
    no_text, no_image = dropout(torch.rand(count, generator=generator), section)
    text = torch.where(no_text.view(-1, 1, 1), latents.empty_1LD.float(), text)
    noise = torch.randn(mean.shape, generator=generator)
    timesteps = torch.randint(0, _TIMESTEPS, (count,), generator=generator)
    return TrainBatch(clean, noise, timesteps, source * ~no_image.view(-1, 1, 1, 1), text)


def dropout(u_B: Tensor, section: TrainParams) -> tuple[Tensor, Tensor]:
    """Which samples lose text and which lose the image: by one uniform number each, text only, both, image only."""
    text, both = section.drop_text, section.drop_text + section.drop_both
    return u_B < both, (u_B >= text) & (u_B < both + section.drop_image)


@torch.no_grad()
def _encode(table: Any, teacher: Diffusion, section: TrainParams, seed: int) -> dict[str, Tensor]:
    instructions = table["edit_prompt"].to_pylist()
    distinct = sorted(set(instructions))
    scale = teacher.vae.config.scaling_factor
    parts: dict[str, list[Tensor]] = {"source_NVCHW": [], "mean_NVCHW": [], "std_NVCHW": []}
    for number, (before, after) in enumerate(_images(table, teacher.image_size)):
        mirror = section.flip and not _SIDE.search(instructions[number])
        views = [_view(torch.cat([before, after]), v, mirror=mirror, seed=seed * 1_000_003 + number) for v in range(section.views)]
        views_VCHW = torch.stack(views)
        mean_BCHW, std_BCHW = encode_images(teacher, torch.cat(views_VCHW.chunk(2, dim=1)))
        parts["source_NVCHW"].append(mean_BCHW[: section.views].half().cpu())
        parts["mean_NVCHW"].append((mean_BCHW[section.views :] * scale).half().cpu())
        parts["std_NVCHW"].append((std_BCHW[section.views :] * scale).half().cpu())
    texts = [encode_text(teacher, distinct[i : i + 64]).half().cpu() for i in range(0, len(distinct), 64)]
    index = {text: i for i, text in enumerate(distinct)}
    return {k: torch.stack(v).contiguous() for k, v in parts.items()} | {
        "text_MLD": torch.cat(texts),
        "empty_1LD": encode_text(teacher, [""]).half().cpu(),
        "text_of_N": torch.tensor([index[t] for t in instructions]),
    }


def _images(table: Any, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Both images `CHW` in [0, 1] of each row, resized to the training size."""
    for row in table.select(["pair_id", "original_image", "edited_image"]).to_pylist():
        pair = [from_bytes(row[c]["bytes"], where=f"{row['pair_id']}.{c}") for c in ("original_image", "edited_image")]
        yield _resized(pair[0], size), _resized(pair[1], size)


def _resized(image_CHW: Tensor, size: int) -> Tensor:
    if image_CHW.shape[-2:] == (size, size):
        return image_CHW
    return F.interpolate(image_CHW[None], size=(size, size), mode="bicubic", antialias=True)[0].clamp(0, 1)


def _view(pair_CHW: Tensor, view: int, *, mirror: bool, seed: int) -> Tensor:
    """View 0 is the pair itself; the others are random resized crops (256–288 of 256, METHOD §4), odd ones mirrored if asked."""
    if view == 0:
        return pair_CHW
    generator = torch.Generator().manual_seed(seed * 16 + view)
    size = pair_CHW.shape[-1]
    zoom, x, y = torch.rand(3, generator=generator).tolist()
    large = round(size * (1 + (_ZOOM - 1) * zoom))
    zoomed = F.interpolate(pair_CHW[None], size=(large, large), mode="bicubic", antialias=True)[0].clamp(0, 1)
    left, top = int(x * (large - size + 1)), int(y * (large - size + 1))
    crop = zoomed[:, top : top + size, left : left + size]
    return crop.flip(-1) if mirror and view % 2 else crop
