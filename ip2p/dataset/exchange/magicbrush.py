"""MagicBrush's columns (METHOD §9): single turns, with the visible change as mask. Captions ride along for the way back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ip2p.dataset.exchange.example import Example, from_row
from ip2p.errors import DataError
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
        "split": pa.string(),
    }
)


def write(examples: Iterable[Example], out: Path) -> int:
    """Write `{split}.parquet`; returns the number of examples."""
    out.mkdir(parents=True)
    writers: dict[str, pq.ParquetWriter] = {}
    held: dict[str, list[dict[str, object]]] = {}
    count = 0
    try:
        for e in examples:
            rows = held.setdefault(e.split, [])
            rows.append(_row(e))
            count += 1
            if len(rows) == _ROWS:
                _flush(writers, out, e.split, held.pop(e.split))
        for split, rows in held.items():
            _flush(writers, out, split, rows)
    finally:
        for writer in writers.values():
            writer.close()
    return count


def read(path: Path) -> Iterator[Example]:
    """Examples of every Parquet file below `path`; captions are empty where there are none."""
    files = sorted(path.rglob("*.parquet"))
    if not files:
        raise DataError(f"{path}: no Parquet files; give the folder of a MagicBrush dataset")
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=64):
            for row in batch.to_pylist():
                yield from_row(
                    {
                        "original_prompt": row.get("source_caption") or "",
                        "original_image": row.get("source_img"),
                        "edit_prompt": row.get("instruction"),
                        "edited_prompt": row.get("target_caption") or "",
                        "edited_image": row.get("target_img"),
                        "triplet_id": row.get("img_id"),
                        "pair_id": f"{row.get('img_id')}-{row.get('turn_index')}",
                        "split": row.get("split") or "train",
                    },
                    str(file),
                )


def _flush(writers: dict[str, pq.ParquetWriter], out: Path, split: str, rows: list[dict[str, object]]) -> None:
    if split not in writers:
        writers[split] = pq.ParquetWriter(out / f"{split}.parquet", SCHEMA, compression="zstd")
    writers[split].write_table(pa.Table.from_pylist(rows, schema=SCHEMA))


def _row(e: Example) -> dict[str, object]:
    images = {
        "source_img": e.original_image,
        "target_img": e.edited_image,
        "mask_img": change_mask(e.original_image, e.edited_image, where=e.pair_id),
    }
    named: dict[str, object] = {k: {"bytes": v, "path": f"{e.pair_id}-{k}.png"} for k, v in images.items()}
    texts = {"instruction": e.edit_prompt, "source_caption": e.original_prompt, "target_caption": e.edited_prompt}
    return named | texts | {"img_id": e.triplet_id, "turn_index": 1, "split": e.split}
