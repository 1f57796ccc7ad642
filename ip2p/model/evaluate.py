"""Editor → evaluation report (paper §4.1, Fig. 8): held-out edits over both guidance scales, against baselines.

Every point is kept as it is measured, so an evaluation that was killed goes on. Baselines: the source as it is, SDEdit with the
teacher, an earlier editor (`evaluate.previous`); differences from them are paired, edit by edit.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ip2p.clip import load_clip
from ip2p.dataset.judge import Judge, Question, summary
from ip2p.diffusion import Diffusion
from ip2p.model.benchmarks import of_benchmark
from ip2p.model.edit import edit_batch, open_editor
from ip2p.model.examples import write_examples
from ip2p.model.guidance import EditRequest, edit_options
from ip2p.model.heldout import HeldOut, held_out, require_rest, seen_in
from ip2p.model.measure import Edit, Meter, Point, judged_by, load_dino, measure, paired, picture_name
from ip2p.model.plots import plot_curves, plot_types
from ip2p.model.sdedit import sdedit
from ip2p.model.seen import read_seen
from ip2p.models import editor_named, load_diffusion, model_digest, model_label, placement
from ip2p.params import EvaluateParams, JudgeParams, Params
from ip2p.records import MLFLOW_RUN, StageReport
from ip2p.store import code_mark, digest, fingerprint, read_json, replace_folder, staging_of, write_bytes, write_json
from ip2p.track import track

Progress = Callable[[int, int], None]
CODE = (
    *(f"model/{n}.py" for n in ("evaluate", "heldout", "measure", "edit", "guidance", "sdedit")),
    *(f"{n}.py" for n in ("sampler", "diffusion", "models", "clip", "pictures", "dataset/alignment")),
)
"""What decides what is sampled and measured."""


@dataclass(frozen=True)
class Bench:
    """What every point is measured with, and where points are kept."""

    params: Params
    meter: Meter
    teacher: Diffusion
    work: Path

    @cached_property
    def mark(self) -> str:
        """What tells whether two evaluations measured alike: protocol, models that measure, arithmetic, code.

        Not how edits are sampled: that is the editor's own, as it is served.
        """
        section, models = self.params.evaluate, self.params.models
        dino = model_digest(section.dino, "dino") if section.dino else None
        arithmetic = (str(self.teacher.dtype), models.compile)
        return fingerprint("measured", section.protocol, arithmetic, model_digest(models.clip, "clip"), dino, code_mark(*CODE))

    def point(self, system: str, setting: dict[str, float], held: HeldOut, edit: Edit, *identity: str, pictures: bool = True) -> Point:
        """Measure, or take what was measured before of the same system and edits; at the headline's scales pictures are kept."""
        section = self.params.evaluate
        sampled = asdict(edit_options(section))
        folder = self.work / fingerprint("point", system, setting, sampled, held.mark, self.mark, identity)
        keep = folder / "pictures" if pictures and setting == _scales(section) else None
        path = folder / "rows.json"
        pictured = keep is None or (keep / picture_name(len(held.edits) - 1)).exists()  # not if other scales were the headline's then
        if not (path.exists() and pictured):
            write_json(path, measure(held, self.meter, edit, batch=section.batch, keep=keep))
        return Point(system, setting, read_json(path), keep)


