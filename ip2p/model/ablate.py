"""What the data are worth (paper Fig. 10): editors trained alike on other data, over the sweep of guidance scales.

`filtered`: the dataset as it is. `random`: as many pairs, drawn from all that were made. `tenth`: a tenth of its triplets.
`truth`: in the world, the true edited pictures of the same triplets, which no teacher's pairs can beat.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ip2p.dataset.filter import SPLIT_BY, splits_of
from ip2p.errors import ParamsError
from ip2p.model import train
from ip2p.model.edit import open_editor
from ip2p.model.evaluate import editor_curve, open_bench
from ip2p.model.heldout import HeldOut, held_out
from ip2p.model.measure import Point, judged_by, paired
from ip2p.model.plots import plot_curves
from ip2p.model.seen import NONE, Seen, known_by
from ip2p.models import model_digest, placement
from ip2p.params import Params
from ip2p.pictures import to_png
from ip2p.records import RECORD
from ip2p.store import (
    digest,
    fingerprint,
    first_rows,
    read_json,
    read_shard,
    read_shards,
    replace_folder,
    shards,
    staging_of,
    write_bytes,
    write_json,
    write_shard,
)
from ip2p.world.language import LanguageError
from ip2p.world.truth import truth_of

_FACTS = ["pair_id", "triplet_id", "edit_type", "original_prompt", "edit_prompt", "edited_prompt"]
"""Of an example all but its pictures and scores."""
VARIANTS = ("filtered", "random", "tenth", "truth")


def run(
    params: Params,
    *,
    variants: Sequence[str],
    pairs: Path,
    dataset: Path,
    triplets: Path,
    out: Path,
    work: Path,
    trained: Path | None = None,
    steps: int | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[str]:
    """Train an editor on each variant of the data and compare them; writes `report.json` and `curve.png`. Resumes.

    An editor that was `trained` on the dataset itself with the same parameters is taken for `filtered` as it is.

    Returns a Markdown table, a line each.
    """
    if unknown := set(variants) - set(VARIANTS):
        raise ParamsError(f"--variants: {', '.join(sorted(unknown))} unknown; choose among {', '.join(VARIANTS)}")
    if params.train.start:
        raise ParamsError("train.start: an editor that was trained before hides what the data are worth; give --params params/teacher.yaml")
    if steps is not None and steps < 1:
        raise ParamsError(f"--steps: {steps} is out of range, give 1 or more")
    if "truth" in variants:
        _require_world(dataset)
    params = params.changed("train", steps=steps or params.train.steps)
    bench, held, curves = open_bench(params, work / "points"), None, {}
    for number, name in enumerate(variants):
        folder = work / name
        count = _make(name, params, pairs=pairs, dataset=dataset, out=folder / "dataset")
        write_json(folder / "validated.json", {"dataset": digest(folder / "dataset")})
        out_of = folder / "editor"
        if name == "filtered" and trained is not None and _is_trained_so(trained, params, dataset):
            out_of = trained
        else:
            train.run(params, dataset=folder / "dataset", marker=folder / "validated.json", out=out_of, work=folder / "train")
        editor = open_editor(out_of, params.models)
        held = held or held_out(params, triplets=triplets, dataset=dataset, size=editor.image_size, seen=_seen(params, pairs))
        curves[name] = (count, list(editor_curve(bench, editor, digest(out_of), held, system=name)))
        progress(number + 1, len(variants))
    report = _report(params, curves, held)
    write_json(out / "report.json", report)
    write_bytes(out / "curve.png", plot_curves(report["points"]))
    return _table(report)


def _seen(params: Params, pairs: Path) -> Seen:
    """The captions that any variant may be trained on: none is judged by one that another was."""
    table = read_shards(pairs, columns=list(SPLIT_BY))
    rows = zip(table.to_pylist(), splits_of(table, params.filter.splits), strict=True)
    return NONE.with_captions(known_by(r["original_prompt"], r["triplet_id"]) for r, split in rows if split == "train")


def _is_trained_so(editor: Path, params: Params, dataset: Path) -> bool:
    """Whether an editor's record says that it was trained on this dataset with these parameters."""
    if not (editor / RECORD).exists():
        return False
    record = read_json(editor / RECORD)
    _, dtype = placement(params.models)
    now = {"dataset": digest(dataset), "start_digest": model_digest(*train.start_of(params)), "seed": params.seed, "dtype": str(dtype)}
    return all(record.get(k) == v for k, v in (now | {"train": train.recorded(params.train)}).items())


def _require_world(dataset: Path) -> None:
    """Raise `ParamsError` unless the dataset's edits are the world's, whose true pictures can be drawn."""
    for row in first_rows(dataset, "train-", 1):
        try:
            truth_of(row["original_prompt"], row["edit_prompt"], seed=0, size=16)
        except LanguageError as error:
            others = " ".join(v for v in VARIANTS if v != "truth")
            raise ParamsError(f"--variants: nobody knows the truth of {dataset}'s edits ({error}); give --variants {others}") from error


