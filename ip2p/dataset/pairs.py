"""Triplets → image pairs (paper §3.2): Stable-Diffusion sampling with Prompt-to-Prompt, many pairs a batch.

Both images of a pair share initial and ancestral noise; each pair draws its own seed, p2p share and guidance scale.
The unit of work is a shard of `unit` triplets: a pure function of its fingerprint, whatever the number of workers.
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
from torch import Tensor

from ip2p.clip import image_features, similarities, text_features
from ip2p.dataset.attention import Sharing, share_self_attention
from ip2p.dataset.read import read_triplets
from ip2p.diffusion import Diffusion, decode_latents, encode_text, run_guided
from ip2p.errors import UserError
from ip2p.models import Clip, load_clip, load_diffusion, model_digest, resolve_device, resolve_dtype
from ip2p.parallel import leave_with_parent
from ip2p.params import ModelsParams, PairsParams, Params
from ip2p.pictures import to_png
from ip2p.records import PAIRS, Draw, StageReport, Triplet
from ip2p.sampler import Schedule, draw_noise, make_schedule, sample
from ip2p.store import assemble, code_mark, fingerprint, shard_mark, write_shard

Progress = Callable[[int, int], None]
_SOURCES = ("dataset/pairs.py", "dataset/attention.py", "diffusion.py", "sampler.py", "clip.py", "models.py", "pictures.py", "records.py")


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


@dataclass(frozen=True)
class Synthesiser:
    """Models of one worker, ready to sample."""

    teacher: Diffusion
    clip: Clip
    sharing: Sharing
    params: PairsParams
    seed: int
    empty_1LD: Tensor


def load_synthesiser(models: ModelsParams, section: PairsParams, seed: int) -> Synthesiser:
    """Load teacher and CLIP and install Prompt-to-Prompt."""
    device = resolve_device(models.device)
    teacher = load_diffusion(models.teacher, device=device, dtype=resolve_dtype(models.dtype, device))
    sharing = share_self_attention(teacher.unet)
    clip = load_clip(models.clip, device=device)
    return Synthesiser(teacher, clip, sharing, section, seed, encode_text(teacher, [""]))


def draws(triplet: Triplet, section: PairsParams, seed: int) -> list[Draw]:
    """The draws of a triplet's pairs, from (run seed, triplet id, sample number) alone."""
    found = []
    for number in range(section.samples):
        rng = random.Random(f"{seed}/pairs/{triplet.id}/{number}")
        found.append(Draw(triplet.id, rng.getrandbits(48), rng.uniform(*section.p2p), rng.uniform(*section.guidance)))
    return found


def plan_units(triplets: list[Triplet], params: Params) -> list[Unit]:
    """Shards in order, each with the fingerprint of all that decides its content."""
    section, models = params.pairs, params.models
    same = section.model_dump(exclude={"workers"})
    digests = [model_digest(models.teacher, "teacher"), model_digest(models.clip, "clip"), code_mark(*_SOURCES)]
    device = resolve_device(models.device)
    digests += [device.type, str(resolve_dtype(models.dtype, device)), str(models.threads)]
    groups = [tuple(triplets[i : i + section.unit]) for i in range(0, len(triplets), section.unit)]
    return [Unit(n, group, fingerprint("pairs", same, params.seed, digests, [t.id for t in group], n)) for n, group in enumerate(groups)]


@torch.inference_mode()
def sample_pairs(maker: Synthesiser, triplets: list[Triplet], drawn: list[Draw]) -> tuple[Tensor, Tensor]:
    """Images `(before_BCHW, after_BCHW)` in [0, 1], one pair for each triplet and draw.

    Rows of the UNet's batch: source and target without text, then source and target with text.
    """
    teacher, steps, count = maker.teacher, maker.params.steps, len(drawn)
    texts = encode_text(teacher, [t.caption.text for t in triplets] + [t.edited_caption for t in triplets])
    context = torch.cat([maker.empty_1LD.expand(2 * count, -1, -1), texts])
    guidance = torch.tensor([d.guidance for d in drawn] * 2, device=teacher.device).view(-1, 1, 1, 1)
    p2p = torch.tensor([d.p2p for d in drawn])

    def predict(x: Tensor, timestep: Tensor, i: int) -> Tensor:
        maker.sharing.rows_B = _shared_rows(p2p > i / (steps - 1)).to(teacher.device)
        return run_guided(teacher, x, timestep, context, guidance)

    side = teacher.unet.config.sample_size
    noise = draw_noise([d.seed for d in drawn], (teacher.latent_channels, side, side), steps)
    latents = sample(predict, _schedule(teacher, maker.params), torch.cat([noise, noise], dim=1).to(teacher.device))
    before, after = decode_latents(teacher, latents).mul(255).round().div(255).chunk(2)
    return before, after


