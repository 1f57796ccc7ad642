"""Hugging Face layout: `data/{split}-NNNNN-of-NNNNN.parquet` with the reference's columns first, and a dataset card."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from ip2p.dataset.exchange.example import Example, by_split, from_row, parquet_rows
from ip2p.records import IMAGE
from ip2p.store import write_parquet

_ROWS = 1000
_FIELDS = {
    "original_prompt": pa.string(),
    "original_image": IMAGE,
    "edit_prompt": pa.string(),
    "edited_prompt": pa.string(),
    "edited_image": IMAGE,
    "edit_type": pa.string(),
    "triplet_id": pa.string(),
    "pair_id": pa.string(),
    "split": pa.string(),
    "seed": pa.int64(),
}
_FEATURES = {n: {"_type": "Image"} if t == IMAGE else {"_type": "Value", "dtype": str(t)} for n, t in _FIELDS.items()}
SCHEMA = pa.schema(_FIELDS).with_metadata({b"huggingface": json.dumps({"info": {"features": _FEATURES}}).encode()})
"""With what tells `datasets` which columns are pictures."""


def write(examples: Iterable[Example], out: Path) -> int:
    """Write shards of at most 1,000 rows, split by split; returns the number of examples."""
    (out / "data").mkdir(parents=True)
    numbers: Counter[str] = Counter()
    count = 0
    for split, rows in by_split(examples, _ROWS):
        table = pa.Table.from_pylist([_row(e) for e in rows], schema=SCHEMA)
        write_parquet(table, out / "data" / f"{split}-{numbers[split]:05d}.parquet")
        numbers[split] += 1
        count += len(rows)
    for split, shards in numbers.items():
        for n in range(shards):
            (out / "data" / f"{split}-{n:05d}.parquet").rename(out / "data" / f"{split}-{n:05d}-of-{shards:05d}.parquet")
    return count


def read(path: Path, *, held_out: bool = False) -> Iterator[Example]:
    """Examples of every Parquet file below `path`."""
    yield from (from_row(row, where) for where, row in parquet_rows(path, held_out=held_out))


def _row(example: Example) -> dict[str, object]:
    row: dict[str, object] = asdict(example)
    for n, name in enumerate(("original_image", "edited_image")):
        row[name] = {"bytes": row[name], "path": f"{example.pair_id}_{n}.png"}
    return row
