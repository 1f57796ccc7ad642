"""What one stage reads of another's shards, as records."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa

from ip2p.errors import DataError
from ip2p.records import Caption, Triplet
from ip2p.store import read_schema, read_shard, read_shards, shard_note

Drops = dict[str, Counter[str]]
"""Samples that were made and not stored: edit type → reason → how many."""


def read_triplets(folder: Path) -> list[Triplet]:
    """The triplets in a folder of shards."""
    rows = read_shards(folder).to_pylist()
    return [Triplet(Caption(r["caption"], r["source"]), r["instruction"], r["edited_caption"], r["edit_type"], r["writer"]) for r in rows]


def read_drops(folder: Path) -> Drops:
    """What was sampled and not stored, summed over a folder's shards of pairs."""
    total: Drops = {}
    for path in sorted(folder.glob("*.parquet")):
        for edit_type, reasons in ((shard_note(path) or {}).get("drops") or {}).items():
            total.setdefault(edit_type, Counter()).update(reasons)
    return total


def read_scores(path: Path, columns: list[str]) -> pa.Table:
    """Columns of one shard of pairs. Raises `DataError` naming what it lacks."""
    if missing := set(columns) - set(read_schema(path).names):
        raise DataError(f"{path}: no column {', '.join(sorted(missing))}; make the pairs again, or take the filter out of filter.chain")
    return read_shard(path, columns=columns)
