"""Triplets → image pairs (paper §3.1.2) as shards: planned, made on workers, resumed, assembled.

A unit of triplets is one shard, a pure function of its fingerprint: the same bits from one worker or many, in any order.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from ip2p.dataset.measures import measure_pairs
from ip2p.dataset.read import Drops, read_drops, read_triplets
from ip2p.dataset.rounds import Progress as Tried
from ip2p.dataset.rounds import next_samples
from ip2p.dataset.synthesis import ABANDONED, Made, Synthesiser, free_pairs, load_synthesiser, remember_texts, sample_pairs
from ip2p.dataset.thresholds import reject_reason
from ip2p.errors import ParamsError
from ip2p.models import model_digest, placement
from ip2p.parallel import leave_with_parent
from ip2p.params import PairsParams, Params
from ip2p.pictures import to_png
from ip2p.records import PAIRS, Draw, StageReport, Triplet
from ip2p.startup import processes
from ip2p.store import assemble, code_mark, fingerprint, read_shards, shard_bytes, shard_mark, shard_note, write_bytes

Progress = Callable[[int, int], None]
Engine = Callable[[Params, list["Unit"], Path], Iterator[int]]
"""Makes units, writes their shards to the folder, and yields how many are done after each."""
CODE = (
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
    "safety.py",
    "sampler.py",
)
"""What decides which pairs are made and how they look."""


@dataclass(frozen=True)
class Unit:
    """One shard's worth of work."""

    number: int
    triplets: tuple[Triplet, ...]
    mark: str
    batch_for: str

    @property
    def name(self) -> str:
        """File name of the shard."""
        return f"pairs-{self.number:05d}.parquet"


def draw_sample(triplet: Triplet, number: int, section: PairsParams, seed: int) -> Draw:
    """The draw of a triplet's sample, from (run seed, triplet id, sample number) alone."""
    rng = random.Random(f"{seed}/pairs/{triplet.id}/{number}")
    return Draw(triplet.id, rng.getrandbits(48), rng.uniform(*section.p2p), rng.uniform(*section.guidance))


def plan_units(triplets: list[Triplet], params: Params) -> list[Unit]:
    """Shards in order, each with the fingerprint of all that decides its content. `pairs.batch` must be known (`with_batch`)."""
    section, models = params.pairs, params.models
    same = section.model_dump(exclude={"workers", "engine", "ray_address"})
    digests = [model_digest(models.teacher, "teacher"), model_digest(models.clip, "clip"), code_mark(*CODE)]
    digests += [model_digest(models.safety, "safety")] if models.safety else []
    device, dtype = placement(models)
    digests += [device.type, str(dtype), str(models.threads), str(models.compile)]
    if section.strategy == "adaptive" or section.abandon_at:
        digests.append(fingerprint(params.filter.model_dump(include={"caption", "image", "direction", "copy_limit", "by_type", "keep"})))
    groups = [tuple(triplets[i : i + section.unit]) for i in range(0, len(triplets), section.unit)]
    return [
        Unit(n, group, fingerprint("pairs", same, params.seed, digests, [(t.id, t.edit_type) for t in group], n), _batch_for(params))
        for n, group in enumerate(groups)
    ]


@dataclass(frozen=True)
class Round:
    """One batch of samples: `triplets` and `drawn` of each, what was made, and why each of the made misses (None: it passes)."""

    triplets: list[Triplet]
    drawn: list[Draw]
    made: Made
    misses: list[str | None]


def sample_rounds(maker: Synthesiser, triplets: Sequence[Triplet]) -> Iterator[Round]:
    """Sample and score pairs of these triplets until the strategy has enough."""
    remember_texts(maker, list(triplets))
    tried = [Tried(n) for n in range(len(triplets))]
    section = maker.params
    while chosen := next_samples(tried, section, maker.thresholds.keep, section.batch):
        some = [triplets[n] for n, _ in chosen]
        drawn = [draw_sample(triplets[n], number, section, maker.seed) for n, number in chosen]
        made = sample_pairs(maker, some, drawn)
        misses = [reject_reason(s, maker.thresholds, some[i].edit_type) for i, s in zip(made.picks, made.scores, strict=True)]
        for n, _ in chosen:
            tried[n].tried += 1
        for i, reason in zip(made.picks, misses, strict=True):
            tried[chosen[i][0]].passed += reason is None
        yield Round(some, drawn, made, misses)


