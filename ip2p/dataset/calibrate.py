"""Labelled pairs → thresholds for the CLIP filter, by edit type, with precision and recall before and after.

Labels are a person's verdicts (`{"pair_id": …, "good": true}` a line, for pairs of data/pairs) or, without a file, the
world's truth: renders before and after an edit are good; the second picture of another edit, of the source itself, or of
the same scene laid out anew is not. Thresholds are found on one half of the triplets and judged on the other.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
import yaml
from torch import Tensor

from ip2p.clip import image_features, load_clip, similarities, text_features
from ip2p.dataset.captions import read_jsonl
from ip2p.dataset.filters.chain import Chain
from ip2p.dataset.measures import measure_pairs
from ip2p.dataset.read import read_scores
from ip2p.dataset.synthesis import similar
from ip2p.dataset.world_writer import write_triplets
from ip2p.diffusion import reconstruct
from ip2p.errors import DataError
from ip2p.models import load_diffusion, placement
from ip2p.params import FilterParams, Params, TypeThresholds
from ip2p.pictures import from_pillow
from ip2p.store import fingerprint, shards, write_bytes, write_json
from ip2p.world.edits import apply_edit, sample_any_edit
from ip2p.world.language import read_caption, read_instruction
from ip2p.world.render import render

FEWEST = 10
"""Good labels (and as many bad ones) that an edit type needs to get a threshold of its own."""
_BATCH = 16
_LABEL = '{"pair_id": "…", "good": true}'
_CHAIN = ("clip", "alignment")
"""The filters that have thresholds to find."""
_GRIDS = {
    "direction": [i / 50 for i in range(-10, 48)],
    "shift": [0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 1.0],
    "zoom": [0.01, 0.06, 1.0],
    "outside": [0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 1.0],
}
_NAMES = ["pair_id", "triplet_id", "edit_type", "edit_prompt"]
_COLUMNS = [*_NAMES, "sim_0", "sim_1", "sim_image", "sim_direction", "shift", "zoom", "outside"]


@dataclass(frozen=True)
class Labels:
    """Scores of pairs, as the filters read them, and whether each pair belongs into the dataset."""

    table: pa.Table
    good: npt.NDArray[np.bool_]

    def part(self, mask: npt.NDArray[np.bool_]) -> Labels:
        """The labels of a mask's rows."""
        return Labels(self.table.filter(pa.array(mask)), self.good[mask])

    def of(self, edit_type: str) -> Labels:
        """The labels of an edit type."""
        return self.part(self.types == edit_type)

    @property
    def types(self) -> npt.NDArray[np.object_]:
        """The edit type of each row."""
        found: npt.NDArray[np.object_] = self.table["edit_type"].to_numpy(zero_copy_only=False)
        return found


@dataclass(frozen=True, slots=True)
class Quality:
    """How a filter does on labels: share of what it keeps that is good, and share of the good that it keeps."""

    precision: float
    recall: float
    kept: int

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0


def measure(labels: Labels, section: FilterParams) -> Quality:
    """Precision and recall of the filters on labels (of a triplet, all that pass count)."""
    plain = section.model_copy(update={"keep": len(labels.good) + 1, "chain": tuple(c for c in section.chain if c in _CHAIN)})
    kept = Chain(plain).decide(labels.table).kept
    hits = int((kept & labels.good).sum())
    return Quality(hits / max(1, int(kept.sum())), hits / max(1, int(labels.good.sum())), int(kept.sum()))


def choose(labels: Labels, section: FilterParams) -> FilterParams:
    """The section with the thresholds that give the best F1.

    A common direction, shift, zoom and change outside, each in turn; then each edit type's own direction where labels suffice.
    """
    section = section.model_copy(update={"direction": -1.0, "shift": 1.0, "zoom": 1.0, "outside": 1.0, "by_type": {}})
    for name in ("direction", "shift", "zoom", "outside", "direction"):
        section = section.model_copy(update={name: _best(labels, section, name)})
    by_type = {}
    for edit_type in sorted(set(labels.types.tolist())):
        own = labels.of(edit_type)
        if min(own.good.sum(), (~own.good).sum()) >= FEWEST:
            by_type[edit_type] = TypeThresholds(direction=_best(own, section, "direction"))
    return section.model_copy(update={"by_type": by_type})


def read_labels(path: Path, pairs: Path) -> Labels:
    """A person's verdicts on pairs of a folder. Raises `DataError` naming the first bad line."""
    verdicts: dict[str, bool] = {}
    for number, row in read_jsonl(path, _LABEL):
        if not isinstance(row.get("pair_id"), str) or not isinstance(row.get("good"), bool):
            raise DataError(f"{path}:{number}: not a label; write {_LABEL}")
        verdicts[row["pair_id"]] = row["good"]
    table = pa.concat_tables(read_scores(shard, _COLUMNS) for shard in shards(pairs))
    table = table.filter(pc.is_in(table["pair_id"], value_set=pa.array(list(verdicts), pa.string())))
    if len(table) < len(verdicts):
        raise DataError(f"{path}: {len(verdicts) - len(table)} of {len(verdicts)} labelled pairs are not in {pairs}")
    return Labels(table, np.array([verdicts[i] for i in table["pair_id"].to_pylist()]))