def run(
    params: Params, *, editor: Path, triplets: Path, dataset: Path, out: Path, work: Path, progress: Progress = lambda done, of: None
) -> StageReport:
    """Evaluate the editor folder; writes `report.json`, curves and grids to `out`."""
    began = time.monotonic()
    section = params.evaluate
    model, bench = open_editor(editor, params.models), open_bench(params, work)
    seen = seen_in(editor, section)
    held = held_out(params, triplets=triplets, dataset=dataset, size=model.image_size, seen=seen)
    identity = digest(editor)
    require_rest(params)
    limits: dict[str, Any] = {"count": section.count, "size": model.image_size, "seen": seen}
    others = {layout: of_benchmark(layout, Path(path), **limits) for layout, path in section.benchmarks.items()}
    points = _points(bench, model, identity, held, progress)
    headline = next(p for p in points if p.system == "editor" and p.setting == _scales(section))
    baselines = best_baselines(points, headline)
    report: dict[str, Any] = {
        "editor": identity,
        "held_out": held.mark,
        "measured": bench.mark,
        "count": len(held.edits),
        "judged_by": judged_by(headline.rows),
        "directed_by": "target" if held.by_target else "caption",
        "protocol": section.protocol,
        "previous": section.previous and model_label(section.previous, "editor"),
        "headline": headline.summary([e.edit_type for e in held.edits]),
        "baselines": {n: p.means() | p.setting for n, p in baselines.items()},
        "paired": {n: paired(headline.rows, p.rows) for n, p in baselines.items()},
        "truth": next((p.means() for p in points if p.system == "truth"), None),
        "points": [p.summary() for p in points],
        "rows": headline.rows,
        "edit_types": [e.edit_type for e in held.edits],
        "benchmarks": {layout: _benchmark(bench, model, identity, edits) for layout, edits in others.items()},
    }
    attempt = partial(_by_sdedit, bench, held, baselines["sdedit"].setting["strength"]) if "sdedit" in baselines else None
    _write(report, bench, headline, held, out, sdedit=attempt)
    for folder in set(work.glob("*/pictures")) - {p.pictures for p in points}:  # of earlier evaluations, whose numbers stay
        shutil.rmtree(folder, ignore_errors=True)
    with track(params.track, "evaluate", {"held_out": held.mark}) as tracked:
        tracked.metrics(headline.means())
        for name in ("curve.png", "types.png", "grid.png", "extremes.png"):
            tracked.file(out / name)
    count = len(held.edits)
    return StageReport(
        stage="evaluate", seen=count, kept=count, seconds=time.monotonic() - began, extra={**headline.means(), MLFLOW_RUN: tracked.id}
    )


def measure_again(params: Params, *, editor: Path, challenger: Path, triplets: Path, dataset: Path, work: Path) -> dict[str, Any]:
    """What the gate compares of an earlier editor's report, on the edits, and at the size, that the challenger's evaluation is of.

    `params.evaluate` has the scales and the sampling of that editor. `taught` are indices of edits whose pictures it was trained on.
    """
    size = open_editor(challenger, params.models).image_size  # not held while the champion is
    model, bench, setting = open_editor(editor, params.models), open_bench(params, work), _scales(params.evaluate)
    held = held_out(params, triplets=triplets, dataset=dataset, size=size, seen=seen_in(challenger, params.evaluate))
    point = bench.point("editor", setting, held, partial(_edited, bench, model, held, setting), digest(editor), pictures=False)
    known = read_seen(editor)
    return {
        "held_out": held.mark,
        "measured": bench.mark,
        "rows": point.rows,
        "edit_types": [e.edit_type for e in held.edits],
        "taught": [i for i, e in enumerate(held.edits) if e.is_in(known)],
    }


def open_bench(params: Params, work: Path) -> Bench:
    """Load what measures."""
    models, section = params.models, params.evaluate
    device, dtype = placement(models)
    if models.threads:
        torch.set_num_threads(models.threads)
    dino = load_dino(section.dino, device=device) if section.dino else None
    meter = Meter(load_clip(models.clip, device=device), legacy=section.protocol == "legacy", dino=dino)
    teacher = load_diffusion(models.teacher, device=device, dtype=dtype, compiled=models.compile)
    return Bench(params, meter, teacher, work)


def editor_curve(bench: Bench, model: Diffusion, identity: str, held: HeldOut, *, system: str = "editor") -> Iterator[Point]:
    """The editor over the sweep of both scales (paper Fig. 8)."""
    for setting in _sweep(bench.params.evaluate):
        yield bench.point(system, setting, held, partial(_edited, bench, model, held, setting), identity)


def _points(bench: Bench, model: Diffusion, identity: str, held: HeldOut, progress: Progress) -> list[Point]:
    section = bench.params.evaluate
    total = len(_sweep(section)) + len(section.sdedit_strengths) + bool(section.previous)
    points = [bench.point("source", {}, held, held.sources)]
    if held.known:
        points.append(bench.point("truth", {}, held, held.targets))
    for point in editor_curve(bench, model, identity, held):
        points.append(point)
        progress(len(points) - 1 - held.known, total)
    teacher = model_digest(bench.params.models.teacher, "teacher")
    for strength in section.sdedit_strengths:
        setting = {"strength": strength, "guidance": section.sdedit_guidance, "steps": float(section.sdedit_steps or section.steps)}
        points.append(bench.point("sdedit", setting, held, partial(_by_sdedit, bench, held, strength), teacher))
        progress(len(points) - 1 - held.known, total)
    if section.previous:
        setting, named = _scales(section), editor_named(section.previous)
        before = digest(named) if isinstance(named, Path) else model_digest(named, "editor")
        edit = partial(_edited, bench, open_editor(named, bench.params.models), held, setting)
        points.append(bench.point("previous", setting, held, edit, before))
        progress(total, total)
    return points


