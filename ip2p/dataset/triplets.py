"""Captions → triplets (paper §3.1.1): caption, instruction, edited caption, by the world's grammar or a language model."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from ip2p.dataset.captions import read_captions, repetition_key
from ip2p.dataset.edit_types import EDIT_TYPES
from ip2p.dataset.llm.plan import Plan, plan_triplets
from ip2p.dataset.llm.writer import Written, write_with_llm
from ip2p.dataset.world_writer import world_caption, write_triplets
from ip2p.errors import ParamsError
from ip2p.params import Params, TripletsParams
from ip2p.records import TRIPLETS, Caption, StageReport
from ip2p.store import fingerprint, write_shard
from ip2p.world.edits import EDIT_TYPES as WORLD_EDIT_TYPES

Progress = Callable[[int, int], None]
_SPARE, _ENOUGH = 2, 4
"""Captions for each triplet that a language model is to write: made by the world, at most read from a source, which may be huge."""


def plan(params: Params) -> Plan:
    """What a run would ask of the language model. Raises `ParamsError` if the writer is not one."""
    if params.triplets.writer != "llm":
        raise ParamsError("triplets.writer: the world's grammar costs nothing; set it to `llm` to plan a language model's work")
    _check_types(params.triplets)
    captions, _ = _captions(params)
    return plan_triplets(params.triplets, captions or [])


def run(params: Params, *, out: Path, work: Path, progress: Progress = lambda done, of: None) -> StageReport:
    """Write the triplets of this run to `out/triplets.parquet`; a language model's replies are kept in `work/journal.jsonl`."""
    began = time.monotonic()
    section = params.triplets
    _check_types(section)
    captions, unusable = _captions(params)
    if section.writer == "llm":
        written = write_with_llm(section, captions or [], journal=work / "journal.jsonl", progress=progress)
    else:
        written = _write_world(section, captions, params.seed)
    table = pa.Table.from_pylist([t.row() for t in written.triplets], schema=TRIPLETS)
    write_shard(out / "triplets.parquet", table, fingerprint("triplets", [t.id for t in written.triplets]))
    return StageReport(
        stage="triplets",
        seen=written.seen + sum(unusable.values()),
        kept=len(written.triplets),
        dropped_by_reason=unusable | dict(written.dropped.most_common()),
        kept_by_edit_type=dict(sorted(Counter(t.edit_type for t in written.triplets).items())),
        seconds=time.monotonic() - began,
        extra=written.extra,
    )


def _write_world(section: TripletsParams, captions: list[Caption] | None, seed: int) -> Written:
    stream, types = f"{seed}/triplets", section.edit_types or WORLD_EDIT_TYPES
    triplets = list(write_triplets(count=section.count, stream=stream, captions=captions, edit_types=types, weights=section.weights))
    missing = section.count - len(triplets)
    return Written(triplets, section.count, Counter({"captions allow no further edit": missing} if missing else {}))


def _captions(params: Params) -> tuple[list[Caption] | None, dict[str, int]]:
    """Captions of the file that is named, and drops by reason; the world's own (for its grammar: none) if none is named."""
    section = params.triplets
    if section.captions is not None:
        return read_captions(section.captions, most=_ENOUGH * section.count + 1000)
    if section.writer == "world":
        return None, {}
    found: dict[str, Caption] = {}
    for number in range(section.count * _SPARE):
        caption = world_caption(random.Random(f"{params.seed}/captions/{number}"))
        found.setdefault(repetition_key(caption.text), caption)
    return list(found.values()), {}


def _check_types(section: TripletsParams) -> None:
    known = WORLD_EDIT_TYPES if section.writer == "world" else EDIT_TYPES
    if section.writer == "llm" and section.llm.format == "completion":
        given = {"edit_types": section.edit_types is not None, "weights": bool(section.weights), "per_caption": section.per_caption > 1}
        if named := [name for name, is_given in given.items() if is_given]:
            raise ParamsError(f"triplets.{named[0]}: a completion model cannot be asked for a type of edit; leave it out")
    unknown = sorted(set(section.edit_types or ()) - set(known))
    if unknown or section.edit_types == ():
        raise ParamsError(f"triplets.edit_types: {', '.join(unknown) or 'none'} unknown to the writer; choose of {', '.join(known)}")
    asked = section.edit_types or known
    if stray := sorted(set(section.weights) - set(asked)):
        raise ParamsError(f"triplets.weights: {', '.join(stray)} not asked for; choose of {', '.join(asked)}")
