"""How good the editor is that ships, beside the one that `make run` trains: `python docs/embedded.py` after `make run` (ten minutes).

Both make the same held-out edits, of captions that neither was trained on; the shipped one at 128 pixels, too. Writes a part of
docs/world.md and its pictures; `python docs/picture.py` then makes the README's of the same edits. Resumes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from quality import COUNT, IMAGES, PAGE, POINTS, comparison, difference, progress, ranked, table

from ip2p.dataset import triplets
from ip2p.dataset.read import read_triplets
from ip2p.model import evaluate
from ip2p.model.folder import model_card
from ip2p.model.measure import paired
from ip2p.model.plots import plot_curves
from ip2p.model.seen import NONE
from ip2p.models import EMBEDDED
from ip2p.params import Params, load_params
from ip2p.records import RECORD
from ip2p.release.export import export_editor
from ip2p.stages import DATASET, EDITOR, TRIPLETS, WORK
from ip2p.store import read_json
from ip2p.world.report import write_part

HEADING = "# The editor that ships"
"""Of the part of the page that this script writes."""
OUT = Path("reports/embedded")
LEGS = (Path("params/long.yaml"), Path("params/longer.yaml"), Path("params/gpu.yaml"), Path("params/sizes.yaml"), Path("params/weak.yaml"))
"""What the shipped editor was trained by, one after the other."""
WIDER = {
    "previous": None,
    "count": COUNT,
    "image_guidance": 1.2,
    "image_guidance_sweep": (1.0, 1.2, 1.4, 1.6, 2.0),
    "text_guidance_sweep": (1.0, 2.0, 3.0, 5.0),
    "sdedit_strengths": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
}
STRONGER: dict[str, Any] = WIDER | {"text_guidance": 2.0, "image_guidance": 1.4, "text_guidance_sweep": ()}
"""Another curve of Fig. 8: s_I moved where the text has more say."""
NAMES = {"shipped": "the shipped editor", "laptop": "the editor of `make run`"}
LARGE = "world-128"
FEW = {"previous": None, "count": COUNT, "image_guidance_sweep": (), "text_guidance_sweep": (), "sdedit_strengths": (0.2, 0.3, 0.4)}
CURVES = {
    "shipped": "the shipped editor",
    "stronger": f"the shipped editor at s_T {STRONGER['text_guidance']:g}",
    "laptop": "the editor of make run",
}
COLOURS = dict(zip((*CURVES.values(), "sdedit"), ("#d9480f", "#f59f00", "#2b8a3e", "#1971c2"), strict=True))


def main() -> None:
    """Measure and write."""
    params = load_params(Path("params.yaml"))
    work = WORK / "embedded"
    know_captions(work)
    editors = {"shipped": (EMBEDDED / "editor", WIDER), "stronger": (EMBEDDED / "editor", STRONGER), "laptop": (EDITOR, WIDER)}
    for name, (editor, how) in editors.items():
        paths = {"triplets": TRIPLETS, "dataset": DATASET, "out": OUT / name, "work": POINTS}
        evaluate.run(params.changed("evaluate", **how), editor=editor, progress=progress(name), **paths)
    measure_larger(params, work / LARGE)
    reports = {name: read_json(OUT / name / "report.json") for name in (*editors, LARGE)}
    IMAGES.mkdir(parents=True, exist_ok=True)
    (IMAGES / "long-curve.png").write_bytes(plot_curves(points(reports), COLOURS))
    shutil.copyfile(OUT / "shipped/extremes.png", IMAGES / "long-extremes.png")
    shutil.copyfile(OUT / LARGE / "extremes.png", IMAGES / "long-extremes-128.png")
    write_part(PAGE, HEADING, markdown(reports))
    card = model_card(read_json(EMBEDDED / "editor" / RECORD), reports["shipped"], embedded=True)
    (EMBEDDED / "editor/README.md").write_text(card, encoding="utf-8")


def know_captions(work: Path) -> None:
    """Write beside the shipped editor which captions it was trained on: those of all triplets that were made for it."""
    seen = NONE
    for leg in LEGS:
        triplets.run(load_params(leg), out=work / leg.stem, work=work)
        seen = seen.with_captions(t.caption.text for t in read_triplets(work / leg.stem))
    seen.write(EMBEDDED / "editor")


def measure_larger(params: Params, folder: Path) -> None:
    """The same edits by the shipped editor at 128 pixels, and by its teacher there."""
    shutil.rmtree(folder, ignore_errors=True)
    export_editor(LARGE, "diffusers", str(folder))
    params = params.changed("evaluate", **FEW).changed("models", teacher=LARGE)
    paths = {"triplets": TRIPLETS, "dataset": DATASET, "out": OUT / LARGE, "work": POINTS}
    evaluate.run(params, editor=folder, progress=progress(LARGE), **paths)


def points(reports: dict[str, Any]) -> list[dict[str, Any]]:
    """The curves of both editors, the shipped one's a second time, and SDEdit's."""
    ours = [p | {"system": told} for name, told in CURVES.items() for p in edited(reports[name])]
    return ours + [p for p in reports["shipped"]["points"] if p["system"] == "sdedit"]


def edited(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The editor's points of a report."""
    return [p for p in report["points"] if p["system"] == "editor"]


