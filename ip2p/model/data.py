"""Training data of the editor: latents and text embeddings computed once, a file a shard, memory-mapped.

Of each pair and view: the source latent's mode (unscaled) and the edited latent's mean and spread, so that training can
sample the posterior anew each time. A file is named by what it was computed from: shard, model, views; a dataset that grows
by a shard encodes that shard alone. Shapes: N pairs, V views, M distinct instructions.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from ip2p.diffusion import Diffusion, encode_images, encode_text
from ip2p.errors import ParamsError, UserError
from ip2p.parallel import agree, barrier
from ip2p.params import TrainParams
from ip2p.pictures import from_bytes, resized
from ip2p.store import Folder, Shard, code_mark, digest, fingerprint, first_rows, read_shard, read_shards, shards
from ip2p.tensors import read_tensors, write_tensors

_ZOOM = 1.125
_SIDE = re.compile(r"\b(left|right)(most|wards?)?\b", re.IGNORECASE)
TIMESTEPS = 1000
"""Of the noise schedule, drawn evenly."""
_SEEDS = 2**63
"""Numbers that a generator takes as its seed."""
_PAIRS = 8
"""Pairs encoded at once on a CPU."""
_PIXELS = 2**23
"""Pixels of all views that a GPU encodes at once."""
_TEXTS = 4096
"""Instructions a file."""
CODE = ("model/data.py", "diffusion.py", "pictures.py")
"""What decides how latents and texts come out."""
_LATENTS = ("source_NVCHW", "mean_NVCHW", "std_NVCHW")


class Mapped:
    """Rows of several tensors, read from disk as they are asked for, numbered through."""

    def __init__(self, parts: Sequence[Tensor]) -> None:
        self._parts = parts
        self._ends = list(accumulate(len(p) for p in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, row: int) -> Tensor:
        part = bisect_right(self._ends, row)
        return self._parts[part][row - (self._ends[part - 1] if part else 0)]

    def take(self, rows: Iterable[int]) -> Tensor:
        """The rows as one float32 tensor."""
        return torch.stack([self[r] for r in rows]).float()


@dataclass(frozen=True)
class Latents:
    """Cached training data at one size of pictures; `groups` lists the pairs of each triplet."""

    source_NVCHW: Mapped
    mean_NVCHW: Mapped
    std_NVCHW: Mapped
    text_MLD: Mapped
    empty_1LD: Tensor
    text_of_N: tuple[int, ...]
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


def load_latents(
    dataset: Folder,
    model: Diffusion,
    section: TrainParams,
    *,
    model_digest: str,
    seed: int,
    cache: Path,
    rank: int = 0,
    workers: int = 1,
    on_part: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[Latents, ...]:
    """Training latents of the dataset at each of its sizes; what `cache` lacks is computed, shared by the workers, the rest goes.

    Raises `ParamsError` if they would take more than `train.cache_gb`, or more than the disk has.
    """
    paths = shards(dataset, "train-")
    rows = read_shards(dataset, "train-", columns=["triplet_id", "edit_prompt"])
    instructions = rows["edit_prompt"].to_pylist()
    distinct = sorted(set(instructions))
    turns = section.sizes or (model.image_size,)
    sizes = sorted(set(turns))
    how = fingerprint(
        *(model_digest, str(model.dtype), section.views, section.flip, seed),
        code_mark(*CODE),
    )
    pictures = {cache / f"latents-{fingerprint(how, size, digest(p))}.safetensors": (p, size) for size in sizes for p in paths}
    texts = {cache / f"texts-{fingerprint(how, c)}.safetensors": c for c in _chunks(distinct, _TEXTS)}
    missing = [p for p in (*pictures, *texts) if not p.exists()]
    _require_room(model, section, len(instructions), len(distinct), cache, sizes=sizes, share=len(missing) / (len(pictures) + len(texts)))
    ours = [p for n, p in enumerate((*pictures, *texts)) if n % workers == rank and not p.exists()]  # whatever others have made since
    tables = _read_ahead([pictures[p][0] for p in ours if p in pictures])
    if rank == 0:
        _drop_others(cache, {*pictures, *texts})
    barrier()
    for done, path in enumerate(ours, 1):
        tensors = _encode(next(tables), model, section, seed, pictures[path][1]) if path in pictures else _embed(model, texts[path])
        write_tensors(tensors, path, kept="what is encoded is")
        on_part(min(done * workers, len(missing)), len(missing))
    barrier()
    _require_all(cache, (*pictures, *texts), model.device)
    words, index = [read_tensors(p) for p in texts], {text: i for i, text in enumerate(distinct)}
    shared: dict[str, Any] = {
        "text_MLD": Mapped([w["text_MLD"] for w in words]),
        "empty_1LD": words[0]["empty_1LD"].float(),
        "text_of_N": tuple(index[t] for t in instructions),
        "groups": _groups(list(zip(rows["triplet_id"].to_pylist(), instructions, strict=True))),
    }
    mapped = {size: _mapped([p for p, (_, of) in pictures.items() if of == size]) for size in sizes}
    return tuple(Latents(**mapped[size], **shared) for size in turns)


def _mapped(files: Sequence[Path]) -> dict[str, Any]:
    """The latents of a size, from its files."""
    parts = [read_tensors(path) for path in files]
    return {name: Mapped([part[name] for part in parts]) for name in _LATENTS}


def _drop_others(cache: Path, wanted: set[Path]) -> None:
    """Remove what nobody wants, and what was never finished, before anything is written: so the cache keeps its bound."""
    for old in {*cache.glob("latents-*"), *cache.glob("texts-*")} - wanted:
        old.unlink(missing_ok=True)


def _require_all(cache: Path, files: Sequence[Path], device: torch.device) -> None:
    """Raise `UserError`, in all processes, if one of them does not see what all have encoded."""
    whole = all(p.exists() for p in files)
    if not (agree(int(whole), device) and whole):
        raise UserError(f"{cache}: what other processes encoded is not there; on several machines it must be one shared folder")


def _groups(edits: list[tuple[str, str]]) -> tuple[tuple[int, ...], ...]:
    """The numbers of the pairs of each edit, a triplet and an instruction."""
    groups: dict[tuple[str, str], list[int]] = {}
    for pair, edit in enumerate(edits):
        groups.setdefault(edit, []).append(pair)
    return tuple(map(tuple, groups.values()))


def _read_ahead(paths: Sequence[Shard]) -> Iterator[pa.Table]:
    """The shards' rows in order, each read (from a bucket, perhaps) while the one before it is used."""
    with ThreadPoolExecutor(1) as pool:
        ahead = [pool.submit(read_shard, p) for p in paths[:1]]
        for following in [*paths[1:], None]:
            if ahead:
                table = ahead.pop().result()
                if following is not None:
                    ahead.append(pool.submit(read_shard, following))
                yield table


