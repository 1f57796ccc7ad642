"""Image pairs → dataset (paper §3.2): CLIP thresholds, best k a triplet, splits by triplet; every reject keeps its reason."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ip2p.params import FilterParams, Params
from ip2p.records import EXAMPLES, VERDICTS, StageReport
from ip2p.store import fingerprint, read_shards, shards, write_shard

KEPT = "kept"
SPLITS = ("train", "validation", "test")
_SCORES = ["pair_id", "triplet_id", "edit_type", "sim_0", "sim_1", "sim_image", "sim_direction"]


@dataclass(frozen=True, slots=True)
class Scored:
    """A pair's ids and its four similarities."""

    pair_id: str
    triplet_id: str
    edit_type: str
    sim_0: float
    sim_1: float
    sim_image: float
    sim_direction: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a pair stays, and if not why; `rank` counts from 0 within its triplet."""

    pair: Scored
    reason: str
    rank: int = -1

    @property
    def kept(self) -> bool:
        """Whether the pair goes into the dataset."""
        return self.reason == KEPT


def reject_reason(pair: Scored, section: FilterParams) -> str | None:
    """The first threshold that the pair misses, or None."""
    if not pair.sim_0 >= section.caption:
        return "source unlike its caption"
    if not pair.sim_1 >= section.caption:
        return "edit unlike its caption"
    if not pair.sim_image >= section.image:
        return "images too different"
    if pair.sim_image > section.copy_limit:
        return "images the same"
    if not pair.sim_direction >= section.direction:
        return "change is not the one asked for"
    return None


def judge(pairs: list[Scored], section: FilterParams) -> list[Verdict]:
    """A verdict for every pair, in the order given."""
    reasons = {p.pair_id: reject_reason(p, section) for p in pairs}
    passed = sorted((p for p in pairs if reasons[p.pair_id] is None), key=lambda p: (-p.sim_direction, p.pair_id))
    ranks: dict[str, int] = {}
    taken: Counter[str] = Counter()
    for pair in passed:
        ranks[pair.pair_id] = taken[pair.triplet_id]
        taken[pair.triplet_id] += 1
    return [_verdict(p, reasons[p.pair_id], ranks.get(p.pair_id, -1), section.keep) for p in pairs]


def split_of(triplet_id: str, shares: tuple[float, float]) -> str:
    """The split of a triplet, by its id alone, so that it never changes as the dataset grows."""
    u = int(fingerprint("split", triplet_id), 16) / 16**16
    if u < shares[0]:
        return "validation"
    return "test" if u < shares[0] + shares[1] else "train"


def run(params: Params, *, pairs: Path, out: Path) -> StageReport:
    """Write kept pairs to `out/{split}-NNNNN.parquet` and all verdicts to `out/verdicts/`."""
    began = time.monotonic()
    section = params.filter
    scored = [Scored(**row) for row in read_shards(pairs, columns=_SCORES).to_pylist()]
    verdicts = judge(scored, section)
    staging = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    _write_examples(verdicts, section, pairs, staging)
    rows = [
        {"pair_id": v.pair.pair_id, "triplet_id": v.pair.triplet_id, "edit_type": v.pair.edit_type, "kept": v.kept, "reason": v.reason}
        for v in verdicts
    ]
    write_shard(staging / "verdicts" / "verdicts.parquet", pa.Table.from_pylist(rows, schema=VERDICTS), fingerprint("verdicts"))
    shutil.rmtree(out, ignore_errors=True)
    staging.replace(out)
    kept = [v for v in verdicts if v.kept]
    return StageReport(
        stage="filter",
        seen=len(verdicts),
        kept=len(kept),
        dropped_by_reason=dict(Counter(v.reason for v in verdicts if not v.kept).most_common()),
        kept_by_edit_type=dict(sorted(Counter(v.pair.edit_type for v in kept).items())),
        seconds=time.monotonic() - began,
        extra={"triplets_kept": len({v.pair.triplet_id for v in kept}), "triplets_seen": len({p.triplet_id for p in scored})},
    )


def _verdict(pair: Scored, reason: str | None, rank: int, keep: int) -> Verdict:
    if reason is not None:
        return Verdict(pair, reason)
    return Verdict(pair, KEPT, rank) if rank < keep else Verdict(pair, f"beyond the best {keep} of its triplet", rank)


def _write_examples(verdicts: list[Verdict], section: FilterParams, pairs: Path, out: Path) -> None:
    """One shard of examples for each shard of pairs and split that has any."""
    kept = {v.pair.pair_id: v.rank for v in verdicts if v.kept}
    for number, path in enumerate(shards(pairs)):
        table = read_shards(path.parent, path.name.removesuffix(".parquet"))
        by_split: dict[str, list[dict[str, object]]] = {}
        for row in table.to_pylist():
            if row["pair_id"] in kept:
                split = split_of(row["triplet_id"], section.splits)
                by_split.setdefault(split, []).append({**row, "split": split, "rank": kept[row["pair_id"]]})
        for split, rows in by_split.items():
            mark = fingerprint("examples", section.model_dump(), [r["pair_id"] for r in rows])
            write_shard(out / f"{split}-{number:05d}.parquet", pa.Table.from_pylist(rows, schema=EXAMPLES), mark)
