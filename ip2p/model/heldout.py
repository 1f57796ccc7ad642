"""Edits that nothing was trained on: of the world, whose truth is known, of the dataset's test split, or of a benchmark.

Pictures are kept as encoded files and decoded a batch at a time, so that 5,000 of them fit anywhere.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ip2p.dataset.exchange import hf, magicbrush
from ip2p.dataset.exchange.example import MAX_BYTES, Example, parquet_rows, read_dataset, read_file
from ip2p.dataset.llm.client import key_of
from ip2p.dataset.read import read_triplets
from ip2p.dataset.world_writer import write_triplets
from ip2p.errors import DataError, ModelError
from ip2p.model.seen import NONE, Seen, known_by, read_seen
from ip2p.models import editor_folder, editor_named
from ip2p.params import EvaluateParams, Params
from ip2p.pictures import from_bytes, resized, to_png
from ip2p.store import code_mark, fingerprint
from ip2p.world.truth import truth_of

BENCHMARKS = ("magicbrush", "emu_edit", "pie_bench", "hf")


@dataclass(frozen=True, slots=True)
class HeldEdit:
    """One edit to be made: pictures as encoded files, the target where there is one. Captions may be empty."""

    id: str
    instruction: str
    caption: str
    edited_caption: str
    edit_type: str
    source: bytes
    target: bytes | None = None

    @property
    def mark(self) -> str:
        """What identifies the edit: its texts and pictures."""
        pictures = [hashlib.sha256(x or b"").hexdigest() for x in (self.source, self.target)]
        return fingerprint(self.id, self.instruction, self.caption, self.edited_caption, self.edit_type, pictures)

    @property
    def known_by(self) -> str:
        """What tells whether an editor was trained on this source (`Seen`)."""
        return known_by(self.caption, self.id)

    @property
    def seed(self) -> int:
        """The seed of its noise, the same for every system."""
        return random.Random(f"evaluate/{self.id}").getrandbits(31)


@dataclass(frozen=True)
class HeldOut:
    """Held-out edits of one origin. `known`: the targets are the only right answers, so that success can be read."""

    name: str
    edits: tuple[HeldEdit, ...]
    size: int
    known: bool = False

    @property
    def captioned(self) -> bool:
        """Whether captions say where each edit should lead."""
        return all(e.edited_caption for e in self.edits)

    @property
    def targeted(self) -> bool:
        """Whether each edit has a target picture."""
        return all(e.target is not None for e in self.edits)

    @property
    def by_target(self) -> bool:
        """Whether target pictures say where the edits should lead, for want of a caption."""
        return self.targeted and not self.captioned

    @cached_property
    def mark(self) -> str:
        """What tells whether two evaluations are of the same edits: every text and picture."""
        return fingerprint("held-out", self.name, [e.mark for e in self.edits], self.size, code_mark("world/truth.py"))

    def sources(self, some: slice) -> Tensor:
        """Source pictures `images_BCHW` in [0, 1], of the editor's size."""
        return torch.stack([self._picture(e.source, e.id) for e in self.edits[some]])

    def targets(self, some: slice) -> Tensor:
        """Target pictures of edits that have them, as `sources`."""
        return torch.stack([self._picture(e.target, e.id) for e in self.edits[some] if e.target is not None])

    def _picture(self, data: bytes, where: str) -> Tensor:
        return resized(from_bytes(data, where=where), self.size)


def held_out(params: Params, *, triplets: Path, dataset: Path, size: int, seen: Seen = NONE) -> HeldOut:
    """The edits that the parameters name, none of a caption that was `seen` in training. Raises `DataError` if there are none."""
    section = params.evaluate
    if section.held_out == "world":
        return of_world(count=section.count, stream=f"{params.seed}/evaluate", triplets=triplets, size=size, seen=seen)
    tests = (e for e in map(_held, read_dataset(dataset, splits=("test",))) if e.known_by not in seen)
    edits = tuple(islice(_once(tests), section.count))
    if not edits:
        raise DataError(
            f"{dataset}: has no test split of captions that the editor has not seen; raise filter.splits, or set evaluate.held_out to world"
        )
    return HeldOut("test split", edits, size)


