"""Editor → EvalReport (paper §4.1, Fig. 8): held-out edits at both guidance scales, against two baselines.

Image similarity against direction similarity by CLIP and, in the world, the truth: was the edit done, did the rest stay,
how far from the true picture. Sources are renders of held-out captions, pictures as a user would bring them.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ip2p.clip import image_features, similarities, text_features
from ip2p.dataset.read import read_triplets
from ip2p.dataset.world_writer import write_triplets
from ip2p.diffusion import Diffusion, decode_latents, encode_images, encode_text, run_guided
from ip2p.model.edit import edit_batch, load_editor
from ip2p.model.guidance import EditRequest, edit_options
from ip2p.model.plots import plot_curves, plot_types
from ip2p.models import Clip, load_clip, load_diffusion, resolve_device, resolve_dtype
from ip2p.params import EvaluateParams, Params
from ip2p.pictures import grid, to_pillow
from ip2p.records import SHOWN, StageReport, Triplet
from ip2p.sampler import Solver, draw_noise, make_schedule, sample
from ip2p.store import code_mark, digest, fingerprint, write_bytes, write_json
from ip2p.track import track
from ip2p.world.truth import Reading, Truth, read_edit, truth_of

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class HeldOut:
    """Held-out triplets with their truths and text features."""

    triplets: list[Triplet]
    truths: list[Truth]
    text_0_BD: Tensor
    text_1_BD: Tensor
    image_0_BD: Tensor

    def sources(self) -> Tensor:
        """Source pictures, `images_BCHW`."""
        return torch.stack([t.source_CHW for t in self.truths])


@dataclass(frozen=True)
class Point:
    """One system at one setting: means over the held-out edits, with 95% bootstrap intervals of what is judged."""

    system: str
    setting: dict[str, float]
    image_similarity: float
    direction_similarity: float
    done: float
    stayed: float
    success: float
    distance: float
    intervals: dict[str, tuple[float, float]]
    by_type: dict[str, dict[str, float]]


def run(params: Params, *, editor: Path, triplets: Path, out: Path, progress: Progress = lambda done, of: None) -> StageReport:
    """Evaluate the editor folder; writes `report.json`, curves and grids to `out`."""
    began = time.monotonic()
    section = params.evaluate
    device = resolve_device(params.models.device)
    if params.models.threads:
        torch.set_num_threads(params.models.threads)
    dtype = resolve_dtype(params.models.dtype, device)
    clip, model = load_clip(params.models.clip, device=device), load_editor(editor, device=device, dtype=dtype)
    teacher = load_diffusion(params.models.teacher, device=device, dtype=dtype)
    held = held_out(params, triplets, clip, size=model.image_size)
    points, pictures = _measure(section, model, teacher, clip, held, progress)
    headline = next(p for p in points if p.system == "editor" and _is_headline(p, section))
    _write_pictures(points, headline, pictures, held, out)
    report = {"editor": digest(editor)} | _report(params, points, headline, held)
    write_json(out / "report.json", report)
    with track(params.track, "evaluate", {"held_out": report["held_out"]}) as tracked:
        tracked.metrics(_numbers(headline))
        for name in ("curve.png", "types.png", "grid.png"):
            tracked.file(out / name)
    return StageReport(
        stage="evaluate", seen=len(held.triplets), kept=len(held.triplets), seconds=time.monotonic() - began, extra=dict(_numbers(headline))
    )


def held_out(params: Params, triplets: Path, clip: Clip, *, size: int) -> HeldOut:
    """Triplets whose captions were not trained on, with what can be computed once."""
    used = frozenset(t.caption.text for t in read_triplets(triplets))
    fresh = list(write_triplets(count=params.evaluate.count, stream=f"{params.seed}/evaluate", avoid=used))
    truths = [truth_of(t.caption.text, t.instruction, seed=_seed(t), size=size) for t in fresh]
    return HeldOut(
        fresh,
        truths,
        text_features(clip, [t.caption.text for t in fresh]),
        text_features(clip, [t.edited_caption for t in fresh]),
        image_features(clip, torch.stack([t.source_CHW for t in truths])),
    )


def measure(system: str, setting: dict[str, float], edited_BCHW: Tensor, held: HeldOut, clip: Clip) -> Point:
    """Score one system's edits of all held-out sources."""
    image_1 = image_features(clip, edited_BCHW)
    scores = similarities(held.image_0_BD, image_1, held.text_0_BD, held.text_1_BD)
    readings = [read_edit(x, t) for x, t in zip(edited_BCHW, held.truths, strict=True)]
    rows = {
        "done": [float(r.done) for r in readings],
        "stayed": [float(r.stayed) for r in readings],
        "success": [float(r.done and r.stayed) for r in readings],
        "distance": [r.distance for r in readings],
        "image_similarity": scores.image.tolist(),
        "direction_similarity": scores.direction.tolist(),
    }
    means = {k: sum(v) / len(v) for k, v in rows.items()}
    return Point(system, setting, **means, intervals={k: bootstrap(v) for k, v in rows.items()}, by_type=_by_type(held, readings))


