"""What the data are worth (paper Fig. 10): `python docs/ablation.py` after `make run` (forty minutes on two cores; resumes).

Editors trained alike from the teacher (`params/teacher.yaml`), on other data than the filtered pairs. Writes a part of docs/world.md
and its picture.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from quality import COUNT, IMAGES, MEASURES, PAGE, cells, difference, progress, ranked, teacher, told

from ip2p.model import ablate
from ip2p.params import load_params
from ip2p.stages import DATASET, PAIRS, REPORTS, TRIPLETS, WORK
from ip2p.store import read_json
from ip2p.world.report import ABLATION, write_part

OTHERS = {"random": "random ones", "tenth": "a tenth", "truth": "the truth"}
OUT, TEACHER = Path("reports/ablation"), Path("params/teacher.yaml")


def main() -> None:
    """Measure and write."""
    ablate.run(
        told(load_params(TEACHER), count=COUNT, sdedit_strengths=()),
        variants=ablate.VARIANTS,
        pairs=PAIRS,
        dataset=DATASET,
        triplets=TRIPLETS,
        out=OUT,
        work=WORK / "ablate",
        progress=progress("ablate"),
    )
    shutil.copyfile(OUT / "curve.png", IMAGES / "ablation.png")
    write_part(PAGE, ABLATION, markdown(read_json(OUT / "report.json")))


def markdown(report: dict[str, Any]) -> str:
    """That part of the page."""
    kept = read_json(REPORTS / "filter.json")
    variants = "\n".join(f"| {name} | {report['pairs'][name]} | {cells(point)} |" for name, point in report["headline"].items())
    gains = [f"{told} {difference(report['paired'][n]['success'])}" for n, told in OTHERS.items()]
    return f"""Written by `python docs/ablation.py` after `make run`, with the teacher `{teacher()}`.
{report["count"]} held-out edits. The same training from the teacher ([{report["steps"]} steps](../{TEACHER})) on the filtered pairs,
on as many drawn from all that were made, on a tenth of the triplets, and on the truth, the edits that a perfect teacher would have
made (paper Fig. 10). The filter kept {kept["kept"]:,} of the {kept["seen"]:,} pairs: the first two are much the same pairs.

| data | pairs | {" | ".join(n.replace("_", " ") for n in MEASURES)} |
{"|---" * (len(MEASURES) + 2)}|
{variants}

Success on the filtered pairs less that on others, edit by edit: {", ".join(gains)}.

Success by edit type when trained on the filtered pairs: {types(report["headline"]["filtered"])}.
On the truth: {types(report["headline"]["truth"])}.

![the same curves for editors trained on other data](img/ablation.png)
"""


def types(point: dict[str, Any]) -> str:
    """Success of each edit type."""
    told = point["by_type"]
    return ", ".join(f"{t} {told[t]['success']:.2f}" for t in ranked(told))


if __name__ == "__main__":
    main()
