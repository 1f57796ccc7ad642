"""Image pairs → dataset (paper §3.1.2): the chain of filters, best k a triplet, splits by caption; every reject keeps its reason.

Goes shard by shard: scores first, images only of shards in which something stays.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ip2p.dataset.filters.chain import KEPT, Chain, Verdicts
from ip2p.dataset.judge import Judge, Question, summary
from ip2p.dataset.read import read_drops, read_scores
from ip2p.dataset.survival import Survival, plot_survival
from ip2p.params import FilterParams, Params
from ip2p.records import EXAMPLES, JUDGEMENTS, SPLITS, VERDICTS, StageReport, triplet_of, written_here
from ip2p.store import fingerprint, read_shard, replace_folder, shards, staging_of, write_bytes, write_json, write_shard

_IMAGES = ("original_image", "edited_image")
SPLIT_BY = ("triplet_id", "original_prompt", "edit_prompt", "edited_prompt")
"""Columns that tell a pair's split."""
SURVIVAL = "survival"
"""Folder beside the dataset's shards with what became of all pairs, as table and picture."""


def splits_of(pairs: pa.Table, shares: tuple[float, float]) -> list[str]:
    """The split of each pair."""
    rows = zip(*(pairs[name].to_pylist() for name in SPLIT_BY), strict=True)
    return [split_of(triplet, caption, instruction, edited, shares) for triplet, caption, instruction, edited in rows]


def split_of(triplet_id: str, caption: str, instruction: str, edited_caption: str, shares: tuple[float, float]) -> str:
    """The split of a pair, by what it was made of alone, so that it never changes as the dataset grows.

    A triplet written here, whose id says so, goes with its caption, which may have others. One of other people's goes alone: a session of
    their edits has many captions.
    """
    own = written_here(triplet_id, caption, instruction, edited_caption)
    u = int(fingerprint("split", triplet_of(caption) if own else triplet_id), 16) / 16**16
    if u < shares[0]:
        return "validation"
    return "test" if u < shares[0] + shares[1] else "train"


def run(params: Params, *, pairs: Path, out: Path, work: Path) -> StageReport:
    """Write kept pairs to `out/{split}-NNNNN.parquet`, all verdicts to `out/verdicts/`, what became of them to `out/survival/`.

    A judge's replies are kept in `work/judge.jsonl` and, read, in `out/judged/`.
    """
    if params.filter.judge is None:
        return _run(params, pairs, out, None)
    with Judge(params.filter.judge, work / "judge.jsonl") as judge:
        return _run(params, pairs, out, judge)


def _run(params: Params, pairs: Path, out: Path, judge: Judge | None) -> StageReport:
    began = time.monotonic()
    section = params.filter
    chain, survival = Chain(section), Survival(read_drops(pairs))
    staging = staging_of(out)
    triplets, triplets_kept = 0, 0
    sheets = _sheets(chain, shards(pairs))
    for number, sheet in enumerate(sheets if judge is None else _judged(judge, chain, sheets)):
        table, verdicts = sheet.table, sheet.verdicts
        survival.add(table["edit_type"].to_pylist(), verdicts.reasons.tolist())
        _write_verdicts(table, verdicts, staging / "verdicts" / f"verdicts-{number:05d}.parquet")
        if verdicts.kept.any():
            _write_examples(sheet.path, verdicts, section, number, staging)
        triplets += len(set(table["triplet_id"].to_pylist()))
        triplets_kept += len(set(table.filter(pa.array(verdicts.kept))["triplet_id"].to_pylist()))
    if judge is not None:
        judgements = pa.Table.from_pylist([asdict(j) for j in judge.judgements], schema=JUDGEMENTS)
        write_shard(staging / "judged" / "judged-00000.parquet", judgements, fingerprint("judged", len(judgements)))
    write_json(staging / SURVIVAL / "survival.json", survival.table())
    write_bytes(staging / SURVIVAL / "survival.png", plot_survival(survival.table()))
    replace_folder(staging, out)
    if unknown := sorted(section.by_type.keys() - survival.table().keys()):
        print(f"filter: no pair is of the edit types {', '.join(unknown)}, which filter.by_type names", flush=True)
    reasons = survival.reasons()
    return StageReport(
        stage="filter",
        seen=sum(reasons.values()),
        kept=reasons[KEPT],
        dropped_by_reason={k: v for k, v in reasons.most_common() if k != KEPT},
        kept_by_edit_type={k: v[KEPT] for k, v in survival.table().items() if v.get(KEPT)},
        seconds=time.monotonic() - began,
        extra={"triplets_kept": triplets_kept, "triplets_seen": triplets, **(summary(judge.judgements) if judge else {})},
    )