def bootstrap(values: list[float], *, rounds: int = 1000) -> tuple[float, float]:
    """95% percentile interval of the mean."""
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(0, len(values), (rounds, len(values)), generator=generator)
    means = torch.tensor(values, dtype=torch.float64)[picks].mean(1)
    return float(means.quantile(0.025)), float(means.quantile(0.975))


@torch.inference_mode()
def sdedit(
    teacher: Diffusion,
    sources_BCHW: Tensor,
    captions: list[str],
    seeds: list[int],
    *,
    strength: float,
    steps: int,
    guidance: float,
    solver: Solver = "euler_ancestral",
) -> Tensor:
    """SDEdit with the teacher: noise the source to `strength` of the schedule, denoise with the edited caption."""
    scheduler: Any = teacher.scheduler
    prediction = scheduler.config.prediction_type
    steps = max(2, round(steps * strength))
    schedule = make_schedule(scheduler.alphas_cumprod, steps=steps, prediction=prediction, solver=solver, start=strength)
    latents = encode_images(teacher, sources_BCHW)[0] * teacher.vae.config.scaling_factor
    context = torch.cat([encode_text(teacher, [""]).expand(len(captions), -1, -1), encode_text(teacher, captions)])

    def predict(x: Tensor, timestep: Tensor, i: int) -> Tensor:
        return run_guided(teacher, x, timestep, context, guidance)

    noise = draw_noise(seeds, tuple(latents.shape[1:]), len(schedule.timesteps)).to(teacher.device)
    return decode_latents(teacher, sample(predict, schedule, noise, start_BCHW=latents))


def _measure(
    section: EvaluateParams, model: Diffusion, teacher: Diffusion, clip: Clip, held: HeldOut, progress: Progress
) -> tuple[list[Point], dict[str, Tensor]]:
    """All points of the report, and the pictures of those that the grid shows."""
    sweep = [(section.text_guidance, s) for s in section.image_guidance_sweep]
    sweep += [(s, section.image_guidance) for s in section.text_guidance_sweep]
    if (section.text_guidance, section.image_guidance) not in sweep:
        sweep.insert(0, (section.text_guidance, section.image_guidance))
    total = len(sweep) + len(section.sdedit_strengths)
    pictures = {"source": held.sources(), "truth": torch.stack([t.target_CHW for t in held.truths])}
    points = [measure("source", {}, pictures["source"], held, clip), measure("truth", {}, pictures["truth"], held, clip)]
    for s_text, s_image in sweep:
        edited = _edit_all(section, model, held, s_text, s_image)
        points.append(measure("editor", {"text_guidance": s_text, "image_guidance": s_image}, edited, held, clip))
        if _is_headline(points[-1], section):
            pictures["editor"] = edited
        progress(len(points) - 2, total)
    for strength in section.sdedit_strengths:
        edited = _sdedit_all(section, teacher, held, strength)
        points.append(measure("sdedit", {"strength": strength}, edited, held, clip))
        if points[-1] is best_sdedit(points):
            pictures["sdedit"] = edited
        progress(len(points) - 2, total)
    return points, pictures


