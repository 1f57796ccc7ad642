"""Other people's benchmarks as held-out edits, one reader a layout: what is for testing, with masks and captions where they are told."""

from __future__ import annotations

import hashlib
import io
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ip2p.dataset.exchange import hf, magicbrush
from ip2p.dataset.exchange.example import Example, parquet_rows, picture_in, read_file, read_object
from ip2p.errors import DataError
from ip2p.model.heldout import HeldEdit, HeldOut, held
from ip2p.model.seen import NONE, Seen
from ip2p.params import EvaluateParams
from ip2p.pictures import has_alpha
from ip2p.store import fingerprint

BENCHMARKS = ("magicbrush", "emu_edit", "pie_bench", "hf")
_PIE_SIDE = 512
"""Pixels of the side at which PIE-Bench's masks are written."""


def of_benchmark(layout: str, path: Path, *, count: int, size: int, seen: Seen = NONE) -> HeldOut:
    """Edits of a benchmark's folder that are for testing, none that was `seen` in training: all, or `count` drawn evenly.

    Raises `DataError` naming what is missing.
    """
    edits = _drawn(_read_benchmark(layout, path, seen), count)
    if not all(e.target for e in edits) and any(e.edited_caption for e in edits):  # nothing else says where the others should lead
        captioned = tuple(e for e in edits if e.edited_caption)
        if bare := len(edits) - len(captioned):
            print(f"evaluate: {bare} edits of {path} have neither caption nor target picture and are left out", flush=True)
        edits = captioned
    if not edits:
        raise _no_edits(layout, path)
    return HeldOut(f"{layout}: {path.name}", edits, size)


def require_benchmarks(section: EvaluateParams, *, seen: Seen) -> None:
    """Raise for a benchmark that is wanted only after hours of sampling, and is not there."""
    for layout, path in section.benchmarks.items():
        if next(_read_benchmark(layout, Path(path), seen), None) is None:
            raise _no_edits(layout, path)


def _no_edits(layout: str, path: Path | str) -> DataError:
    return DataError(f"{path}: holds no edits in the layout {layout} that the editor was not trained on")


def _read_benchmark(layout: str, path: Path, seen: Seen) -> Iterator[HeldEdit]:
    if not path.is_dir():
        raise DataError(f"evaluate.benchmarks: no folder {path}; download the benchmark and name its folder")
    readers: dict[str, Callable[[Path], Iterator[HeldEdit]]] = {
        "magicbrush": lambda p: map(_masked, magicbrush.read(p, held_out=True)),
        "hf": lambda p: map(held, hf.read(p, held_out=True)),
        "emu_edit": _read_emu_edit,
        "pie_bench": _read_pie_bench,
    }
    return (e for e in readers[layout](path) if e.known_by not in seen)


def _drawn(edits: Iterable[HeldEdit], count: int) -> tuple[HeldEdit, ...]:
    """Of a benchmark, which may be sorted by kind, so many edits, each as likely, the same each time; no more are held at once."""
    rng, kept = random.Random("benchmark"), []
    for number, edit in enumerate(edits):
        if number < count:
            kept.append((number, edit))
        elif (place := rng.randrange(number + 1)) < count:
            kept[place] = (number, edit)
    return tuple(edit for _, edit in sorted(kept, key=lambda x: x[0]))


def _masked(e: Example) -> HeldEdit:
    """With its mask, if that says anything: copies of MagicBrush have lost the transparency."""
    edit = held(e)
    return replace(edit, mask=e.mask) if e.mask is not None and has_alpha(e.mask, where=f"mask of {edit.id}") else edit


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
            instruction, kind, file = row["editing_instruction"], str(row["editing_type_id"]), row["image_path"]
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
    buffer = io.BytesIO()
    Image.merge("LA", [Image.fromarray(kept)] * 2).save(buffer, "PNG")
    return buffer.getvalue()