def world_labels(params: Params, count: int, progress: Callable[[int, int], None] = lambda done, of: None) -> Labels:
    """Four labelled pairs of each of `count` triplets, whose truth the world knows; pictures as the autoencoder draws them."""
    device, dtype = placement(params.models)
    clip = load_clip(params.models.clip, device=device)
    teacher = load_diffusion(params.models.teacher, device=device, dtype=dtype)
    triplets = list(write_triplets(count=count, stream=f"{params.seed}/calibrate"))
    rows: list[dict[str, Any]] = []
    for first in range(0, count, _BATCH):
        some = triplets[first : first + _BATCH]
        drawn = [_pictures(t.caption.text, t.instruction, first + i, teacher.image_size) for i, t in enumerate(some)]
        source, *seconds = (reconstruct(teacher, torch.stack(column)) for column in zip(*drawn, strict=True))
        texts = [text_features(clip, x) for x in ([t.caption.text for t in some], [t.edited_caption for t in some])]
        before = image_features(clip, source)
        for kind, second in enumerate(seconds):
            features = before, image_features(clip, second)
            scores = similar(similarities(*features, *texts))
            for t, measures in zip(some, measure_pairs(source, second, scores, features), strict=True):
                named = dict(zip(_NAMES, (f"{t.id}-{kind}", t.id, t.edit_type, t.instruction), strict=True))
                rows.append(named | {"good": kind == 0} | measures)
        progress(min(count, first + _BATCH), count)
    table = pa.Table.from_pylist(rows)
    return Labels(table, table["good"].to_numpy(zero_copy_only=False))


def run(
    params: Params, *, labels: Path | None, pairs: Path, out: Path, count: int = 220, progress: Callable[[int, int], None]
) -> list[str]:
    """Calibrate; writes `calibration.json`, `.png` and `.yaml` (for params.yaml) to `out`; returns what to print."""
    known = read_labels(labels, pairs) if labels else world_labels(params, count, progress)
    if min(known.good.sum(), (~known.good).sum()) < FEWEST:
        raise DataError(f"{labels or 'labels'}: {len(known.good)} labels do not suffice; give at least {FEWEST} good and {FEWEST} bad ones")
    triplets = known.table["triplet_id"].to_pylist()
    half = np.array([int(fingerprint("calibrate", params.seed, t), 16) % 2 == 0 for t in triplets])  # a triplet's labels stay together
    fit, judged = known.part(half), known.part(~half)
    if min(n for part in (fit, judged) for n in (part.good.sum(), (~part.good).sum())) < FEWEST // 4:
        raise DataError(
            f"{labels or 'labels'}: too few of one kind in either half (thresholds are judged on the other); label more triplets"
        )
    chosen = choose(fit, params.filter)
    sections = {"reference": FilterParams(), "params.yaml": params.filter, "calibrated": chosen}
    table = {name: measure(judged, section) for name, section in sections.items()}
    by_type = {t: x.model_dump(exclude_none=True, by_alias=True) for t, x in chosen.by_type.items()}
    found = {"direction": chosen.direction, "shift": chosen.shift, "zoom": chosen.zoom, "outside": chosen.outside, "by_type": by_type}
    write_json(out / "calibration.json", {n: asdict(q) | {"f1": q.f1} for n, q in table.items()} | {"found": found})
    write_bytes(out / "calibration.png", plot_calibration(judged, chosen))
    write_bytes(out / "calibration.yaml", yaml.safe_dump({"filter": found}, sort_keys=False).encode())
    rows = [f"{n:12} precision {q.precision:.3f}  recall {q.recall:.3f}  F1 {q.f1:.3f}" for n, q in table.items()]
    return [
        f"{len(judged.good)} labels held back from the choice",
        *rows,
        f"wrote {out}/calibration.yaml (for params.yaml) and calibration.png",
    ]


def plot_calibration(labels: Labels, chosen: FilterParams) -> bytes:
    """Precision against recall as the threshold on direction moves, each edit type's line and chosen point; PNG bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    thresholds = [i / 50 for i in range(-10, 46)]
    types = sorted(set(labels.types.tolist()))
    for number, edit_type in enumerate([*types, ""]):
        own = labels.of(edit_type) if edit_type else labels
        plain = chosen.model_copy(update={"by_type": {}})
        line = [measure(own, plain.model_copy(update={"direction": t})) for t in thresholds]
        line = [q for q in line if q.kept]
        colour, width = ("black", 2.2) if not edit_type else (f"C{number % 10}", 1.0)
        axes.plot([q.recall for q in line], [q.precision for q in line], color=colour, linewidth=width, label=edit_type or "all")
        point = measure(own, chosen)
        axes.plot(point.recall, point.precision, "o", color=colour, markersize=5)
    axes.set_xlabel("recall: good pairs that are kept")
    axes.set_ylabel("precision: kept pairs that are good")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncol=2)
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _best(labels: Labels, section: FilterParams, name: str) -> float:
    """The value of one threshold with the best F1, the middle one of equals; the section's own where the labels do not tell."""
    scored = [(measure(labels, section.model_copy(update={name: value})).f1, value) for value in _GRIDS[name]]
    best = [value for f1, value in scored if f1 == max(scored)[0]]
    return best[len(best) // 2] if len(best) < len(scored) else float(getattr(section, name))


def _pictures(caption: str, instruction: str, seed: int, size: int) -> tuple[Tensor, ...]:
    """Source, true edit, another edit, the source again, and the true edit laid out anew, `CHW` each."""
    scene = read_caption(caption)
    edited = apply_edit(scene, read_instruction(instruction))
    rng = random.Random(f"other/{seed}")
    other = edited
    while other == edited:
        other = apply_edit(scene, sample_any_edit(scene, rng))
    scenes = ((scene, seed), (edited, seed), (other, seed), (scene, seed), (edited, seed + 10**6))
    return tuple(from_pillow(render(s, seed=n, size=size)) for s, n in scenes)
