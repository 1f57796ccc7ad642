"""Our dataset → a layout of others, and back: `export_dataset`, `import_pairs`, `lint`."""

from __future__ import annotations

import importlib
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import torch
import torch.nn.functional as F

from ip2p.clip import Clip, image_features, load_clip, similarities, text_features
from ip2p.dataset.exchange import LAYOUTS
from ip2p.dataset.exchange.example import Example, read_dataset
from ip2p.dataset.filter import split_of
from ip2p.dataset.measures import measure_pairs
from ip2p.dataset.synthesis import similar
from ip2p.errors import DataError
from ip2p.models import model_digest, resolve_device
from ip2p.params import Params
from ip2p.pictures import from_bytes, open_picture
from ip2p.records import BY_CAPTION, PAIRS, SPLITS, StageReport
from ip2p.safety import Safety, load_safety
from ip2p.store import code_mark, fingerprint, read_shards, replace_folder, shard_mark, write_shard

_SHARD, _SIDE = 64, 512
"""Rows a shard of imported pairs, or more if a triplet's pairs go on; longest side at which pictures are measured."""
CODE = (
    *(f"{n}.py" for n in ("clip", "models", "pictures", "records", "safety")),
    *(f"dataset/{n}.py" for n in ("alignment", "exchange/move", "looks", "measures", "synthesis", "thresholds")),
)
"""What decides what a pair scores."""
_SIZES, _BROKEN = "the two pictures differ in size", "a picture is missing or broken"
_TOLD = 10
"""Broken pictures that are told one by one."""


def export_dataset(dataset: Path, layout: str, out: Path) -> int:
    """Write a dataset in a layout; `out` appears whole or not at all. Returns the number of examples."""
    if out.exists():
        raise DataError(f"{out}: exists already; name a new folder, or delete it first")
    staging = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    count: int = _layout(layout).write(read_dataset(dataset), staging)
    if not count:
        shutil.rmtree(staging, ignore_errors=True)
        raise DataError(f"{dataset}: holds no examples; run `dvc repro filter` first")
    (staging / "README.md").write_text(card(dataset), encoding="utf-8")
    staging.replace(out)
    return count


def import_pairs(source: Path, layout: str, out: Path, params: Params, progress: Callable[[int], None] = lambda count: None) -> StageReport:
    """Read pairs of a layout, score them as `pairs` does, and write them as shards for `filter`; reports as `pairs` would.

    `filter` splits anew: examples for testing that it would train on are left out. Raises `DataError` for one that has a single caption.
    """
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out}: holds pairs already; delete it first (what was made can be made again), or name a new folder with -o")
    began, device = time.monotonic(), resolve_device(params.models.device)
    clip = load_clip(params.models.clip, device=device)
    safety = load_safety(params.models.safety, device=device) if params.models.safety else None
    staging = out.with_name(f".{out.name}.tmp")
    models = (model_digest(params.models.clip, "clip"), params.models.safety and model_digest(params.models.safety, "safety"))
    dropped: Counter[str] = Counter()
    types: Counter[str] = Counter()
    written: set[Path] = set()
    seen: set[str] = set()
    scattered = 0
    examples = (_captioned(e, source) for e in _layout(layout).read(source))
    for number, some in enumerate(_whole_triplets(_usable(examples, params.filter.splits, dropped))):
        path = staging / f"pairs-{number:05d}.parquet"
        mark = fingerprint("import", layout, models, code_mark(*CODE), [e.content for e in some])
        if shard_mark(path) != mark:  # else an earlier import got so far
            write_shard(path, _scored(some, clip, safety), mark)
        triplets = {e.triplet_id for e in some}
        scattered += len(triplets & seen)
        seen |= triplets
        written.add(path)
        types.update(e.edit_type for e in some)
        progress(types.total())
    if not types:
        raise DataError(f"{source}: holds no examples to train on")
    for stale in set(staging.iterdir()) - written:
        stale.unlink()
    replace_folder(staging, out)
    return StageReport(
        stage="pairs",
        seen=types.total() + dropped.total(),
        kept=types.total(),
        seconds=time.monotonic() - began,
        dropped_by_reason=dict(dropped.most_common()),
        kept_by_edit_type=dict(sorted(types.items())),
        extra={"imported": layout, "triplets_in_several_shards": scattered},
    )


