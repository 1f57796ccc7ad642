"""What the data are worth (paper Fig. 10): `python docs/ablation.py` after `make run` (an hour and a half on two cores; resumes).

Editors trained alike from the teacher (`params/teacher.yaml`) on filtered pairs and on others; and once more on pairs of which
a third is wrong, for the world's teacher seldom is. Writes a part of docs/world.md and its pictures.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from quality import COUNT, IMAGES, MEASURES, PAGE, cells, difference, progress, ranked, teacher

from ip2p.clip import image_features, load_clip
from ip2p.dataset import filter, pairs
from ip2p.model import ablate
from ip2p.params import Params, load_params
from ip2p.pictures import from_bytes
from ip2p.stages import DATASET, PAIRS, TRIPLETS, WORK
from ip2p.store import read_json, read_shards
from ip2p.world.reading import read_choices
from ip2p.world.report import write_part

HEADING = "# What the data are worth"
"""Of the part of the page that this script writes."""
OTHERS = {"random": "random ones", "tenth": "a tenth", "truth": "the truth"}
TEACHER = Path("params/teacher.yaml")
HOME, OUT = WORK / "ablate", Path("reports/ablation")
ROUGH_HOME, ROUGH_OUT = WORK / "ablate-rough", Path("reports/ablation-rough")
ROUGH: dict[str, Any] = {"method": "both", "p2p": (0.9, 1.0)}
"""Attention shared almost to the end, which undoes a third of the edits (docs/world.md, "What Prompt-to-Prompt adds")."""


def main() -> None:
    """Measure and write."""
    params = load_params(TEACHER).changed("evaluate", count=COUNT, sdedit_strengths=())
    paths = {"pairs": PAIRS, "dataset": DATASET, "out": OUT, "work": HOME}
    ablate.run(params, variants=ablate.VARIANTS, triplets=TRIPLETS, progress=progress("ablate"), **paths)
    make_rough(params)
    paths = {"pairs": ROUGH_HOME / "pairs", "dataset": ROUGH_HOME / "dataset", "out": ROUGH_OUT, "work": ROUGH_HOME / "ablate"}
    double = params.changed("evaluate", count=2 * COUNT)
    ablate.run(double, variants=("filtered", "random"), triplets=TRIPLETS, progress=progress("ablate, rough pairs"), **paths)
    for out, name in ((OUT, "ablation"), (ROUGH_OUT, "ablation-rough")):
        shutil.copyfile(out / "curve.png", IMAGES / f"{name}.png")
    write_part(PAGE, HEADING, markdown(read_json(OUT / "report.json"), read_json(ROUGH_OUT / "report.json")))


def make_rough(params: Params) -> None:
    """The same triplets' pairs with other parameters, filtered."""
    params = params.changed("pairs", **ROUGH)
    made, kept = ROUGH_HOME / "pairs", ROUGH_HOME / "dataset"
    pairs.run(params, triplets=TRIPLETS, out=made, work=ROUGH_HOME / "units")
    filter.run(params, pairs=made, out=kept, work=ROUGH_HOME / "filter")


def right(made: Path, dataset: Path) -> tuple[tuple[int, float], tuple[int, float]]:
    """Of the pairs that the filter keeps and of all: how many, and the share that shows the edit, as CLIP reads it."""
    clip = load_clip("world", device=torch.device("cpu"))
    columns = ["pair_id", "original_prompt", "edit_prompt", "original_image", "edited_image"]
    rows = read_shards(made, columns=columns).to_pylist()
    features: list[torch.Tensor] = []
    for name in ("original_image", "edited_image"):
        pictures = [
            torch.stack([from_bytes(r[name]["bytes"], where=r["pair_id"]) for r in rows[i : i + 64]]) for i in range(0, len(rows), 64)
        ]
        features.append(torch.cat([image_features(clip, x) for x in pictures]))
    shown = [read_choices(clip, r["original_prompt"], r["edit_prompt"]).made(*fs) for r, *fs in zip(rows, *features, strict=True)]
    kept = {v["pair_id"] for v in read_shards(dataset / "verdicts", columns=["pair_id", "kept"]).to_pylist() if v["kept"]}
    chosen = [s for r, s in zip(rows, shown, strict=True) if r["pair_id"] in kept]
    return (len(chosen), sum(chosen) / len(chosen)), (len(shown), sum(shown) / len(shown))


def markdown(report: dict[str, Any], rough: dict[str, Any]) -> str:
    """That part of the page."""
    gains = [f"{told} {difference(report['paired'][n]['success'])}" for n, told in OTHERS.items()]
    gained = rough["paired"]["random"]
    low, high = ROUGH["p2p"]
    return f"""Written by `python docs/ablation.py` after `make run`, with the teacher `{teacher()}`.
The same training from the teacher ([{report["steps"]} steps](../{TEACHER})) on the filtered pairs, on as many drawn from all that were
made, on a tenth of the triplets, and on the truth, the edits that a perfect teacher would have made (paper Fig. 10).
{report["count"]} held-out edits.

{table(report)}

Success on the filtered pairs less that on others, edit by edit: {", ".join(gains)}.

Success by edit type when trained on the filtered pairs: {types(report["headline"]["filtered"])}.
On the truth: {types(report["headline"]["truth"])}.

![the same curves for editors trained on other data](img/ablation.png)

## What the filter is worth
{shares(PAIRS, DATASET)}:
the first two rows above are much the same pairs. Worse ones show what it is for: attention shared for {low:.0%} to {high:.0%} of the steps,
cross-attention too, which undoes edits.
{shares(ROUGH_HOME / "pairs", ROUGH_HOME / "dataset")}.
The same triplets, the same training, {rough["count"]} held-out edits:

{table(rough)}

Filtered less random, edit by edit: success {difference(gained["success"])}, done {difference(gained["done"])},
direction similarity {difference(gained["direction_similarity"])}, image similarity {difference(gained["image_similarity"])}.

![the curves for editors trained on rough pairs, filtered and not](img/ablation-rough.png)
"""


def table(report: dict[str, Any]) -> str:
    """A line a variant."""
    variants = "\n".join(f"| {name} | {report['pairs'][name]} | {cells(point)} |" for name, point in report["headline"].items())
    return f"""| data | pairs | {" | ".join(n.replace("_", " ") for n in MEASURES)} |
{"|---" * (len(MEASURES) + 2)}|
{variants}"""


def shares(made: Path, dataset: Path) -> str:
    """How many pairs the filter keeps, and how many of those and of all are right."""
    (kept, good), (count, usual) = right(made, dataset)
    return f"The filter kept {kept:,} of the {count:,} pairs; CLIP reads the edit off {good:.0%} of those and off {usual:.0%} of all"


def types(point: dict[str, Any]) -> str:
    """Success of each edit type."""
    told = point["by_type"]
    return ", ".join(f"{t} {told[t]['success']:.2f}" for t in ranked(told))


if __name__ == "__main__":
    main()