def _report(params: Params, curves: dict[str, tuple[int, list[Point]]], held: HeldOut | None) -> dict[str, Any]:
    setting = {"text_guidance": params.evaluate.text_guidance, "image_guidance": params.evaluate.image_guidance}
    heads = {n: next(p for p in points if p.setting == setting) for n, (_, points) in curves.items()}
    first = next(iter(heads))
    types = [e.edit_type for e in held.edits] if held else []
    return {
        "steps": params.train.steps,
        "count": len(types),
        "judged_by": judged_by(heads[first].rows),
        "pairs": {n: count for n, (count, _) in curves.items()},
        "headline": {n: p.summary(types) for n, p in heads.items()},
        "paired": {n: paired(heads[first].rows, p.rows) for n, p in heads.items() if n != first},
        "points": [p.summary() for _, points in curves.values() for p in points],
    }


def _table(report: dict[str, Any]) -> list[str]:
    names = [
        n for n in ("success", "done", "stayed", "direction_similarity", "image_similarity") if n in next(iter(report["headline"].values()))
    ]
    lines = ["| data | pairs | " + " | ".join(n.replace("_", " ") for n in names) + " |", "|---" * (len(names) + 2) + "|"]
    for variant, point in report["headline"].items():
        numbers = [f"{point[n]:.3f} [{point['intervals'][n][0]:.2f}, {point['intervals'][n][1]:.2f}]" for n in names]
        lines.append(f"| {variant} | {report['pairs'][variant]} | " + " | ".join(numbers) + " |")
    return lines


def _make(name: str, params: Params, *, pairs: Path, dataset: Path, out: Path) -> int:
    """Write a variant of the dataset; returns its training pairs."""
    wanted = sum(len(read_shard(p, columns=["pair_id"])) for p in shards(dataset, "train-"))
    staging = staging_of(out)
    for other in dataset.glob("validation-*.parquet"):
        shutil.copy(other, staging / other.name)
    tables = {"filtered": _filtered, "random": _random, "tenth": _tenth, "truth": _truth}[name](params, pairs, dataset, wanted)
    count = 0
    for number, table in enumerate(tables):
        write_shard(staging / f"train-{number:05d}.parquet", table, fingerprint("ablate", name, table["pair_id"].to_pylist()))
        count += len(table)
    replace_folder(staging, out)
    return count


def _filtered(params: Params, pairs: Path, dataset: Path, wanted: int) -> Iterator[pa.Table]:
    yield from (read_shard(p) for p in shards(dataset, "train-"))


def _random(params: Params, pairs: Path, dataset: Path, wanted: int) -> Iterator[pa.Table]:
    """Pairs of training captions, whatever the filter says of them."""
    ids = []
    for path in shards(pairs):
        table = read_shard(path, columns=["pair_id", *SPLIT_BY])
        pairs_of = zip(table["pair_id"].to_pylist(), splits_of(table, params.filter.splits), strict=True)
        ids += [pair for pair, split in pairs_of if split == "train"]
    chosen = set(random.Random(f"ablate/{params.seed}").sample(sorted(ids), min(wanted, len(ids))))
    for path in shards(pairs):
        table = read_shard(path)
        table = table.filter(pa.array([i in chosen for i in table["pair_id"].to_pylist()]))
        if len(table):
            yield table


def _tenth(params: Params, pairs: Path, dataset: Path, wanted: int) -> Iterator[pa.Table]:
    paths = shards(dataset, "train-")
    triplets = {t for p in paths for t in read_shard(p, columns=["triplet_id"])["triplet_id"].to_pylist()}
    chosen = set(sorted(triplets, key=lambda t: fingerprint("tenth", t))[: max(1, len(triplets) // 10)])
    for path in paths:
        table = read_shard(path)
        table = table.filter(pa.array([t in chosen for t in table["triplet_id"].to_pylist()]))
        if len(table):
            yield table


def _truth(params: Params, pairs: Path, dataset: Path, wanted: int) -> Iterator[pa.Table]:
    """Rendered source and true edit of each training triplet."""
    size = train.load_base(params).image_size
    for path in shards(dataset, "train-"):
        rows = read_shard(path, columns=_FACTS).to_pylist()
        for row in rows:
            truth = truth_of(row["original_prompt"], row["edit_prompt"], seed=int(row["triplet_id"][:7], 16), size=size)
            for column, picture in (("original_image", truth.source_CHW), ("edited_image", truth.target_CHW)):
                row[column] = {"bytes": to_png(picture), "path": f"{row['pair_id']}-{column}.png"}
        yield pa.Table.from_pylist(rows)