def _usable(examples: Iterator[Example], splits: tuple[float, float], dropped: Counter[str]) -> Iterator[Example]:
    """The examples, with ids, but those for testing that would be trained on, of two sizes or broken: `dropped` counts these by reason.

    Examples of one picture that come without ids are one triplet's, whatever their captions: so they lie in one split.
    """
    of_picture: dict[str, str] = {}
    for example in examples:
        known = example.identified(of_picture)
        texts = (known.original_prompt, known.edit_prompt, known.edited_prompt)
        if known.split == "test" and split_of(known.triplet_id, *texts, splits) != "test":
            dropped["for testing there, for training here"] += 1
            continue
        try:
            sizes = _sizes(known, known.where or known.pair_id)
        except DataError as error:
            dropped[_BROKEN] += 1
            if dropped[_BROKEN] <= _TOLD:
                print(f"import: left out: {error}", file=sys.stderr, flush=True)
            continue
        if len(sizes) > 1:
            dropped[_SIZES] += 1
        else:
            yield known


def _sizes(example: Example, where: str) -> set[tuple[int, int]]:
    """Of the two pictures; one if they are equal. Raises `DataError` naming `where` if one cannot be decoded."""
    return {open_picture(x, where=where).size for x in (example.original_image, example.edited_image)}


def _captioned(example: Example, source: Path) -> Example:
    """The example with both captions or, as people's edits often are, with none."""
    before, after = example.original_prompt.strip(), example.edited_prompt.strip()
    if bool(before) != bool(after):
        raise DataError(f"{example.where or source}: {example.identified().pair_id} has one caption; caption both pictures, or neither")
    return replace(example, original_prompt=before, edited_prompt=after)


def _whole_triplets(examples: Iterator[Example]) -> Iterator[list[Example]]:
    """Shards' worth of examples; neighbours of one triplet stay together, for the filter ranks a triplet's pairs within a shard."""
    held: list[Example] = []
    for example in examples:
        if len(held) >= _SHARD and (example.triplet_id != held[-1].triplet_id or len(held) >= 16 * _SHARD):
            yield held
            held = []
        held.append(example)
    if held:
        yield held


def lint(source: Path, layout: str) -> list[str]:
    """What a trainer that reads this layout would stumble over, a line each; empty if nothing."""
    problems: list[str] = []
    splits: dict[str, set[str]] = {}
    seen: Counter[str] = Counter()
    examples = _until_broken(_layout(layout).read(source), problems)
    for number, e in enumerate(examples, 1):
        where = f"example {number}" + (f" ({e.pair_id})" if e.pair_id else "")
        try:
            sizes = _sizes(e, where)
        except DataError as error:
            problems.append(str(error))
            continue
        if len(sizes) > 1:
            problems.append(f"{where}: {_SIZES}")
        if not e.edit_prompt.strip():
            problems.append(f"{where}: no instruction")
        if e.split not in SPLITS:
            problems.append(f"{where}: split {e.split!r} is none of {', '.join(SPLITS)}")
        seen[e.split] += 1
        splits.setdefault(e.triplet_id or where, set()).add(e.split)
    problems += [f"triplet {t}: in {len(s)} splits" for t, s in splits.items() if len(s) > 1]
    return problems if seen["train"] else [*problems, "no training examples"]


def _until_broken(examples: Iterator[Example], problems: list[str]) -> Iterator[Example]:
    """The examples up to one that cannot be read at all, which is a problem, too."""
    try:
        yield from examples
    except DataError as error:
        problems.append(f"{error}; what comes after it was not looked at")


def _made(p2p: pa.ChunkedArray) -> str:
    """How pairs came about, by what those of ip2p's own making have: no word of a licence, which is for their owner to give."""
    own, brought = len(p2p) - p2p.null_count, p2p.null_count
    told = f"{own} pairs made by ip2p: triplets of caption, instruction and edited caption; images by Prompt-to-Prompt." if own else ""
    return f"{told} {brought} pairs brought in from elsewhere, under the terms of their source.".strip() if brought else told


