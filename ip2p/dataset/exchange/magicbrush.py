"""MagicBrush's columns (Zhang et al. 2023): single turns, with the visible change as mask. Captions and ids ride along for the way back.

A pair is an image of its own (`img_id`), edited once (turn 1); of a session of several turns each is read as a pair,
and all of them lie in one split. Read, but not written: the folders that its test split comes as, `edit_sessions.json` with
`images/{img_id}/` and captions in `global_descriptions.json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ip2p.dataset.exchange.example import (
    Example,
    by_split,
    for_testing,
    from_row,
    parquet_rows,
    picture_in,
    read_file,
    read_object,
    split_named,
)
from ip2p.errors import DataError
from ip2p.pictures import change_mask
from ip2p.records import IMAGE

_ROWS = 256
_SESSIONS = "edit_sessions.json"
SCHEMA = pa.schema(
    {
        "img_id": pa.string(),
        "turn_index": pa.int32(),
        "source_img": IMAGE,
        "mask_img": IMAGE,
        "instruction": pa.string(),
        "target_img": IMAGE,
        "source_caption": pa.string(),
        "target_caption": pa.string(),
        "triplet_id": pa.string(),
        "pair_id": pa.string(),
        "edit_type": pa.string(),
        "split": pa.string(),
    }
)


def write(examples: Iterable[Example], out: Path) -> int:
    """Write `{split}.parquet`; returns the number of examples."""
    out.mkdir(parents=True)
    writers: dict[str, pq.ParquetWriter] = {}
    count = 0
    try:
        for split, some in by_split(examples, _ROWS):
            if split not in writers:
                writers[split] = pq.ParquetWriter(out / f"{split}.parquet", SCHEMA, compression="zstd")
            writers[split].write_table(pa.Table.from_pylist([_row(e) for e in some], schema=SCHEMA))
            count += len(some)
    finally:
        for writer in writers.values():
            writer.close()
    return count


def read(path: Path, *, held_out: bool = False) -> Iterator[Example]:
    """Examples of every Parquet file below `path`, or of the folders that MagicBrush's splits came in: of the split that they are named
    after, else `test`, which alone is given out so today. Captions are empty where there are none.
    """
    found = sorted(path.glob(_SESSIONS)) or sorted(path.glob(f"*/{_SESSIONS}"))
    if found:
        splits = {file.parent: split_named(Path(file.parent.resolve().name)) or "test" for file in found}
        for folder in for_testing(splits, path) if held_out else splits:
            yield from _read_sessions(folder, splits[folder])
        return
    for where, row in parquet_rows(path, held_out=held_out):
        texts = {
            "original_prompt": row.get("source_caption") or "",
            "edit_prompt": row.get("instruction"),
            "edited_prompt": row.get("target_caption") or "",
        }
        turn = f"{row['img_id']}-{row.get('turn_index')}" if row.get("img_id") else None
        ids = {"triplet_id": row.get("triplet_id") or row.get("img_id"), "pair_id": row.get("pair_id") or turn}
        images = {"original_image": row.get("source_img"), "edited_image": row.get("target_img")}
        example = from_row(texts | ids | images | {n: row.get(n) for n in ("edit_type", "split")}, where)
        yield replace(example, mask=picture_in(row.get("mask_img")))


def _read_sessions(path: Path, split: str) -> Iterator[Example]:
    """Every turn on its own, from the picture that the turn before it should have made."""
    described = path / "global_descriptions.json"
    captions = read_object(described, path) if described.exists() else {}
    for session, turns in read_object(path / _SESSIONS, path).items():
        for number, turn in enumerate(turns if isinstance(turns, list) else [turns], 1):
            yield _turn(path, session, number, turn, captions.get(session), split)


def _turn(path: Path, session: str, number: int, turn: Any, captions: Any, split: str) -> Example:
    where = f"{path / _SESSIONS}: {session}, turn {number}"
    names = ("input", "output", "mask", "instruction")
    if not isinstance(turn, dict) or not all(isinstance(turn.get(n), str) for n in names):
        raise DataError(f"{where}: a turn needs {', '.join(names)}")
    before, after, mask = (read_file(path / "images" / session / turn[n], path) for n in names[:3])
    told = [captions.get(turn[n]) for n in names[:2]] if isinstance(captions, dict) else [None]
    texts = dict(zip(("original_prompt", "edited_prompt"), told, strict=True)) if all(told) else {}
    ids = {"triplet_id": session, "pair_id": f"{session}-{number}", "split": split}
    images = {"original_image": before, "edited_image": after}
    return replace(from_row(texts | ids | images | {"edit_prompt": turn["instruction"]}, where), mask=mask)


def _row(e: Example) -> dict[str, object]:
    images = {
        "source_img": e.original_image,
        "target_img": e.edited_image,
        "mask_img": change_mask(e.original_image, e.edited_image, where=e.pair_id),
    }
    named: dict[str, object] = {k: {"bytes": v, "path": f"{e.pair_id}-{k}.png"} for k, v in images.items()}
    texts = {"instruction": e.edit_prompt, "source_caption": e.original_prompt, "target_caption": e.edited_prompt}
    own = {n: getattr(e, n) for n in ("triplet_id", "pair_id", "edit_type", "split")}
    return named | texts | own | {"img_id": e.pair_id, "turn_index": 1}