def draw_batch(latents: Latents, section: TrainParams, *, seed: int, step: int, first: int = 0, count: int | None = None) -> TrainBatch:
    """Samples `first` … `first + count` of a step's global batch, the same whoever draws them.

    Triplets are drawn evenly, then one kept pair and one view of each; conditioning is dropped as the paper does (§3.2.1).
    """
    whole, count = section.batch, section.batch if count is None else count
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % _SEEDS)
    triplets = torch.randint(0, len(latents.groups), (whole,), generator=generator).tolist()
    u_B3 = torch.rand(whole, 3, generator=generator)
    timesteps = torch.randint(0, TIMESTEPS, (whole,), generator=generator)
    mine = slice(first, first + count)
    groups = [latents.groups[t] for t in triplets[mine]]
    picks = [g[int(x * len(g))] for g, x in zip(groups, u_B3[mine, 0].tolist(), strict=True)]
    views = (u_B3[mine, 1] * section.views).long().tolist()
    mean, std, source = (
        torch.stack([m[p][v] for p, v in zip(picks, views, strict=True)]).float()
        for m in (latents.mean_NVCHW, latents.std_NVCHW, latents.source_NVCHW)
    )
    noise = torch.empty(2, *mean.shape)
    for i in range(count):
        generator.manual_seed(((seed * 1_000_003 + step) * 65_537 + first + i + 1) % _SEEDS)
        noise[:, i] = torch.randn(2, *mean.shape[1:], generator=generator)
    no_text, no_image = dropout(u_B3[mine, 2], section)
    text = torch.where(no_text.view(-1, 1, 1), latents.empty_1LD, latents.text_MLD.take(latents.text_of_N[p] for p in picks))
    return TrainBatch(mean + std * noise[0], noise[1], timesteps[mine], source * ~no_image.view(-1, 1, 1, 1), text)


def dropout(u_B: Tensor, section: TrainParams) -> tuple[Tensor, Tensor]:
    """Which samples lose text and which lose the image: by one uniform number each, text only, both, image only."""
    text, both = section.drop_text, section.drop_text + section.drop_both
    return u_B < both, (u_B >= text) & (u_B < both + section.drop_image)


