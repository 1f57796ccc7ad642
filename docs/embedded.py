"""How good the editor is that ships, beside the one that `make run` trains: `python docs/embedded.py` after `make run` (ten minutes).

Both make the same held-out edits, of captions that neither was trained on. Writes a part of docs/world.md and its pictures;
`python docs/picture.py` then makes the README's of the same edits. Resumes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from quality import COUNT, IMAGES, MEASURES, PAGE, POINTS, cells, comparison, difference, progress, ranked, told

from ip2p.dataset import triplets
from ip2p.dataset.read import read_triplets
from ip2p.model import evaluate
from ip2p.model.folder import model_card
from ip2p.model.measure import paired
from ip2p.model.plots import plot_curves
from ip2p.model.seen import NONE
from ip2p.models import EMBEDDED
from ip2p.params import load_params
from ip2p.records import RECORD
from ip2p.stages import DATASET, EDITOR, TRIPLETS, WORK
from ip2p.store import read_json
from ip2p.world.report import LONG, write_part

OUT = Path("reports/embedded")
LEGS = (Path("params/long.yaml"), Path("params/longer.yaml"), Path("params/gpu.yaml"))
"""What the shipped editor was trained by, one after the other."""
WIDER = {
    "previous": None,
    "count": COUNT,
    "image_guidance": 1.2,
    "image_guidance_sweep": (1.0, 1.2, 1.4, 1.6, 2.0),
    "text_guidance_sweep": (1.0, 2.0, 3.0, 5.0),
    "sdedit_strengths": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
}
NAMES = {"shipped": "the shipped editor", "laptop": "the editor of `make run`"}
COLOURS = {"the shipped editor": "#d9480f", "the editor of make run": "#2b8a3e", "sdedit": "#1971c2"}


def main() -> None:
    """Measure and write."""
    params = load_params(Path("params.yaml"))
    work = WORK / "embedded"
    know_captions(work)
    for name, editor in (("shipped", EMBEDDED / "editor"), ("laptop", EDITOR)):
        paths = {"triplets": TRIPLETS, "dataset": DATASET, "out": OUT / name, "work": POINTS}
        evaluate.run(told(params, **WIDER), editor=editor, progress=progress(name), **paths)
    reports = {name: read_json(OUT / name / "report.json") for name in NAMES}
    IMAGES.mkdir(parents=True, exist_ok=True)
    (IMAGES / "long-curve.png").write_bytes(plot_curves(points(reports), COLOURS))
    shutil.copyfile(OUT / "shipped/extremes.png", IMAGES / "long-extremes.png")
    write_part(PAGE, LONG, markdown(reports))
    card = model_card(read_json(EMBEDDED / "editor" / RECORD), reports["shipped"], embedded=True)
    (EMBEDDED / "editor/README.md").write_text(card, encoding="utf-8")


def know_captions(work: Path) -> None:
    """Write beside the shipped editor which captions it was trained on: those of all triplets that were made for it."""
    seen = NONE
    for leg in LEGS:
        triplets.run(load_params(leg), out=work / leg.stem, work=work)
        seen = seen.with_captions(t.caption.text for t in read_triplets(work / leg.stem))
    seen.write(EMBEDDED / "editor")


def points(reports: dict[str, Any]) -> list[dict[str, Any]]:
    """The curves of both editors and SDEdit's."""
    ours = [p | {"system": NAMES[n].replace("`", "")} for n, r in reports.items() for p in r["points"] if p["system"] == "editor"]
    return ours + [p for p in reports["shipped"]["points"] if p["system"] == "sdedit"]


def markdown(reports: dict[str, Any]) -> str:
    """That part of the page."""
    shipped, laptop = reports["shipped"], reports["laptop"]
    record, own = read_json(EMBEDDED / "editor" / RECORD), read_json(EDITOR / RECORD)
    systems = {NAMES[n]: r["headline"] for n, r in reports.items()}
    systems |= {f"{n} (baseline)": p for n, p in shipped["baselines"].items()} | {"the truth, as rendered": shipped["truth"]}
    lines = "\n".join(f"| {name} | {cells(point)} |" for name, point in systems.items())
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

| | {" | ".join(n.replace("_", " ") for n in MEASURES)} |
{"|---" * (len(MEASURES) + 1)}|
{lines}

Edit by edit the shipped editor's success exceeds that of `make run`'s by {difference(paired(shipped["rows"], laptop["rows"])["success"])},
SDEdit's by {difference(shipped["paired"]["sdedit"]["success"])}.

| | shipped: done | stayed | success | `make run`: done | stayed | success |
|---|---|---|---|---|---|---|
{types(shipped, laptop)}

Its best, median and worst edits, by success and then by distance from the truth (which a dark picture has little of):

![best, median and worst edits](img/long-extremes.png)

## Fig. 8
{comparison(shipped)}

![CLIP image similarity against direction similarity](img/long-curve.png)
"""


def types(shipped: dict[str, Any], laptop: dict[str, Any]) -> str:
    """A line an edit type, the most often done first."""
    ours, theirs = shipped["headline"]["by_type"], laptop["headline"]["by_type"]

    def three(told: dict[str, float]) -> str:
        return f"{told['done']:.2f} | {told['stayed']:.2f} | {told['success']:.2f} [{told['success_low']:.2f}, {told['success_high']:.2f}]"

    return "\n".join(f"| {t} | {three(ours[t])} | {three(theirs[t])} |" for t in ranked(ours))


if __name__ == "__main__":
    main()