def card(dataset: Path) -> str:
    """The dataset card: what is in it, in figures."""
    table = pa.concat_tables(
        read_shards(dataset, f"{s}-", columns=["split", "edit_type", "p2p"]) for s in SPLITS if any(dataset.glob(f"{s}-*.parquet"))
    )
    counts = Counter(zip(table["split"].to_pylist(), table["edit_type"].to_pylist(), strict=True))
    splits = {s: sum(n for (split, _), n in counts.items() if split == s) for s in SPLITS}
    types = sorted({t for _, t in counts})
    rows = "\n".join(f"| {t} | " + " | ".join(str(counts[s, t]) for s in SPLITS) + " |" for t in types)
    return f"""---
task_categories: [image-to-image]
tags: [instruction-based image editing, instruct-pix2pix]
---
# Image edits by instruction

{_made(table["p2p"])} Kept by CLIP and the chain of filters. Splits are by triplet. {sum(splits.values())} examples:
{", ".join(f"{s} {n}" for s, n in splits.items())}.

| edit type | train | validation | test |
|---|---|---|---|
{rows}

Columns: `original_prompt`, `original_image`, `edit_prompt`, `edited_prompt`, `edited_image`, then `edit_type`, `triplet_id`,
`pair_id`, `split`, `seed`.
"""


def _layout(name: str) -> ModuleType:
    if name not in LAYOUTS:
        raise DataError(f"layout {name!r} is unknown; one of {', '.join(LAYOUTS)}")
    return importlib.import_module(f"ip2p.dataset.exchange.{name}")


def _scored(examples: list[Example], clip: Clip, safety: Safety | None) -> pa.Table:
    parts = (examples[i : i + _SHARD] for i in range(0, len(examples), _SHARD))  # a triplet may have many, which no memory holds at once
    measured = [measures for part in parts for measures in _measured(part, clip, safety)]
    rows = [
        {
            "original_prompt": e.original_prompt,
            "original_image": {"bytes": e.original_image, "path": f"{e.pair_id}_0.png"},
            "edit_prompt": e.edit_prompt,
            "edited_prompt": e.edited_prompt,
            "edited_image": {"bytes": e.edited_image, "path": f"{e.pair_id}_1.png"},
            "pair_id": e.pair_id,
            "triplet_id": e.triplet_id,
            "edit_type": e.edit_type,
            "seed": e.seed,
            "p2p": None,
            "guidance": None,
            **measures,
            **({} if e.original_prompt else dict.fromkeys(BY_CAPTION)),
        }
        for e, measures in zip(examples, measured, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=PAIRS)


def _measured(examples: list[Example], clip: Clip, safety: Safety | None) -> list[dict[str, Any]]:
    """Scores of each pair as `pairs` measures its own, at its pictures' size (or `_SIDE`, if they are larger); equal sizes go together."""
    pairs = [[_sized(from_bytes(x, where=e.pair_id)) for x in (e.original_image, e.edited_image)] for e in examples]
    groups: dict[torch.Size, list[int]] = {}
    for i, (first, _) in enumerate(pairs):
        groups.setdefault(first.shape, []).append(i)
    found: dict[int, dict[str, Any]] = {}
    for rows in groups.values():
        before, after = (torch.stack([pairs[i][n] for i in rows]) for n in (0, 1))
        texts = [text_features(clip, [getattr(examples[i], n) for i in rows]) for n in ("original_prompt", "edited_prompt")]
        features = image_features(clip, before), image_features(clip, after)
        scores = similar(similarities(*features, *texts))
        found |= dict(zip(rows, measure_pairs(before, after, scores, features, safety), strict=True))
    return [found[i] for i in range(len(examples))]


def _sized(image_CHW: torch.Tensor) -> torch.Tensor:
    """The image, or if it is larger than `_SIDE` a side, scaled down to that."""
    share = _SIDE / max(image_CHW.shape[-2:])
    if share >= 1:
        return image_CHW
    size = [max(1, round(s * share)) for s in image_CHW.shape[-2:]]
    return F.interpolate(image_CHW[None], size=size, mode="bicubic", antialias=True)[0].clamp(0, 1)
