"""MagicBrush's columns (METHOD §9): single turns, with the visible change as mask. Captions and ids ride along for the way back.

A pair is an image of its own (`img_id`), edited once (turn 1); of a session of several turns each is read as a pair,
and all of them lie in one split.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ip2p.dataset.exchange.example import Example, by_split, from_row, parquet_rows
from ip2p.pictures import change_mask
from ip2p.records import IMAGE

_ROWS = 256
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
    """Examples of every Parquet file below `path`; captions are empty where there are none."""
    for where, row in parquet_rows(path, held_out=held_out):
        texts = {
            "original_prompt": row.get("source_caption") or "",
            "edit_prompt": row.get("instruction"),
            "edited_prompt": row.get("target_caption") or "",
        }
        turn = f"{row['img_id']}-{row.get('turn_index')}" if row.get("img_id") else None
        ids = {"triplet_id": row.get("triplet_id") or row.get("img_id"), "pair_id": row.get("pair_id") or turn}
        images = {"original_image": row.get("source_img"), "edited_image": row.get("target_img")}
        yield from_row(texts | ids | images | {n: row.get(n) for n in ("edit_type", "split")}, where)


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