def _chunks(texts: list[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(texts[i : i + size]) for i in range(0, len(texts), size)]


def _require_room(
    model: Diffusion, section: TrainParams, pairs: int, texts: int, cache: Path, *, sizes: Sequence[int], share: float
) -> None:
    latents = pairs * section.views * 3 * model.latent_channels * sum((s // model.factor) ** 2 for s in sizes) * 2
    words = texts * encode_text(model, [""]).numel() * 2
    need, limit = (latents + words) / 1e9, section.cache_gb
    if need > limit:
        raise ParamsError(
            f"train.cache_gb: latents of {pairs} pairs ({latents / 1e9:.1f} GB) and {texts} instructions ({words / 1e9:.1f} GB) "
            f"exceed {limit:g} GB; raise it or lower train.views"
        )
    cache.mkdir(parents=True, exist_ok=True)
    if need * share > (free := shutil.disk_usage(cache).free / 1e9):
        raise UserError(f"{cache}: {need * share:.1f} GB of latents are still to be written, {free:.1f} GB are free; make room")


def _embed(model: Diffusion, texts: Sequence[str]) -> dict[str, Tensor]:
    parts = [encode_text(model, list(texts[i : i + 64])).half().cpu() for i in range(0, len(texts), 64)]
    return {"text_MLD": torch.cat(parts), "empty_1LD": encode_text(model, [""]).half().cpu()}


@torch.no_grad()
def _encode(table: pa.Table, model: Diffusion, section: TrainParams, seed: int, size: int) -> dict[str, Tensor]:
    scale = model.vae.config.scaling_factor
    rows = table.select(["pair_id", "edit_prompt", "original_image", "edited_image"]).to_pylist()
    parts: dict[str, list[Tensor]] = {n: [] for n in _LATENTS}
    at_once = _PAIRS if model.device.type == "cpu" else max(1, _PIXELS // (2 * section.views * size**2))
    with ThreadPoolExecutor(4) as pool:
        for first in range(0, len(rows), at_once):
            views_NV = list(pool.map(lambda row: _views(row, size, section, seed), rows[first : first + at_once]))
            pairs_MCHW = torch.stack(views_NV).flatten(0, 1)
            mean, std = (x.unflatten(0, (2, -1, section.views)) for x in encode_images(model, torch.cat(pairs_MCHW.chunk(2, dim=1))))
            for name, value in zip(_LATENTS, (mean[0], mean[1] * scale, std[1] * scale), strict=True):
                parts[name].append(value.half().cpu())
    made = {k: torch.cat(v).contiguous() for k, v in parts.items()}
    if not all(bool(x.isfinite().all()) for x in made.values()):  # some autoencoders overflow in float16
        raise UserError(f"models.dtype: the autoencoder's latents are no numbers in {model.dtype}; set it to bfloat16 or float32")
    return made


def _views(row: dict[str, Any], size: int, section: TrainParams, seed: int) -> Tensor:
    """The views of a pair, both images in one tensor's channels."""
    images = [from_bytes(row[c]["bytes"], where=f"{row['pair_id']}.{c}") for c in ("original_image", "edited_image")]
    pair = torch.cat([resized(x, size) for x in images])
    mirror = section.flip and not _SIDE.search(row["edit_prompt"])
    own = int.from_bytes(hashlib.sha256(row["pair_id"].encode()).digest()[:4], "big")
    return torch.stack([_view(pair, v, mirror=mirror, seed=seed * 1_000_003 + own) for v in range(section.views)])


def example_pairs(dataset: Folder, count: int, size: int) -> tuple[list[str], Tensor, Tensor]:
    """Instructions and both images `BCHW` in [0, 1] of the first pairs of the validation split, or of the training split."""
    split = "validation-" if any(dataset.glob("validation-*.parquet")) else "train-"
    rows = first_rows(dataset, split, count)
    before, after = (
        torch.stack([resized(from_bytes(r[c]["bytes"], where=f"{r['pair_id']}.{c}"), size) for r in rows])
        for c in ("original_image", "edited_image")
    )
    return [r["edit_prompt"] for r in rows], before, after


def _view(pair_CHW: Tensor, view: int, *, mirror: bool, seed: int) -> Tensor:
    """View 0 is the pair itself; the others are random resized crops (as the reference: 256 of up to 288), odd ones mirrored if asked."""
    if view == 0:
        return pair_CHW
    generator = torch.Generator().manual_seed((seed * 16 + view) % _SEEDS)
    size = pair_CHW.shape[-1]
    zoom, x, y = torch.rand(3, generator=generator).tolist()
    large = round(size * (1 + (_ZOOM - 1) * zoom))
    zoomed = F.interpolate(pair_CHW[None], size=(large, large), mode="bicubic", antialias=True)[0].clamp(0, 1)
    left, top = int(x * (large - size + 1)), int(y * (large - size + 1))
    crop = zoomed[:, top : top + size, left : left + size]
    return crop.flip(-1) if mirror and view % 2 else crop