def markdown(reports: dict[str, Any]) -> str:
    """That part of the page."""
    shipped, laptop = reports["shipped"], reports["laptop"]
    record, own = read_json(EMBEDDED / "editor" / RECORD), read_json(EDITOR / RECORD)
    systems = {told: reports[name]["headline"] for name, told in NAMES.items()}
    systems |= {f"{n} (baseline)": p for n, p in shipped["baselines"].items()} | {"the truth, as rendered": shipped["truth"]}
    larger, stronger = reports[LARGE], reports["stronger"]
    further = [p for p in edited(stronger) if p not in shipped["points"]]
    at_128 = {
        "the shipped editor": larger["headline"],
        "sdedit (baseline)": larger["baselines"]["sdedit"],
        "the truth, as rendered": larger["truth"],
    }
    scales = shipped["headline"]["setting"]
    legs = [(leg, load_params(leg).train) for leg in LEGS]
    trained = ",\nthen ".join(f"[{leg}](../{leg}) ({section.steps:,} steps of {section.batch})" for leg, section in legs)
    return f"""Written by `python docs/embedded.py` after `make run`. The editor that ships with ip2p (`--model world`) was trained by
{trained},
the last on {record["pairs"]:,} pairs;
that of `make run` went on from it by {own["train"]["steps"]:,} steps of {own["train"]["batch"]} on {own["pairs"]:,}.
The same {shipped["count"]} held-out edits, of captions that neither was trained on;
scales s_T {scales["text_guidance"]:g}, s_I {scales["image_guidance"]:g}.
docs/log.md has the training's log and cost, [its card](../ip2p/world/weights/editor/README.md) what it is.

{table(systems)}

Edit by edit, the shipped editor's success minus that of `make run`'s is {difference(paired(shipped["rows"], laptop["rows"])["success"])},
minus SDEdit's {difference(shipped["paired"]["sdedit"]["success"])}.

| | shipped: done | stayed | success | `make run`: done | stayed | success |
|---|---|---|---|---|---|---|
{types(shipped, laptop)}

Its best, median and worst edits, by success and then by distance from the truth (which a dark picture has little of):

![best, median and worst edits](img/long-extremes.png)

## Fig. 8
{comparison({"points": shipped["points"] + further})}

At s_T {STRONGER["text_guidance"]:g} and s_I {STRONGER["image_guidance"]:g} success is {stronger["headline"]["success"]:.3f},
minus that at the scales of the tables {difference(paired(stronger["rows"], shipped["rows"])["success"])}.

![CLIP image similarity against direction similarity](img/long-curve.png)

## At 128 pixels
By the same weights (`--model {LARGE}`), the same edits on pictures of 128 pixels; SDEdit by the teacher there.

{table(at_128)}

Edit by edit, success minus that at 96 pixels is {difference(paired(larger["rows"], shipped["rows"])["success"])}, minus SDEdit's
{difference(larger["paired"]["sdedit"]["success"])}.
By edit type: {", ".join(f"{t} {point['success']:.2f}" for t, point in by_type(larger))}.

![best, median and worst edits at 128 pixels](img/long-extremes-128.png)
"""


def by_type(report: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Each edit type's figures, the most often done first."""
    told = report["headline"]["by_type"]
    return [(t, told[t]) for t in ranked(told)]


def types(shipped: dict[str, Any], laptop: dict[str, Any]) -> str:
    """A line an edit type, the most often done first."""
    theirs = laptop["headline"]["by_type"]

    def three(told: dict[str, float]) -> str:
        return f"{told['done']:.2f} | {told['stayed']:.2f} | {told['success']:.2f} [{told['success_low']:.2f}, {told['success_high']:.2f}]"

    return "\n".join(f"| {t} | {three(ours)} | {three(theirs[t])} |" for t, ours in by_type(shipped))


if __name__ == "__main__":
    main()