def best_sdedit(points: list[Point]) -> Point | None:
    """The SDEdit baseline at its most successful strength."""
    return max((p for p in points if p.system == "sdedit"), key=lambda p: p.success, default=None)


def _edit_all(section: EvaluateParams, model: Diffusion, held: HeldOut, s_text: float, s_image: float) -> Tensor:
    def edit(some: slice) -> Tensor:
        requests = [EditRequest(t.instruction, s_text, s_image, _seed(t)) for t in held.triplets[some]]
        return edit_batch(model, held.sources()[some], requests, edit_options(section))

    return _in_batches(section, held, edit)


def _sdedit_all(section: EvaluateParams, teacher: Diffusion, held: HeldOut, strength: float) -> Tensor:
    options = {"strength": strength, "steps": section.steps, "guidance": section.sdedit_guidance, "solver": section.solver}

    def edit(some: slice) -> Tensor:
        captions, seeds = [t.edited_caption for t in held.triplets[some]], [_seed(t) for t in held.triplets[some]]
        return sdedit(teacher, held.sources()[some], captions, seeds, **options)  # type: ignore[arg-type]

    return _in_batches(section, held, edit)


def _in_batches(section: EvaluateParams, held: HeldOut, edit: Callable[[slice], Tensor]) -> Tensor:
    return torch.cat([edit(slice(i, i + section.batch)).cpu() for i in range(0, len(held.triplets), section.batch)])


def _seed(triplet: Triplet) -> int:
    return random.Random(f"evaluate/{triplet.id}").getrandbits(31)


def _is_headline(point: Point, section: EvaluateParams) -> bool:
    return point.setting == {"text_guidance": section.text_guidance, "image_guidance": section.image_guidance}


def _by_type(held: HeldOut, readings: list[Reading]) -> dict[str, dict[str, float]]:
    table: dict[str, dict[str, float]] = {}
    for type in sorted({t.edit_type for t in held.triplets}):
        own = [r for r, t in zip(readings, held.triplets, strict=True) if t.edit_type == type]
        flags = {"done": [float(r.done) for r in own], "stayed": [float(r.stayed) for r in own]}
        table[type] = {"count": len(own)} | {k: sum(v) / len(v) for k, v in flags.items()}
        low, high = bootstrap(flags["done"])
        table[type] |= {"done_low": low, "done_high": high}
    return table


def _numbers(point: Point) -> dict[str, float]:
    names = ("done", "stayed", "success", "distance", "image_similarity", "direction_similarity")
    return {n: getattr(point, n) for n in names}


def _report(params: Params, points: list[Point], headline: Point, held: HeldOut) -> dict[str, Any]:
    ids = [t.id for t in held.triplets]
    best = best_sdedit(points)
    return {
        "held_out": fingerprint("held-out", ids, code_mark("world/truth.py")),
        "count": len(ids),
        "headline": asdict(headline),
        "baselines": {"source": _numbers(points[0])} | ({"sdedit": _numbers(best) | best.setting} if best else {}),
        "truth": _numbers(points[1]),
        "points": [asdict(p) for p in points],
    }


def _write_pictures(points: list[Point], headline: Point, pictures: dict[str, Tensor], held: HeldOut, out: Path) -> None:
    write_bytes(out / "curve.png", plot_curves([asdict(p) for p in points]))
    write_bytes(out / "types.png", plot_types(headline.by_type))
    shown = range(min(12, len(held.triplets)))
    systems = [n for n in SHOWN if n in pictures]
    rows = [[to_pillow(pictures[n][i]) for n in systems] for i in shown]
    buffer = out / "grid.png"
    buffer.parent.mkdir(parents=True, exist_ok=True)
    sheet = grid([a + b for a, b in zip(rows[::2], rows[1::2], strict=False)])
    sheet.save(buffer)
    names = [{"instruction": held.triplets[i].instruction, "edit_type": held.triplets[i].edit_type} for i in shown]
    for i in shown:
        for name in systems:
            path = out / "examples" / f"{i:02d}-{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            to_pillow(pictures[name][i]).save(path)
    write_json(out / "examples.json", names)
