"""What people preferred, as training data: the better and the worse edit of one picture by one instruction (`ip2p feedback export`).

Beside its usual loss on image pairs the editor learns from the better edits as from any pair, or to be nearer them, and further from
the worse, than it was at the start (`train.preference_loss`). Encoded once; shapes: N preferences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ip2p.diffusion import Diffusion, encode_images, encode_text
from ip2p.errors import DataError
from ip2p.model.data import TIMESTEPS, TrainBatch
from ip2p.parallel import barrier
from ip2p.pictures import from_bytes, resized
from ip2p.store import code_mark, digest, fingerprint, read_json, read_shard, shards
from ip2p.tensors import read_tensors, write_tensors

_AT_ONCE = 16
CODE = ("model/preferences.py", "diffusion.py", "pictures.py")
"""What decides how the preferred edits come out."""


@dataclass(frozen=True)
class Preferences:
    """Latents of the source (the mode, unscaled) and of both edits (the scaled mode), and the instruction's embedding."""

    source_NCHW: Tensor
    better_NCHW: Tensor
    worse_NCHW: Tensor
    text_NLD: Tensor

    def __len__(self) -> int:
        return len(self.source_NCHW)


def preferences_folder(named: str) -> Path:
    """The folder of `train.preferences`, FOLDER or FOLDER@VERSION. Raises `DataError` if it is none, or of another version."""
    path, _, wanted = named.partition("@")
    folder = Path(path)
    if not (folder / "dataset.json").is_file():
        raise DataError(f"train.preferences: {folder} holds no export of feedback; run `ip2p feedback export -o {folder}`")
    version = str(read_json(folder / "dataset.json")["version"])
    if wanted and not version.startswith(wanted):
        raise DataError(f"train.preferences: {folder} is version {version}, not {wanted}; name that one, or bring the other back")
    return folder


def load_preferences(folder: Path, model: Diffusion, *, model_digest: str, cache: Path, rank: int = 0) -> Preferences:
    """Encode what the folder holds, or read what `cache` has of it. Raises `DataError` if nobody preferred anything."""
    code = code_mark(*CODE)
    path = cache / f"preferences-{fingerprint(digest(folder), model_digest, str(model.dtype), model.image_size, code)}.safetensors"
    if rank == 0 and not path.exists():
        for old in cache.glob("preferences-*"):
            old.unlink()
        encoded = _encoded(_preferred(folder), model)
        if not encoded:
            raise DataError(f"{folder}: no edit was preferred to another there; gather votes first, or leave train.preferences out")
        write_tensors(encoded, path, kept="what is encoded is")
    barrier()
    return Preferences(**read_tensors(path))


def draw_preferences(known: Preferences, *, batch: int, seed: int, step: int, first: int, count: int, both: bool = True) -> TrainBatch:
    """Preferences `first` … `first + count` of a step's global batch, the same whoever draws them.

    First the better edits, then, if `both` are wanted, the worse with the same noise at the same timesteps.
    """
    generator = torch.Generator().manual_seed(int(fingerprint("preferences", seed, step)[:15], 16))
    picks = torch.randint(0, len(known), (batch,), generator=generator)
    timesteps = torch.randint(0, TIMESTEPS, (batch,), generator=generator)
    noise = torch.randn(batch, *known.better_NCHW.shape[1:], generator=generator)
    mine = slice(first, first + count)
    better, worse, source, text = (t[picks[mine]].float() for t in (known.better_NCHW, known.worse_NCHW, known.source_NCHW, known.text_NLD))
    shared = noise[mine], timesteps[mine], source, text
    return TrainBatch(torch.cat([better, worse]), *(torch.cat([x, x]) for x in shared)) if both else TrainBatch(better, *shared)


def _preferred(folder: Path) -> Iterator[dict[str, Any]]:
    """Rows of which one edit is better, and whose pictures were kept: `better`, `worse`, `source`, `instruction`.

    Edits of a part are left out: their instruction does not say that only a part is to change.
    """
    for path in shards(folder, "train-"):
        for row in read_shard(path, columns=["jpg_0", "jpg_1", "label_0", "caption", "source", "mask"]).to_pylist():
            pictures = (row["jpg_0"], row["jpg_1"]) if row["label_0"] > 0.5 else (row["jpg_1"], row["jpg_0"])
            if row["label_0"] != 0.5 and row["mask"] is None and all((*pictures, row["source"])):
                yield {"better": pictures[0], "worse": pictures[1], "source": row["source"], "instruction": row["caption"]}


def _encoded(rows: Iterator[dict[str, Any]], model: Diffusion) -> dict[str, Tensor]:
    """Latents and texts of all rows, of which a few are held at once; nothing if there are none."""
    scales = {"source": 1.0, "better": model.vae.config.scaling_factor, "worse": model.vae.config.scaling_factor}
    parts: dict[str, list[Tensor]] = {name: [] for name in (*scales, "text")}
    first = 0
    while some := list(islice(rows, _AT_ONCE)):
        for name, scale in scales.items():
            images = [resized(from_bytes(r[name], where=f"preference {first + i}: {name}"), model.image_size) for i, r in enumerate(some)]
            parts[name].append((encode_images(model, torch.stack(images))[0] * scale).half().cpu())
        parts["text"].append(encode_text(model, [r["instruction"] for r in some]).half().cpu())
        first += len(some)
    names = {"source": "source_NCHW", "better": "better_NCHW", "worse": "worse_NCHW", "text": "text_NLD"}
    return {names[n]: torch.cat(v).contiguous() for n, v in parts.items() if v}