@dataclass
class _Sheet:
    """A shard's scores and verdicts, and which rows the judge has seen."""

    path: Path
    table: pa.Table
    verdicts: Verdicts
    seen: npt.NDArray[np.bool_]

    @property
    def bytes(self) -> float:
        """Of the pictures that are kept, about."""
        return float(self.path.stat().st_size * self.verdicts.kept.mean()) if len(self.table) else 0.0

    def unseen(self) -> npt.NDArray[np.int64]:
        """The rows to show to the judge now, which count as seen from here on."""
        rows = np.flatnonzero(self.verdicts.kept & ~self.seen)
        self.seen[rows] = True
        return rows

    def questions(self, rows: npt.NDArray[np.int64]) -> list[Question]:
        """What the judge is asked about these rows."""
        some = pq.read_table(self.path, columns=["pair_id", "edit_prompt", *_IMAGES]).take(pa.array(rows)).to_pylist()
        return [Question(r["pair_id"], r["edit_prompt"], *(r[n]["bytes"] for n in _IMAGES)) for r in some]


def _sheets(chain: Chain, paths: list[Path]) -> Iterator[_Sheet]:
    """The shards in order, as the filters judge them."""
    for path in paths:
        table = read_scores(path, chain.columns)
        yield _Sheet(path, table, chain.decide(table), np.zeros(len(table), dtype=bool))


def _judged(judge: Judge, chain: Chain, sheets: Iterator[_Sheet]) -> Iterator[_Sheet]:
    """The shards after the judge has seen what is kept of them, so many at once as their pictures fit into memory."""
    held: list[_Sheet] = []
    size = 0.0
    for sheet in sheets:
        if held and size + sheet.bytes > judge.most:
            _ask(judge, chain, held)
            yield from held
            held, size = [], 0.0
        held.append(sheet)
        size += sheet.bytes
    _ask(judge, chain, held)
    yield from held


def _ask(judge: Judge, chain: Chain, sheets: list[_Sheet]) -> None:
    """Show the judge what is kept of these shards; a triplet's next best pair is shown when a better one falls."""
    while asked := [(s, rows) for s in sheets if (rows := s.unseen()).size]:
        scores = iter(judge.ask([q for sheet, rows in asked for q in sheet.questions(rows)]))
        for sheet, rows in asked:
            reasons = sheet.verdicts.reasons.copy()
            for row, score in zip(rows, islice(scores, rows.size), strict=True):
                if score is None or score < judge.section.least:
                    reasons[row] = "the judge gave no mark" if score is None else "the judge says no"
            sheet.verdicts = chain.rank(sheet.table, reasons)


def _write_verdicts(table: pa.Table, verdicts: Verdicts, path: Path) -> None:
    columns = table.select(["pair_id", "triplet_id", "edit_type"])
    columns = columns.append_column("kept", pa.array(verdicts.kept)).append_column(
        "reason", pa.array(verdicts.reasons.tolist(), pa.string())
    )
    write_shard(path, columns.cast(VERDICTS), fingerprint("verdicts", path.name))


def _write_examples(path: Path, verdicts: Verdicts, section: FilterParams, number: int, out: Path) -> None:
    """One shard of examples for each split that has any."""
    table = read_shard(path)
    table = table.append_column("rank", pa.array(verdicts.ranks)).filter(pa.array(verdicts.kept))
    splits = splits_of(table, section.splits)
    table = table.append_column("split", pa.array(splits)).select(EXAMPLES.names).cast(EXAMPLES)
    for split in SPLITS:
        rows = table.filter(pa.array([s == split for s in splits]))
        if len(rows):
            mark = fingerprint("examples", section.model_dump(exclude={"judge"}), rows["pair_id"].to_pylist())
            write_shard(out / f"{split}-{number:05d}.parquet", rows, mark)