def make_unit(maker: Synthesiser, unit: Unit, folder: Path) -> int:
    """Sample and score all pairs of a unit and write its shard; returns the number of pairs."""
    work = [(t, d) for t in unit.triplets for d in draws(t, maker.params, maker.seed)]
    rows: list[dict[str, Any]] = []
    for first in range(0, len(work), maker.params.batch):
        triplets, drawn = (list(x) for x in zip(*work[first : first + maker.params.batch], strict=True))
        rows += _rows(maker, triplets, drawn)
    write_shard(folder / unit.name, pa.Table.from_pylist(rows, schema=PAIRS), unit.mark)
    return len(rows)


def run(params: Params, *, triplets: Path, out: Path, work: Path, progress: Progress = lambda done, of: None) -> StageReport:
    """Make what is missing of the shards in `work`, then assemble them in `out`."""
    began = time.monotonic()
    source = read_triplets(triplets)
    units = plan_units(source, params)
    pending = [u for u in units if shard_mark(work / u.name) != u.mark]
    progress(len(units) - len(pending), len(units))
    for done in _make_all(params, pending, work):
        progress(len(units) - len(pending) + done, len(units))
    assemble(out, [work / u.name for u in units])
    made = len(source) * params.pairs.samples
    seconds = time.monotonic() - began
    return StageReport(
        stage="pairs",
        seen=made,
        kept=made,
        kept_by_edit_type={k: v * params.pairs.samples for k, v in sorted(Counter(t.edit_type for t in source).items())},
        seconds=seconds,
        extra={"shards_made": len(pending), "shards_resumed": len(units) - len(pending)},
    )


def _make_all(params: Params, pending: list[Unit], work: Path) -> Iterator[int]:
    """Make shards on the workers; yields how many are done."""
    work.mkdir(parents=True, exist_ok=True)
    workers = min(params.pairs.workers, len(pending))
    if workers == 0:
        return
    settings = (params.models, params.pairs, params.seed, os.getpid() if workers > 1 else None)
    if workers == 1:
        _start_worker(*settings)
        yield from (n for n, unit in enumerate(pending, 1) if _work(unit, work) >= 0)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, settings) as pool:
        jobs = [pool.submit(_work, unit, work) for unit in pending]
        for done, job in enumerate(as_completed(jobs), 1):
            if job.exception() is not None:
                pool.shutdown(cancel_futures=True)
            job.result()
            yield done


_held: dict[str, Any] = {}


def _start_worker(models: ModelsParams, section: PairsParams, seed: int, parent: int | None) -> None:
    if parent is not None:
        leave_with_parent(parent)
    torch.set_num_threads(models.threads or 1)
    try:
        _held["maker"] = load_synthesiser(models, section, seed)
    except UserError as error:  # told by the first unit, for an error here would only break the pool
        _held["error"] = error


def _work(unit: Unit, work: Path) -> int:
    if "error" in _held:
        raise _held["error"]
    return make_unit(_held["maker"], unit, work)


def _shared_rows(active_B: Tensor) -> Tensor:
    """Row numbers that each of the 4·B rows takes queries and keys from."""
    count = len(active_B)
    own = torch.arange(count)
    target = torch.where(active_B, own, own + count)
    half = torch.cat([own, target])
    return torch.cat([half, half + 2 * count])


def _schedule(teacher: Diffusion, section: PairsParams) -> Schedule:
    scheduler: Any = teacher.scheduler
    prediction = scheduler.config.prediction_type
    return make_schedule(scheduler.alphas_cumprod, steps=section.steps, prediction=prediction, solver=section.solver)


def _rows(maker: Synthesiser, triplets: list[Triplet], drawn: list[Draw]) -> list[dict[str, Any]]:
    before, after = sample_pairs(maker, triplets, drawn)
    features = [image_features(maker.clip, x) for x in (before, after)]
    texts = [text_features(maker.clip, x) for x in ([t.caption.text for t in triplets], [t.edited_caption for t in triplets])]
    scores = similarities(features[0], features[1], texts[0], texts[1])
    return [
        {
            "original_prompt": t.caption.text,
            "original_image": {"bytes": to_png(before[i]), "path": f"{d.pair_id}_0.png"},
            "edit_prompt": t.instruction,
            "edited_prompt": t.edited_caption,
            "edited_image": {"bytes": to_png(after[i]), "path": f"{d.pair_id}_1.png"},
            "pair_id": d.pair_id,
            "triplet_id": t.id,
            "edit_type": t.edit_type,
            "seed": d.seed,
            "p2p": d.p2p,
            "guidance": d.guidance,
            "sim_0": scores.caption_0[i].item(),
            "sim_1": scores.caption_1[i].item(),
            "sim_image": scores.image[i].item(),
            "sim_direction": scores.direction[i].item(),
        }
        for i, (t, d) in enumerate(zip(triplets, drawn, strict=True))
    ]