def make_unit(maker: Synthesiser, unit: Unit) -> bytes:
    """Sample and score the pairs of a unit; returns its shard."""
    rows: list[dict[str, Any]] = []
    drops: Drops = {}
    for batch in sample_rounds(maker, unit.triplets):
        for i, row, reason in zip(batch.made.picks, _rows(maker, batch), batch.misses, strict=True):
            if reason is None or maker.params.strategy == "best_of_n":
                rows.append(row)
            else:
                drops.setdefault(batch.triplets[i].edit_type, Counter())[reason] += 1
        for i in set(range(len(batch.triplets))) - set(batch.made.picks):
            drops.setdefault(batch.triplets[i].edit_type, Counter())[ABANDONED] += 1
    note = {"drops": {k: dict(v) for k, v in drops.items()}, "batch": maker.params.batch, "batch_for": unit.batch_for}
    return shard_bytes(pa.Table.from_pylist(rows, schema=PAIRS), unit.mark, note=note)


def run(
    params: Params,
    *,
    triplets: Path,
    out: Path,
    work: Path,
    progress: Progress = lambda done, of: None,
    engine: Engine | None = None,
) -> StageReport:
    """Make what is missing of the shards in `work`, then assemble them in `out`. Without an engine: processes of this machine."""
    began = time.monotonic()
    if engine is None and params.pairs.engine == "ray":
        raise ParamsError("pairs.engine: Ray is started by the flow; run `python -m flows.pairs` or `dvc repro`, or set it to `processes`")
    params = with_batch(params, work)
    source = read_triplets(triplets)
    units = plan_units(source, params)
    pending = [u for u in units if shard_mark(work / u.name) != u.mark]
    progress(len(units) - len(pending), len(units))
    for done in (engine or make_in_processes)(params, pending, work):
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


def with_batch(params: Params, made: Path) -> Params:
    """The parameters with the batch that `0` stands for: that of the shards in `made`, else what the device's free memory allows."""
    if params.pairs.batch:
        return params
    notes = (shard_note(path) or {} for path in sorted(made.glob("*.parquet")) if shard_mark(path))
    held = next((n["batch"] for n in notes if n.get("batch_for") == _batch_for(params)), None)
    found = held or max(1, free_pairs(params.models) // params.pairs.workers)
    return params.changed("pairs", batch=found)


def _batch_for(params: Params) -> str:
    """What the batch of `0` depends on, beside the memory that happens to be free."""
    device, dtype = placement(params.models)
    return fingerprint(params.models.teacher, device.type, str(dtype), params.pairs.method)


def make_in_processes(params: Params, pending: list[Unit], work: Path) -> Iterator[int]:
    """The engine of one machine: make shards on worker processes; yields how many are done."""
    workers = min(params.pairs.workers, len(pending))
    if workers == 0:
        return
    if workers == 1:
        _held["params"] = params
        for done, unit in enumerate(pending, 1):
            _work(unit, work)
            yield done
        return
    with ProcessPoolExecutor(workers, processes(), _start_worker, (params,)) as pool:
        jobs = [pool.submit(_work, unit, work) for unit in pending]
        for done, job in enumerate(as_completed(jobs), 1):
            if job.exception() is not None:
                pool.shutdown(cancel_futures=True)
            job.result()
            yield done


def make_shard(params: Params, unit: Unit) -> bytes:
    """The shard of a unit, by this process's models: what an engine's worker calls. Models are loaded once a process."""
    mark = fingerprint(params.model_dump(mode="json"))
    if _held.get("for") != mark:
        torch.set_num_threads(params.models.threads or 1)
        _held.update({"for": mark, "maker": load_synthesiser(params.models, params.pairs, params.filter, params.seed)})
    return make_unit(_held["maker"], unit)


_held: dict[str, Any] = {}


def _start_worker(params: Params) -> None:
    leave_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ends with the command, which says so
    _held["params"] = params


def _work(unit: Unit, work: Path) -> None:
    write_bytes(work / unit.name, make_shard(_held["params"], unit))


def _rows(maker: Synthesiser, batch: Round) -> list[dict[str, Any]]:
    made, triplets, drawn, rows = batch.made, batch.triplets, batch.drawn, []
    images = (made.before_BCHW, made.after_BCHW)
    for i, measures in enumerate(measure_pairs(*images, made.scores, made.features, maker.safety)):
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