def best_baselines(points: list[Point], headline: Point) -> dict[str, Point]:
    """The source, SDEdit at its best strength, the previous editor.

    Its best by direction similarity alone would be the one that keeps least of the picture, which is not the better edit (paper Fig. 8):
    so then it is the best of those that keep as much as the editor does, or the one that keeps most if none does.
    """
    name = judged_by(points[0].rows)
    found = {"source": points[0]}
    if attempts := [p for p in points if p.system == "sdedit"]:
        kept = max(p.mean("image_similarity") for p in attempts)
        least = min(kept, headline.mean("image_similarity")) if name == "direction_similarity" else 0.0
        found["sdedit"] = max((p for p in attempts if p.mean("image_similarity") >= least), key=lambda p: p.mean(name))
    return found | {p.system: p for p in points if p.system == "previous"}


def _write(report: dict[str, Any], bench: Bench, headline: Point, held: HeldOut, out: Path, *, sdedit: Edit | None) -> None:
    """The report, what a judge says if one is asked, plots and pictures, in the place of an earlier evaluation's."""
    section, staging = bench.params.evaluate, staging_of(out)
    if section.judge is not None:
        report["judge"] = _judge(section.judge, headline, held, bench.work / "judge.jsonl", staging)
    write_json(staging / "report.json", report)
    write_bytes(staging / "curve.png", plot_curves(report["points"]))
    write_bytes(staging / "types.png", plot_types(report["headline"]["by_type"]))
    write_examples(headline, held, staging, sdedit=sdedit)
    replace_folder(staging, out)


def _benchmark(bench: Bench, model: Diffusion, identity: str, held: HeldOut) -> dict[str, Any]:
    setting = _scales(bench.params.evaluate)
    editor = bench.point("editor", setting, held, partial(_edited, bench, model, held, setting), identity, pictures=False)
    source = bench.point("source", {}, held, held.sources)
    types = [e.edit_type for e in held.edits]
    summary = {"count": len(types), "masked": held.masked, "editor": editor.summary(types), "source": source.means()}
    return summary | {"paired": paired(editor.rows, source.rows)}


def _judge(section: JudgeParams, headline: Point, held: HeldOut, journal: Path, out: Path) -> dict[str, Any]:
    """Let a vision language model judge the headline's edits; raw replies are kept."""
    questions = (Question(f"{e.id}-{i}", e.instruction, e.source, headline.picture(i)) for i, e in enumerate(held.edits))
    with Judge(section, journal) as judge:
        judge.ask(questions)
    write_json(out / "judgements.json", [asdict(j) for j in judge.judgements])
    return summary(judge.judgements)


def _sweep(section: EvaluateParams) -> list[dict[str, float]]:
    """The settings of the editor's curve, the headline's first if it is on neither line."""
    pairs = [(section.text_guidance, s) for s in section.image_guidance_sweep]
    pairs += [(s, section.image_guidance) for s in section.text_guidance_sweep]
    settings = [{"text_guidance": t, "image_guidance": i} for t, i in pairs]
    return settings if _scales(section) in settings else [_scales(section), *settings]


def _scales(section: EvaluateParams) -> dict[str, float]:
    return {"text_guidance": section.text_guidance, "image_guidance": section.image_guidance}


def _edited(bench: Bench, model: Diffusion, held: HeldOut, setting: dict[str, float], some: slice) -> Tensor:
    requests = [EditRequest(e.instruction, setting["text_guidance"], setting["image_guidance"], e.seed) for e in held.edits[some]]
    return edit_batch(model, held.sources(some), requests, edit_options(bench.params.evaluate))


def _by_sdedit(bench: Bench, held: HeldOut, strength: float, some: slice) -> Tensor:
    section, edits = bench.params.evaluate, held.edits[some]
    captions, seeds = [e.edited_caption or e.instruction for e in edits], [e.seed for e in edits]
    how = {"steps": section.sdedit_steps or section.steps, "guidance": section.sdedit_guidance}
    return sdedit(bench.teacher, held.sources(some), captions, seeds, strength=strength, solver=section.solver, **how)  # type: ignore[arg-type]
