"""Where each stage reads and writes, once: the command line, the flows and dvc.yaml agree on these paths (a test checks)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ip2p.params import Params
from ip2p.records import TRAINED, StageReport
from ip2p.remote import open_validated
from ip2p.store import Folder, write_json

Progress = Callable[[int, int], None]
Engine = Callable[[Params, list[Any], Path], Iterator[int]]
"""Who makes the units of pairs (ip2p/dataset/pairs.py); none: processes of this machine."""
STAGES = ("triplets", "pairs", "filter", "validate", "train", "evaluate", "register", "report")
TRIPLETS, PAIRS, DATASET = Path("data/triplets"), Path("data/pairs"), Path("data/dataset")
MARKER, EDITOR = Path("data/validated.json"), Path(TRAINED)
REPORTS, DOCS, EVALUATION, PAGE = Path("reports"), Path("reports/data_docs"), Path("reports/evaluation"), Path("reports/report.html")
WORK = Path("work")
TELLS = ("train",)
"""Stages that print by themselves how far they are."""


def run_stage(name: str, params: Params, *, progress: Progress = lambda done, of: None, engine: Engine | None = None) -> StageReport:
    """Run one stage on the project's own paths and write its report to `reports/{name}.json`."""
    report = _run(name, params, progress, engine)
    if os.environ.get("RANK", "0") == "0":  # of processes launched together, the first speaks
        write_json(REPORTS / f"{name}.json", report.as_dict())
    return report


def _validated(params: Params) -> tuple[Folder, Path]:
    """The dataset to train on and the marker of its validation: those here, else those of this version in the bucket."""
    here = DATASET.exists() and MARKER.exists()
    if params.storage.remote is not None:
        print(f"train: the dataset {'in data/, not that' if here else 'that dvc.lock names,'} in {params.storage.remote}", flush=True)
    if params.storage.remote is None or here:
        return DATASET, MARKER
    return open_validated(params.storage, lock=Path("dvc.lock"), dataset=DATASET, marker=MARKER, cache=WORK / "remote")


def _run(name: str, params: Params, progress: Progress, engine: Engine | None) -> StageReport:
    if name == "triplets":
        from ip2p.dataset import triplets

        return triplets.run(params, out=TRIPLETS, work=WORK / "triplets", progress=progress)
    if name == "pairs":
        from ip2p.dataset import pairs

        return pairs.run(params, triplets=TRIPLETS, out=PAIRS, work=WORK / "pairs", progress=progress, engine=engine)
    if name == "filter":
        from ip2p.dataset import filter

        return filter.run(params, pairs=PAIRS, out=DATASET, work=WORK / "filter")
    if name == "validate":
        from ip2p.dataset import validate

        return validate.run(params, dataset=DATASET, docs=DOCS, marker=MARKER, work=WORK / "validate")
    if name == "train":
        from ip2p.model import train

        dataset, marker = _validated(params)
        return train.run(params, dataset=dataset, marker=marker, out=EDITOR, work=WORK / "train", progress=progress)
    if name == "evaluate":
        from ip2p.model import evaluate

        paths = {"editor": EDITOR, "triplets": TRIPLETS, "dataset": DATASET, "out": EVALUATION, "work": WORK / "evaluate"}
        return evaluate.run(params, **paths, progress=progress)
    if name == "register":
        from ip2p.release import registry

        paths = {"editor": EDITOR, "evaluation": EVALUATION, "triplets": TRIPLETS, "dataset": DATASET, "work": WORK / "register"}
        return registry.run(params, **paths)
    if name == "report":
        from ip2p.model import report

        return report.run(params, reports=REPORTS, evaluation=EVALUATION, out=PAGE)
    raise ValueError(f"no stage {name!r}: one of {', '.join(STAGES)}")
