"""How good the editor of `make run` is, measured at length: `python docs/quality.py` after `make run` (ten minutes; resumes).

More held-out edits than a run takes, a wider sweep of both scales and of SDEdit's strengths (paper Fig. 8). Writes a part of
docs/world.md and its pictures; the first two are `ip2p world report`'s.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from ip2p.model import evaluate
from ip2p.models import model_digest
from ip2p.params import Params, load_params
from ip2p.records import RECORD
from ip2p.stages import DATASET, EDITOR, TRIPLETS, WORK
from ip2p.store import read_json
from ip2p.world.language import read_caption
from ip2p.world.report import write_part
from ip2p.world.scenes import STYLES

HEADING = "# What an editor learns in it"
"""Of the part of the page that this script writes."""
PAGE, IMAGES, OUT = Path("docs/world.md"), Path("docs/img"), Path("reports/quality")
POINTS = WORK / "quality"
"""What was measured, which docs/embedded.py need not measure again."""
COUNT = 264
WIDER = {
    "count": COUNT,
    "previous": None,  # docs/embedded.py compares with the editor that ships
    "image_guidance_sweep": (1.0, 1.2, 1.4, 1.6, 2.0),
    "text_guidance_sweep": (1.0, 3.0, 5.0),
    "sdedit_strengths": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
}
MEASURES = ("success", "done", "stayed", "l1", "direction_similarity", "image_similarity")


def main() -> None:
    """Measure and write."""
    params = load_params(Path("params.yaml"))
    paths = {"dataset": DATASET, "triplets": TRIPLETS}
    evaluate.run(params.changed("evaluate", **WIDER), editor=EDITOR, out=OUT, work=POINTS, progress=progress("evaluate"), **paths)
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name in ("curve", "extremes"):
        shutil.copyfile(OUT / f"{name}.png", IMAGES / f"{name}.png")
    write_part(PAGE, HEADING, markdown(params, read_json(OUT / "report.json")))


def teacher() -> str:
    """Which embedded teacher this is: the beginning of its digest."""
    return model_digest("world", "teacher")[:12]


def progress(name: str) -> Any:
    """Tell how far it is."""
    return lambda done, of: print(f"{name} {done}/{of}", file=sys.stderr, flush=True)


def markdown(params: Params, report: dict[str, Any]) -> str:
    """That part of the page."""
    section, training, own = params.evaluate, params.train, read_json(EDITOR / RECORD)
    systems = {"the editor": report["headline"], **{f"{n} (baseline)": p for n, p in report["baselines"].items()}}
    systems["the truth, as rendered"] = report["truth"]
    sdedit = report["baselines"]["sdedit"]
    return f"""Written by `python docs/quality.py` after `make run`. {report["count"]} held-out edits, seeds fixed. The editor went
on from `{own["start"]}` (below) by {training.steps} steps of {training.batch} on {own["pairs"]:,} new pairs of the teacher `{teacher()}`.
An edit is *done* if where it belongs the picture is nearer the truth than the source, and at least 30% of the way; the rest *stayed* if its
structure did (of an edit that leaves less than a tenth of the picture, as most of style, time and weather do, its edges must lie where the
source's or the truth's do);
*success* is both, read in pixels by a checker whose own error is in ARCHITECTURE.md. Square brackets: 95% bootstrap intervals.
Scales: s_T {section.text_guidance:g}, s_I {section.image_guidance:g}.

{table(systems)}

SDEdit stands at its best strength ({sdedit["strength"]:g} of {sdedit["steps"]:g} steps) and is told the whole edited caption, the
editor the instruction alone. Paired over the same edits, the editor's success exceeds SDEdit's by
{difference(report["paired"]["sdedit"]["success"])}.

## By edit type
Counting and moving are what the method is known to be bad at; moving is easy here.

| | edits | done | success |
|---|---|---|---|
{types(report)}

Best, median and worst edits, by success and then by distance from the truth (which a dark picture has little of):

![best, median and worst edits](img/extremes.png)

## Fig. 8: both similarities over the scales
{comparison(report)}

![CLIP image similarity against direction similarity](img/curve.png)
"""


def plain_firsts(edits: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Of edits by type and caption, the first of each type in the plain style, which shows best: their numbers."""
    plain = [(i, kind) for i, (kind, caption) in enumerate(edits) if read_caption(caption).style == STYLES[0]]
    return {kind: i for i, kind in reversed(plain)}


def table(systems: dict[str, dict[str, Any]]) -> str:
    """A line a system; intervals where they are known."""
    lines = "\n".join(f"| {name} | {cells(point)} |" for name, point in systems.items())
    return f"""| | {" | ".join(n.replace("_", " ") for n in MEASURES)} |
{"|---" * (len(MEASURES) + 1)}|
{lines}"""


def cells(point: dict[str, Any]) -> str:
    """The measures of a system."""
    known = point.get("intervals", {})
    return " | ".join(f"{point[n]:.3f}" + (f" [{known[n][0]:.2f}, {known[n][1]:.2f}]" if n in known else "") for n in MEASURES)


def types(report: dict[str, Any]) -> str:
    """A line an edit type, the most often done first."""
    ours = report["headline"]["by_type"]
    return "\n".join(
        f"| {t} | {ours[t]['count']:.0f} | {ours[t]['done']:.2f} | "
        f"{ours[t]['success']:.2f} [{ours[t]['success_low']:.2f}, {ours[t]['success_high']:.2f}] |"
        for t in ranked(ours)
    )


def ranked(by_type: dict[str, dict[str, float]]) -> list[str]:
    """Edit types, the most often done right first."""
    return sorted(by_type, key=lambda t: -by_type[t]["success"])


def difference(paired: dict[str, float]) -> str:
    """A paired difference with its interval."""
    return f"{paired['difference']:+.3f} [{paired['low']:+.3f}, {paired['high']:+.3f}]"


def comparison(report: dict[str, Any]) -> str:
    """At each of the editor's points, the image similarity that SDEdit holds at the same direction similarity, by interpolation."""
    curve = sorted((p["direction_similarity"], p["image_similarity"]) for p in report["points"] if p["system"] == "sdedit")
    points = [p for p in report["points"] if p["system"] == "editor"]
    ours = [(p["direction_similarity"], p["image_similarity"], p["setting"]) for p in points]
    rows, above, best, both = [], 0, 0, 0
    for direction, image, scales in sorted(ours, key=lambda point: point[:2]):
        held = interpolated(curve, direction)
        higher = image > held if held is not None else direction > curve[-1][0]
        unbeaten = not any(d > direction and i > image for d, i, _ in ours)
        above, best, both = above + higher, best + unbeaten, both + (higher and unbeaten)
        there = f"{held:.3f}" if held is not None else f"no edit so {'strong' if direction > curve[-1][0] else 'weak'}"
        rows.append(f"| {scales['text_guidance']:g} | {scales['image_guidance']:g} | {direction:.3f} | {image:.3f} | {there} |")
    table = "\n".join(rows)
    return f"""The editor's points lie above SDEdit's curve, or beyond the strongest of its edits, at {above} of {len(ours)} scales; of the
{best} that no other scales of the editor exceed in both similarities, {both} do.

| s_T | s_I | direction similarity | image similarity of the editor | of SDEdit there |
|---|---|---|---|---|
{table}"""


def interpolated(curve: list[tuple[float, float]], x: float) -> float | None:
    """The curve's height at x, or None where it does not reach."""
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0) if x1 > x0 else y0
    return None


if __name__ == "__main__":
    main()