def of_world(*, count: int, stream: str, triplets: Path, size: int, seen: Seen = NONE) -> HeldOut:
    """Edits of scenes whose captions are neither among the triplets nor `seen` in training, rendered, with their truth."""
    used = seen.with_captions(t.caption.text for t in read_triplets(triplets))
    edits = []
    for t in write_triplets(count=count, stream=stream, avoid=used):
        truth = truth_of(t.caption.text, t.instruction, seed=random.Random(f"evaluate/{t.id}").getrandbits(31), size=size)
        before, after = to_png(truth.source_CHW), to_png(truth.target_CHW)
        edits.append(HeldEdit(t.id, t.instruction, t.caption.text, t.edited_caption, t.edit_type, before, after))
    return HeldOut("world", tuple(edits), size, known=True)


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


def _no_edits(layout: str, path: Path | str) -> DataError:
    return DataError(f"{path}: holds no edits in the layout {layout} that the editor was not trained on")


def _read_benchmark(layout: str, path: Path, seen: Seen) -> Iterator[HeldEdit]:
    if not path.is_dir():
        raise DataError(f"evaluate.benchmarks: no folder {path}; download the benchmark and name its folder")
    readers: dict[str, Callable[[Path], Iterator[HeldEdit]]] = {
        "magicbrush": lambda p: map(_held, magicbrush.read(p, held_out=True)),
        "hf": lambda p: map(_held, hf.read(p, held_out=True)),
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


def seen_in(editor: Path, section: EvaluateParams) -> Seen:
    """The captions that the editor or the one that it is compared with was trained on."""
    seen = read_seen(editor)
    previous = section.previous and editor_folder(editor_named(section.previous))
    return seen | read_seen(previous) if previous else seen


def require_rest(params: Params, *, seen: Seen) -> None:
    """Raise for what is wanted only after hours of sampling, and is not there."""
    section = params.evaluate
    if section.previous is not None:
        named = editor_named(section.previous)
        if isinstance(named, Path) and not (named / "unet").is_dir():
            raise ModelError(f"evaluate.previous: {named} is no editor's folder; give one, a Hub id, or `world`")
    for layout, path in section.benchmarks.items():
        if next(_read_benchmark(layout, Path(path), seen), None) is None:
            raise _no_edits(layout, path)
    if section.judge is not None:
        key_of(section.judge)


def _held(e: Example) -> HeldEdit:
    e = e.identified()
    return HeldEdit(e.triplet_id, e.edit_prompt, e.original_prompt, e.edited_prompt, e.edit_type, e.original_image, e.edited_image)


def _once(edits: Iterator[HeldEdit]) -> Iterator[HeldEdit]:
    """The first pair of each triplet by each instruction."""
    seen: set[tuple[str, str]] = set()
    for edit in edits:
        if (edit.id, edit.instruction) not in seen:
            seen.add((edit.id, edit.instruction))
            yield edit


def _read_emu_edit(path: Path) -> Iterator[HeldEdit]:
    """`instruction, image, task, idx, input_caption, output_caption` in Parquet; there are no targets."""
    for where, row in parquet_rows(path, held_out=True):
        image, instruction = row.get("image"), row.get("instruction")
        data = image.get("bytes") if isinstance(image, dict) else None
        if not isinstance(data, bytes) or not 0 < len(data) <= MAX_BYTES or not isinstance(instruction, str):
            raise DataError(f"{where}: not a row of Emu Edit; it needs `image` and `instruction`")
        before, after = (str(row.get(n) or "") for n in ("input_caption", "output_caption"))
        identity = fingerprint("emu", str(row.get("idx", "")), instruction, hashlib.sha256(data).hexdigest())
        yield HeldEdit(identity, instruction, before, after, str(row.get("task") or "other"), data)


def _read_pie_bench(path: Path) -> Iterator[HeldEdit]:
    """`mapping_file.json` beside `annotation_images/`; prompts mark what changes in square brackets."""
    try:
        rows: dict[str, Any] = json.loads(read_file(path / "mapping_file.json", path))
    except ValueError as error:
        raise DataError(f"{path / 'mapping_file.json'}: not JSON ({error})") from error
    for key, row in rows.items():
        try:
            before, after = (re.sub(r"[\[\]]", "", row[n]) for n in ("original_prompt", "editing_prompt"))
            instruction, kind, file = row["editing_instruction"], str(row["editing_type_id"]), row["image_path"]
        except (KeyError, TypeError) as error:
            raise DataError(f"{path / 'mapping_file.json'}: {key} lacks {error}") from error
        data = read_file(path / "annotation_images" / file, path)
        yield HeldEdit(f"pie-{key}", instruction, before, after, f"type {kind}", data)
