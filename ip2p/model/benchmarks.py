"""Other people's benchmarks as held-out edits, one reader a layout: what is for testing, with masks and captions where they are told."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ip2p.dataset.exchange import hf, magicbrush
from ip2p.dataset.exchange.example import parquet_rows, picture_in, read_file, read_object
from ip2p.errors import DataError
from ip2p.model.heldout import HALF, HeldEdit, HeldOut, held
from ip2p.model.seen import NONE, Seen
from ip2p.pictures import encoded, open_picture
from ip2p.store import fingerprint

_PIE_SIDE = 512
"""Pixels of the side at which PIE-Bench's masks are written."""


def of_benchmark(layout: str, path: Path, *, count: int, size: int, seen: Seen = NONE) -> HeldOut:
    """Edits of a benchmark's folder that are for testing, none that was `seen` in training: all, or `count` drawn evenly.

    Edits of which neither a target picture nor captions tell the way are left out, with a word. Raises `DataError` naming what is missing.
    """
    blind: list[str] = []
    edits = tuple(_masked(e) for e in _drawn(_telling(_read_benchmark(layout, path, seen), blind), count))
    if blind:
        print(f"evaluate: {len(blind)} edits of {path} have neither a target picture nor two captions and are left out", flush=True)
    if not edits:
        raise DataError(f"{path}: holds no edits in the layout {layout} that the editor was not trained on")
    return HeldOut(f"{layout}: {path.name}", edits, size)


def _telling(edits: Iterable[HeldEdit], blind: list[str]) -> Iterator[HeldEdit]:
    """Those of which something tells the way; the ids of the others are added to `blind`."""
    for edit in edits:
        if edit.target is not None or edit.directed:
            yield edit
        else:
            blind.append(edit.id)


def _read_benchmark(layout: str, path: Path, seen: Seen) -> Iterator[HeldEdit]:
    if not path.is_dir():
        raise DataError(f"evaluate.benchmarks: no folder {path}; download the benchmark and name its folder")
    readers: dict[str, Callable[[Path], Iterator[HeldEdit]]] = {
        "magicbrush": lambda p: map(held, magicbrush.read(p, held_out=True)),
        "hf": lambda p: map(held, hf.read(p, held_out=True)),
        "emu_edit": _read_emu_edit,
        "pie_bench": _read_pie_bench,
    }
    return (e for e in readers[layout](path) if not e.is_in(seen))


def _drawn(edits: Iterable[HeldEdit], count: int) -> tuple[HeldEdit, ...]:
    """Of a benchmark, which may be sorted by kind, so many edits, each as likely, the same each time; no more are held at once."""
    rng, kept = random.Random("benchmark"), []
    for number, edit in enumerate(edits):
        if number < count:
            kept.append((number, edit))
        elif (place := rng.randrange(number + 1)) < count:
            kept[place] = (number, edit)
    return tuple(edit for _, edit in sorted(kept, key=lambda x: x[0]))


def _masked(edit: HeldEdit) -> HeldEdit:
    """Of its mask the transparency alone, which is small; without, if there is none, as in copies of MagicBrush that have lost it."""
    if edit.mask is None:
        return edit
    mask = open_picture(edit.mask, where=f"mask of {edit.id}", alpha=True)
    alpha = mask.getchannel("A") if "A" in mask.getbands() else None
    return replace(edit, mask=None if alpha is None or np.asarray(alpha).min() >= HALF else _transparency(alpha))


def _transparency(alpha: Image.Image) -> bytes:
    return encoded(Image.merge("LA", [alpha, alpha]))


def _read_emu_edit(path: Path) -> Iterator[HeldEdit]:
    """`instruction, image, task, idx, input_caption, output_caption` in Parquet; there are no targets."""
    for where, row in parquet_rows(path, held_out=True):
        data, instruction = picture_in(row.get("image")), row.get("instruction")
        if data is None or not isinstance(instruction, str):
            raise DataError(f"{where}: not a row of Emu Edit; it needs `image` and `instruction`")
        before, after = (str(row.get(n) or "") for n in ("input_caption", "output_caption"))
        identity = fingerprint("emu", str(row.get("idx", "")), instruction, hashlib.sha256(data).hexdigest())
        yield HeldEdit(identity, instruction, before, after, str(row.get("task") or "other"), data)


def _read_pie_bench(path: Path) -> Iterator[HeldEdit]:
    """`mapping_file.json` beside `annotation_images/`; prompts mark what changes in square brackets."""
    for key, row in read_object(path / "mapping_file.json", path).items():
        try:
            before, after = (re.sub(r"[\[\]]", "", row[n]) for n in ("original_prompt", "editing_prompt"))
            instruction, kind, file = (str(row[n]) for n in ("editing_instruction", "editing_type_id", "image_path"))
        except (KeyError, TypeError) as error:
            raise DataError(f"{path / 'mapping_file.json'}: {key} lacks {error}") from error
        data = read_file(path / "annotation_images" / file, path)
        mask = _mask(row["mask"], f"{path / 'mapping_file.json'}: {key}") if row.get("mask") is not None else None
        yield HeldEdit(f"pie-{key}", instruction, before, after, f"type {kind}", data, mask=mask)


def _mask(runs: Any, where: str) -> bytes:
    """PIE-Bench's mask, first pixel and length of each run row by row, as a picture transparent there and, as in its authors' evaluation
    for the sake of flawed annotations, at the border."""
    try:
        spans = np.asarray(runs, dtype=np.int64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: mask is no list of first pixels and lengths") from error
    if (spans < 0).any():
        raise DataError(f"{where}: mask holds a negative number")
    kept = np.full(_PIE_SIDE**2, 255, np.uint8)
    for first, length in spans:
        kept[first : first + length] = 0
    kept = np.pad(kept.reshape(_PIE_SIDE, _PIE_SIDE)[1:-1, 1:-1], 1)
    return _transparency(Image.fromarray(kept))
