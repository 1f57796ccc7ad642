"""Pictures of an evaluation for people: the first edits by every system; the editor's best, median and worst."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ip2p.model.heldout import HeldOut
from ip2p.model.measure import Edit, Point
from ip2p.pictures import encoded, from_bytes, grid, to_pillow
from ip2p.records import SHOWN
from ip2p.sheets import Panel, sheet
from ip2p.store import write_bytes, write_json

_EXAMPLES = 12
_EXTREMES = 4


def ranked(point: Point, count: int = _EXTREMES) -> dict[str, list[int]]:
    """The best, median and worst edits: by success, then by distance from the target or by direction similarity."""
    number = len(next(iter(point.rows.values())))
    second = [-x for x in point.rows["l1"]] if "l1" in point.rows else point.rows.get("direction_similarity", [0.0] * number)
    first = [a + b for a, b in zip(point.rows["done"], point.rows["stayed"], strict=True)] if "done" in point.rows else [0.0] * number
    order = sorted(range(number), key=lambda i: (first[i], second[i]), reverse=True)
    count = min(count, number)
    middle = (number - count) // 2
    return {"best": order[:count], "median": order[middle : middle + count], "worst": order[-count:]}


def _kept(point: Point, some: slice) -> Tensor:
    return torch.stack([from_bytes(point.picture(i), where="picture") for i in range(some.start, some.stop)])


def _write_extremes(headline: Point, held: HeldOut, out: Path) -> None:
    """The editor's best, median and worst edits, each beside its source and its target, if it has one."""
    views: dict[str, Edit] = {"source": held.sources, "editor": partial(_kept, headline)}
    if held.targeted:
        views["truth"] = held.targets
    extremes: dict[str, list[str]] = {}
    rows: list[list[Panel]] = []
    for name, indices in ranked(headline).items():
        extremes[name] = [held.edits[i].instruction for i in indices]
        rows.append([])
        for place, i in enumerate(indices):
            images = {view: to_pillow(of(slice(i, i + 1))[0]) for view, of in views.items()}
            for view, image in images.items():
                write_bytes(out / "extremes" / f"{name}-{place}-{view}.png", encoded(image))
            rows[-1].append((f"{name}: {held.edits[i].instruction}", list(images.values())))
    write_bytes(out / "extremes.png", encoded(sheet(rows, heads=list(views))))
    write_json(out / "extremes.json", extremes)


def write_examples(headline: Point, held: HeldOut, out: Path, *, sdedit: Edit | None) -> None:
    """The first edits by every system, and the editor's best, median and worst, each as files, and as one sheet (`out`)."""
    shown = range(min(_EXAMPLES, len(held.edits)))
    systems: dict[str, Edit] = {"source": held.sources, "editor": partial(_kept, headline)}
    if sdedit is not None:
        systems["sdedit"] = sdedit
    if all(held.edits[i].target is not None for i in shown):
        systems["truth"] = held.targets
    pictures = {n: [to_pillow(x) for x in systems[n](slice(0, len(shown))).cpu()] for n in SHOWN if n in systems}
    for name, images in pictures.items():
        for i, image in enumerate(images):
            write_bytes(out / "examples" / f"{i:02d}-{name}.png", encoded(image))
    rows = [[images[i] for images in pictures.values()] for i in shown]
    write_bytes(out / "grid.png", encoded(grid([a + b for a, b in zip(rows[::2], rows[1::2], strict=False)] or rows)))
    edits = [{"instruction": e.instruction, "edit_type": e.edit_type} for e in held.edits[: len(shown)]]
    write_json(out / "examples.json", edits)
    _write_extremes(headline, held, out)
