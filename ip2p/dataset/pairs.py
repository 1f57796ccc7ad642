"""Triplets → image pairs (paper §3.2) as shards: planned, made on workers, resumed, assembled.

A unit of triplets is one shard, a pure function of its fingerprint: the same bits from one worker or many, in any order.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from ip2p.dataset.measures import measure_pairs
from ip2p.dataset.read import Drops, read_drops, read_triplets
from ip2p.dataset.rounds import Progress as Tried
from ip2p.dataset.rounds import next_samples
from ip2p.dataset.synthesis import ABANDONED, Made, Synthesiser, load_synthesiser, remember_texts, sample_pairs
from ip2p.dataset.thresholds import reject_reason
from ip2p.errors import UserError
from ip2p.models import free_pairs, model_digest, resolve_device, resolve_dtype
from ip2p.parallel import leave_with_parent
from ip2p.params import PairsParams, Params
from ip2p.pictures import to_png
from ip2p.records import PAIRS, Draw, StageReport, Triplet
from ip2p.store import assemble, code_mark, fingerprint, read_shards, shard_mark, write_shard

Progress = Callable[[int, int], None]
_SOURCES = (
    "clip.py",
    "dataset/alignment.py",
    "dataset/looks.py",
    "dataset/measures.py",
    "dataset/pairs.py",
    "dataset/p2p/both.py",
    "dataset/p2p/cross_attention.py",
    "dataset/p2p/none.py",
    "dataset/p2p/processor.py",
    "dataset/p2p/self_attention.py",
    "dataset/p2p/words.py",
    "dataset/rounds.py",
    "dataset/synthesis.py",
    "dataset/thresholds.py",
    "diffusion.py",
    "models.py",
    "pictures.py",
    "records.py",
    "sampler.py",
)


@dataclass(frozen=True)
class Unit:
    """One shard's worth of work."""

    number: int
    triplets: tuple[Triplet, ...]
    mark: str

    @property
    def name(self) -> str:
        """File name of the shard."""
        return f"pairs-{self.number:05d}.parquet"


def draw_sample(triplet: Triplet, number: int, section: PairsParams, seed: int) -> Draw:
    """The draw of a triplet's sample, from (run seed, triplet id, sample number) alone."""
    rng = random.Random(f"{seed}/pairs/{triplet.id}/{number}")
    return Draw(triplet.id, rng.getrandbits(48), rng.uniform(*section.p2p), rng.uniform(*section.guidance))


def plan_units(triplets: list[Triplet], params: Params) -> list[Unit]:
    """Shards in order, each with the fingerprint of all that decides its content."""
    section, models = params.pairs, params.models
    same = section.model_dump(exclude={"workers"})
    digests = [model_digest(models.teacher, "teacher"), model_digest(models.clip, "clip"), code_mark(*_SOURCES)]
    device = resolve_device(models.device)
    digests += [device.type, str(resolve_dtype(models.dtype, device)), str(models.threads), str(models.compile)]
    if section.strategy == "adaptive" or section.abandon_at:
        digests.append(fingerprint(params.filter.model_dump()))
    groups = [tuple(triplets[i : i + section.unit]) for i in range(0, len(triplets), section.unit)]
    return [
        Unit(n, group, fingerprint("pairs", same, params.seed, digests, [(t.id, t.edit_type) for t in group], n))
        for n, group in enumerate(groups)
    ]


def make_unit(maker: Synthesiser, unit: Unit, folder: Path) -> int:
    """Sample and score the pairs of a unit and write its shard; returns the number of pairs stored."""
    remember_texts(maker, list(unit.triplets))
    tried = [Tried(n) for n in range(len(unit.triplets))]
    rows: list[dict[str, Any]] = []
    drops: Drops = {}
    section, keep = maker.params, maker.thresholds.keep
    while chosen := next_samples(tried, section, keep, section.batch):
        triplets = [unit.triplets[n] for n, _ in chosen]
        drawn = [draw_sample(unit.triplets[n], number, section, maker.seed) for n, number in chosen]
        made = sample_pairs(maker, triplets, drawn)
        for index, found, row in zip(made.picks, made.scores, _rows(made, triplets, drawn), strict=True):
            reason = reject_reason(found, maker.thresholds, triplets[index].edit_type)
            tried[chosen[index][0]].passed += reason is None
            if reason is None or section.strategy == "best_of_n":
                rows.append(row)
            else:
                drops.setdefault(triplets[index].edit_type, Counter())[reason] += 1
        for index, (n, _) in enumerate(chosen):
            tried[n].tried += 1
            if index not in made.picks:
                drops.setdefault(triplets[index].edit_type, Counter())[ABANDONED] += 1
    write_shard(folder / unit.name, pa.Table.from_pylist(rows, schema=PAIRS), unit.mark, note={k: dict(v) for k, v in drops.items()})
    return len(rows)


