"""Captions → triplets (paper §3.1): caption, instruction, edited caption, by a writer.

`Writer` is the one interface; the embedded writer is the world's grammar, which also knows the truth of what it writes.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from ip2p.errors import DataError
from ip2p.params import Params
from ip2p.records import TRIPLETS, Caption, StageReport, Triplet
from ip2p.store import fingerprint, read_shards, write_shard
from ip2p.world.edits import EDIT_TYPES, apply_edit, sample_edit
from ip2p.world.language import LanguageError, read_caption, write_caption, write_instruction
from ip2p.world.scenes import sample_scene

_TRIES = 200
_ROUNDS = 5


class Writer(Protocol):
    """Turns captions into triplets; `name` goes into each row."""

    name: str
    edit_types: tuple[str, ...]

    def caption(self, rng: random.Random) -> Caption:
        """A caption of the writer's own."""
        ...

    def triplet(self, caption: Caption, edit_type: str, rng: random.Random) -> Triplet | None:
        """A triplet with an edit of this type, or None if the caption allows none."""
        ...


class WorldWriter:
    """The illustrated world's grammar as a writer."""

    name = "world"
    edit_types = EDIT_TYPES

    def caption(self, rng: random.Random) -> Caption:
        """A caption of a random scene."""
        return Caption(write_caption(sample_scene(rng), rng), "world")

    def triplet(self, caption: Caption, edit_type: str, rng: random.Random) -> Triplet | None:
        """A triplet for a caption of the world. Raises `DataError` if the caption is not in its language."""
        try:
            scene = read_caption(caption.text)
        except LanguageError as error:
            raise DataError(f"{caption.source}: {error}; or choose another writer") from error
        edit = sample_edit(scene, rng, type=edit_type)
        if edit is None:
            return None
        edited = write_caption(apply_edit(scene, edit), rng)
        return Triplet(caption, write_instruction(edit, scene, rng), edited, edit_type, self.name)


def read_captions(path: Path) -> list[Caption]:
    """Captions of a JSONL file, repeated ones dropped. Raises `DataError` naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such caption file; mend triplets.captions in params.yaml") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    captions: dict[str, Caption] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            caption = Caption(_caption_of(line, f"{path}:{number}"), f"{path}:{number}")
            captions.setdefault(caption.id, caption)
    if not captions:
        raise DataError(f"{path}: holds no captions; write one JSON object with a `caption` a line")
    return list(captions.values())


def write_triplets(
    writer: Writer, *, count: int, stream: str, captions: list[Caption] | None = None, avoid: frozenset[str] = frozenset()
) -> Iterator[Triplet]:
    """`count` distinct triplets, balanced over edit types; `avoid` holds captions (texts) not to use.

    Given captions are used in turn, each for the least used edit type that it allows; there may be fewer triplets than
    asked for when a whole round of captions allows nothing new.
    """
    seen: set[str] = set()
    used = dict.fromkeys(writer.edit_types, 0)
    attempt = idle = 0
    while len(seen) < count and idle < (_ROUNDS * len(captions) if captions else _TRIES):
        rng = random.Random(f"{stream}/{attempt}")
        caption = captions[attempt % len(captions)] if captions else writer.caption(rng)
        wanted = sorted(used, key=used.__getitem__)
        triplet = None if caption.text in avoid else _first(writer, caption, wanted if captions else wanted[:1], rng, seen)
        attempt, idle = attempt + 1, idle + 1
        if triplet is not None:
            seen.add(triplet.id)
            used[triplet.edit_type] += 1
            idle = 0
            yield triplet


def run(params: Params, *, out: Path) -> StageReport:
    """Write the triplets of this run to `out/triplets.parquet`."""
    began = time.monotonic()
    section = params.triplets
    captions = read_captions(Path(section.captions)) if section.captions else None
    writer = WorldWriter()
    triplets = list(write_triplets(writer, count=section.count, stream=f"{params.seed}/triplets", captions=captions))
    table = pa.Table.from_pylist([t.row() for t in triplets], schema=TRIPLETS)
    write_shard(out / "triplets.parquet", table, fingerprint("triplets", section.model_dump(), params.seed))
    types = Counter(t.edit_type for t in triplets)
    missing = section.count - len(triplets)
    return StageReport(
        stage="triplets",
        seen=section.count,
        kept=len(triplets),
        dropped_by_reason={"captions allow no further edit": missing} if missing else {},
        kept_by_edit_type=dict(sorted(types.items())),
        seconds=time.monotonic() - began,
    )


def read_triplets(folder: Path) -> list[Triplet]:
    """The triplets that `run` wrote."""
    rows = read_shards(folder).to_pylist()
    return [Triplet(Caption(r["caption"], r["writer"]), r["instruction"], r["edited_caption"], r["edit_type"], r["writer"]) for r in rows]


def _first(writer: Writer, caption: Caption, edit_types: list[str], rng: random.Random, seen: set[str]) -> Triplet | None:
    """The first new triplet that the caption allows, in this order of edit types."""
    for edit_type in edit_types:
        triplet = writer.triplet(caption, edit_type, rng)
        if triplet is not None and triplet.id not in seen:
            return triplet
    return None


def _caption_of(line: str, where: str) -> str:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f'{where}: not valid JSON ({error.msg}); write {{"caption": "…"}}') from error
    text = row.get("caption", row.get("input")) if isinstance(row, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise DataError(f'{where}: no `caption`; write {{"caption": "…"}}')
    return text.strip()
