"""Where a row comes from: `trace` walks its parents' ids back to the caption, `regenerate` makes its pixels again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ip2p.dataset.pairs import make_shard, plan_units, with_batch
from ip2p.dataset.read import read_triplets
from ip2p.errors import DataError
from ip2p.params import Params
from ip2p.store import read_shard, shard_mark, shards

_IMAGES = ("original_image", "edited_image")


def trace(id: str, *, triplets: Path, pairs: Path, dataset: Path) -> list[str]:
    """What is known of a pair or triplet, from caption to split, a line each. Raises `DataError` if the id is nowhere."""
    pair = _find(pairs, "pair_id", id)
    triplet_id = pair["triplet_id"] if pair else id
    triplet = _find(triplets, "triplet_id", triplet_id)
    if triplet is None and pair is None:
        raise DataError(f"{id}: no pair of {pairs}, triplet of {triplets}, version's number or edit's id; ids are given whole")
    lines = []
    if triplet:
        lines += [f"caption      {triplet['caption']}  ({triplet['caption_id']}, from {triplet['source']})"]
        lines += [f"instruction  {triplet['instruction']}  ({triplet['edit_type']}, written by {triplet['writer']})"]
        lines += [f"edited       {triplet['edited_caption']}", f"triplet      {triplet_id}"]
    found = [pair] if pair else _all(pairs, "triplet_id", triplet_id)
    for row in found:
        example = _find(dataset, "pair_id", row["pair_id"]) if dataset.is_dir() else None
        verdict = _find(dataset / "verdicts", "pair_id", row["pair_id"]) if (dataset / "verdicts").is_dir() else None
        became = f"{example['split']}, rank {example['rank']}" if example else (verdict or {}).get("reason", "not filtered yet")
        drawn = ", ".join([f"seed {row['seed']}", *(f"{k} {row[k]:.4g}" for k in ("p2p", "guidance") if row[k] is not None)])
        known = [k for k in ("sim_0", "sim_1", "sim_image", "sim_direction", "shift", "zoom", "outside") if row[k] is not None]
        scores = ", ".join(f"{k} {row[k]:.3f}" for k in known)
        lines += [f"pair         {row['pair_id']}: {drawn}", f"  scores     {scores}", f"  became     {became}"]
    return lines


def regenerate(id: str, params: Params, *, triplets: Path, pairs: Path, out: Path) -> list[Path]:
    """Make a pair again, with its whole unit, so that the pixels are the same; writes both images to `out`.

    Raises `DataError` if the shard was made with other parameters, models or code, or if a pixel differs.
    """
    path = next((p for p in shards(pairs) if id in read_shard(p, columns=["pair_id"])["pair_id"].to_pylist()), None)
    if path is None:
        raise DataError(f"{id}: no such pair in {pairs}; `ip2p trace` names the pairs of a triplet")
    params = with_batch(params, pairs)
    unit = next((u for u in plan_units(read_triplets(triplets), params) if u.name == path.name), None)
    if unit is None or shard_mark(path) != unit.mark:
        raise DataError(f"{path}: was made with other parameters, models, triplets or code; restore those, then regenerate")
    row, again = (_row(table, id) for table in (read_shard(path), pq.read_table(pa.BufferReader(make_shard(params, unit)))))
    if again is None or row is None or any(again[n]["bytes"] != row[n]["bytes"] for n in _IMAGES):
        raise DataError(f"{id}: came out with other pixels than {path} holds; this machine computes differently")
    out.mkdir(parents=True, exist_ok=True)
    written = [out / again[name]["path"] for name in _IMAGES]
    for name, file in zip(_IMAGES, written, strict=True):
        file.write_bytes(again[name]["bytes"])
    return written


def _row(table: pa.Table, id: str) -> dict[str, Any] | None:
    return next(iter(table.filter(pc.equal(table["pair_id"], id)).to_pylist()), None)


def _all(folder: Path, column: str, value: str) -> list[dict[str, Any]]:
    if not any(folder.glob("*.parquet")):
        return []
    rows: list[dict[str, Any]] = []
    for path in shards(folder):
        if value in read_shard(path, columns=[column])[column].to_pylist():
            table = read_shard(path)
            rows += table.filter(pc.equal(table[column], value)).to_pylist()
    return rows


def _find(folder: Path, column: str, value: str) -> dict[str, Any] | None:
    return next(iter(_all(folder, column, value)), None)
