"""What one stage reads of another's shards, as records."""

from __future__ import annotations

from pathlib import Path

from ip2p.records import Caption, Triplet
from ip2p.store import read_shards


def read_triplets(folder: Path) -> list[Triplet]:
    """The triplets in a folder of shards."""
    rows = read_shards(folder).to_pylist()
    return [Triplet(Caption(r["caption"], r["source"]), r["instruction"], r["edited_caption"], r["edit_type"], r["writer"]) for r in rows]