def run(params: Params, *, triplets: Path, out: Path, work: Path, progress: Progress = lambda done, of: None) -> StageReport:
    """Make what is missing of the shards in `work`, then assemble them in `out`."""
    began = time.monotonic()
    params = _with_batch(params)
    source = read_triplets(triplets)
    units = plan_units(source, params)
    pending = [u for u in units if shard_mark(work / u.name) != u.mark]
    progress(len(units) - len(pending), len(units))
    for done in _make_all(params, pending, work):
        progress(len(units) - len(pending) + done, len(units))
    assemble(out, [work / u.name for u in units])
    kept, drops = Counter(read_shards(out, columns=["edit_type"])["edit_type"].to_pylist()), read_drops(out)
    reasons = sum(drops.values(), Counter[str]())
    return StageReport(
        stage="pairs",
        seen=sum(kept.values()) + sum(reasons.values()),
        kept=sum(kept.values()),
        dropped_by_reason=dict(reasons.most_common()),
        kept_by_edit_type=dict(sorted(kept.items())),
        seconds=time.monotonic() - began,
        extra={"shards_made": len(pending), "shards_resumed": len(units) - len(pending)},
    )


def _with_batch(params: Params) -> Params:
    """The parameters with the batch that `0` stands for here."""
    if params.pairs.batch:
        return params
    found = free_pairs(params.models)
    return params.model_copy(update={"pairs": params.pairs.model_copy(update={"batch": found})})


def _make_all(params: Params, pending: list[Unit], work: Path) -> Iterator[int]:
    """Make shards on the workers; yields how many are done."""
    work.mkdir(parents=True, exist_ok=True)
    workers = min(params.pairs.workers, len(pending))
    if workers == 0:
        return
    if workers == 1:
        _start_worker(params, None)
        yield from (n for n, unit in enumerate(pending, 1) if _work(unit, work) >= 0)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (params, os.getpid())) as pool:
        jobs = [pool.submit(_work, unit, work) for unit in pending]
        for done, job in enumerate(as_completed(jobs), 1):
            if job.exception() is not None:
                pool.shutdown(cancel_futures=True)
            job.result()
            yield done


_held: dict[str, Any] = {}


def _start_worker(params: Params, parent: int | None) -> None:
    if parent is not None:
        leave_with_parent(parent)
    torch.set_num_threads(params.models.threads or 1)
    try:
        _held["maker"] = load_synthesiser(params.models, params.pairs, params.filter, params.seed)
    except UserError as error:  # told by the first unit, for an error here would only break the pool
        _held["error"] = error


def _work(unit: Unit, work: Path) -> int:
    if "error" in _held:
        raise _held["error"]
    return make_unit(_held["maker"], unit, work)


def _rows(made: Made, triplets: list[Triplet], drawn: list[Draw]) -> list[dict[str, Any]]:
    rows = []
    images = (made.before_BCHW, made.after_BCHW)
    for i, measures in enumerate(measure_pairs(*images, made.scores)):
        t, d = triplets[made.picks[i]], drawn[made.picks[i]]
        pictures = [{"bytes": to_png(x[i]), "path": f"{d.pair_id}_{n}.png"} for n, x in enumerate(images)]
        rows.append(
            {
                "original_prompt": t.caption.text,
                "original_image": pictures[0],
                "edit_prompt": t.instruction,
                "edited_prompt": t.edited_caption,
                "edited_image": pictures[1],
                "pair_id": d.pair_id,
                "triplet_id": t.id,
                "edit_type": t.edit_type,
                "seed": d.seed,
                "p2p": d.p2p,
                "guidance": d.guidance,
                **measures,
            }
        )
    return rows
