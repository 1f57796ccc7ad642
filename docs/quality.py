"""How good the editor of `make run` is, measured at length: `python docs/quality.py` after `make run` (an hour; resumes).

More held-out edits than a run takes, a wider sweep of both scales and of SDEdit's strengths (paper Fig. 8), and editors trained
alike on other data (Fig. 10). Writes the second part of docs/world.md and its pictures; the first is `ip2p world report`'s.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from ip2p.model import ablate, evaluate
from ip2p.params import Params, load_params
from ip2p.stages import DATASET, EDITOR, PAIRS, REPORTS, TRIPLETS, WORK
from ip2p.store import read_json
from ip2p.world.report import QUALITY, write_part

PAGE, IMAGES, OUT = Path("docs/world.md"), Path("docs/img"), Path("reports/quality")
COUNT = 264
WIDER = {
    "count": COUNT,
    "image_guidance_sweep": (1.0, 1.2, 1.4, 1.6, 2.0),
    "text_guidance_sweep": (1.0, 3.0, 5.0),
    "sdedit_strengths": (0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
}
MEASURES = ("success", "done", "stayed", "l1", "direction_similarity", "image_similarity")


def main() -> None:
    """Measure and write."""
    params = load_params(Path("params.yaml"))
    paths = {"dataset": DATASET, "triplets": TRIPLETS}
    wide, narrow = told(params, **WIDER), told(params, count=COUNT, sdedit_strengths=())
    evaluate.run(wide, editor=EDITOR, out=OUT / "evaluation", work=WORK / "quality", progress=progress("evaluate"), **paths)
    ablate.run(
        narrow,
        variants=ablate.VARIANTS,
        pairs=PAIRS,
        trained=EDITOR,
        out=OUT / "ablation",
        work=WORK / "ablate",
        progress=progress("ablate"),
        **paths,
    )
    IMAGES.mkdir(parents=True, exist_ok=True)
    for source, target in (("evaluation/curve", "curve"), ("evaluation/extremes", "extremes"), ("ablation/curve", "ablation")):
        shutil.copyfile(OUT / f"{source}.png", IMAGES / f"{target}.png")
    write_part(PAGE, QUALITY, markdown(params, read_json(OUT / "evaluation/report.json"), read_json(OUT / "ablation/report.json")))


def told(params: Params, **changes: Any) -> Params:
    """The parameters with another `evaluate` section."""
    return params.model_copy(update={"evaluate": params.evaluate.model_copy(update=changes)})


def progress(name: str) -> Any:
    """Tell how far it is."""
    return lambda done, of: print(f"{name} {done}/{of}", file=sys.stderr, flush=True)


def markdown(params: Params, report: dict[str, Any], ablation: dict[str, Any]) -> str:
    """The second part of the page."""
    section, training = params.evaluate, params.train
    systems = {"the editor": report["headline"], **{f"{n} (baseline)": p for n, p in report["baselines"].items()}}
    systems["the truth, as rendered"] = report["truth"]
    sdedit, kept = report["baselines"]["sdedit"], read_json(REPORTS / "filter.json")
    return f"""Written by `python docs/quality.py` after `make run`. {report["count"]} held-out edits, seeds fixed; the editor has seen
{ablation["pairs"]["filtered"]} pairs in {training.steps} steps of {training.batch}. An edit is *done* if where it belongs the picture
is nearer the truth than the source; the rest *stayed* if its structure did; *success* is both, read in pixels by a checker whose
own error is in ARCHITECTURE.md. Square brackets: 95% bootstrap intervals.
Scales: s_T {section.text_guidance:g}, s_I {section.image_guidance:g}.

| | {" | ".join(n.replace("_", " ") for n in MEASURES)} |
{"|---" * (len(MEASURES) + 1)}|
{rows(systems)}

SDEdit stands at its best strength ({sdedit["strength"]:g} of {sdedit["steps"]:g} steps) and is told the whole edited caption, the
editor the instruction alone. Paired over the same edits, the editor's success exceeds SDEdit's by
{difference(report["paired"]["sdedit"]["success"])}.

## By edit type
Counting and moving are what the method is known to be bad at. `truth` is the editor trained alike on true pairs: the upper bound
of what data can do for this training.

| | edits | done | success of the editor | trained on the truth |
|---|---|---|---|---|
{types(report, ablation)}

Best (first row), median and worst edits, each with its source at the left:

![best, median and worst edits](img/extremes.png)

## Fig. 8: both similarities over the scales
{figure_8(report)}

![CLIP image similarity against direction similarity](img/curve.png)

## Fig. 10: what the data are worth
The same training on the filtered pairs, on as many drawn from all that were made, on a tenth of the triplets, and on the truth.
The filter kept {kept["kept"]:,} of the {kept["seen"]:,} pairs: the first two are much the same pairs.

| data | pairs | {" | ".join(n.replace("_", " ") for n in MEASURES)} |
{"|---" * (len(MEASURES) + 2)}|
{variants(ablation)}

![the same curves for editors trained on other data](img/ablation.png)
"""


def figure_8(report: dict[str, Any]) -> str:
    """Whether the editor's curve lies above SDEdit's where both have been measured, in words."""
    curve = sorted((p["direction_similarity"], p["image_similarity"]) for p in report["points"] if p["system"] == "sdedit")
    ours = report["headline"]
    direction, image = ours["direction_similarity"], ours["image_similarity"]
    least, held = min(curve)
    told = f"At its scales the editor holds an image similarity of {image:.3f} at a direction similarity of {direction:.3f}"
    if direction <= least:
        place = "below" if image < held else "above"
        return f"{told}; SDEdit's weakest edit holds {held:.3f} at {least:.3f}. The editor's curve lies {place} SDEdit's."
    nearest = min(curve, key=lambda p: abs(p[0] - direction))
    place = "below" if image < nearest[1] else "above"
    return f"{told}, SDEdit {nearest[1]:.3f} at {nearest[0]:.3f}. The editor's curve lies {place} SDEdit's there."


def rows(systems: dict[str, dict[str, Any]]) -> str:
    """A line a system; intervals where they are known."""
    return "\n".join(f"| {name} | {cells(point)} |" for name, point in systems.items())


def cells(point: dict[str, Any]) -> str:
    """The measures of a system."""
    known = point.get("intervals", {})
    return " | ".join(f"{point[n]:.3f}" + (f" [{known[n][0]:.2f}, {known[n][1]:.2f}]" if n in known else "") for n in MEASURES)


def variants(ablation: dict[str, Any]) -> str:
    """A line a variant of the data."""
    return "\n".join(f"| {name} | {ablation['pairs'][name]} | {cells(point)} |" for name, point in ablation["headline"].items())


def types(report: dict[str, Any], ablation: dict[str, Any]) -> str:
    """A line an edit type, the most often done first."""
    ours, bound = report["headline"]["by_type"], ablation["headline"]["truth"]["by_type"]
    order = sorted(ours, key=lambda t: -ours[t]["success"])
    return "\n".join(
        f"| {t} | {ours[t]['count']:.0f} | {ours[t]['done']:.2f} | "
        f"{ours[t]['success']:.2f} [{ours[t]['success_low']:.2f}, {ours[t]['success_high']:.2f}] | {bound[t]['success']:.2f} |"
        for t in order
    )


def difference(paired: dict[str, float]) -> str:
    """A paired difference with its interval."""
    return f"{paired['difference']:+.3f} [{paired['low']:+.3f}, {paired['high']:+.3f}]"


if __name__ == "__main__":
    main()
