"""How often `ip2p.world.truth` is wrong, and its thresholds on structure: `python benchmarks/calibrate_checker.py`.

Pictures whose answer is known go through the autoencoder, as every edit does. The true edit must read as done and stayed,
the untouched source as stayed and not done, another edit of the same scene as not done, and a new picture of the edited
caption (another layout: all that was asked for, nothing of what was given) as not stayed; nor must the truth out of focus, or all
of its mean colour, be a success. Edits of a part of the picture and of all of it have a table each.
"""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F

from ip2p.dataset.world_writer import write_triplets
from ip2p.models import load_diffusion, resolve_device
from ip2p.pictures import from_pillow
from ip2p.world.edits import apply_edit, sample_any_edit
from ip2p.world.language import read_caption
from ip2p.world.render import render
from ip2p.world.report import reconstruct
from ip2p.world.truth import Reading, read_edit, truth_of

COUNT, SIZE, FOCUS = 660, 96, 25
PARTS = {"a part of the picture": (0.6, 0.65, 0.7, 0.75, 0.8, 0.85), "the whole picture": (0.3, 0.35, 0.4, 0.45, 0.5, 0.55)}


def main() -> None:
    teacher = load_diffusion("world", device=resolve_device("auto"))
    triplets = list(write_triplets(count=COUNT, stream="calibrate-checker"))
    truths = [truth_of(t.caption.text, t.instruction, seed=i, size=SIZE) for i, t in enumerate(triplets)]
    targets = torch.stack([t.target_CHW for t in truths])
    pictures = {
        "true edit": targets,
        "source": torch.stack([t.source_CHW for t in truths]),
        "wrong edit": torch.stack([_other(t.caption.text, i) for i, t in enumerate(triplets)]),
        "new picture": torch.stack(
            [from_pillow(render(read_caption(t.edited_caption), seed=10**9 + i, size=SIZE)) for i, t in enumerate(triplets)]
        ),
        "blurred": F.avg_pool2d(targets, FOCUS, stride=1, padding=FOCUS // 2, count_include_pad=False),
        "one colour": targets.mean((2, 3), keepdim=True).expand_as(targets),
    }
    readings = {n: [read_edit(x, t) for x, t in zip(reconstruct(teacher, p), truths, strict=True)] for n, p in pictures.items()}
    parts = [bool(t.beyond_HW.any()) for t in truths]
    for (part, thresholds), wanted in zip(PARTS.items(), (True, False), strict=True):
        table({n: [r for r, p in zip(rows, parts, strict=True) if p is wanted] for n, rows in readings.items()}, part, thresholds)
    table(readings, "all")


def table(readings: dict[str, list[Reading]], part: str, thresholds: tuple[float, ...] = ()) -> None:
    """How readings of each kind of picture come out, and how many would pass other thresholds."""
    count = len(readings["true edit"])
    print(f"\nedits of {part}: {count}\n{'':12}{'done':>6}{'stayed':>8}{'success':>9}   structure at 2%, 25%, 50%, 75%, 98%")
    for name, rows in readings.items():
        done, stayed = sum(r.done for r in rows) / count, sum(r.stayed for r in rows) / count
        both = sum(r.done and r.stayed for r in rows) / count
        structure = torch.tensor([r.structure for r in rows]).quantile(torch.tensor([0.02, 0.25, 0.5, 0.75, 0.98]))
        print(f"{name:12}{done:6.2f}{stayed:8.2f}{both:9.2f}   " + " ".join(f"{q:.2f}" for q in structure.tolist()))
    for threshold in thresholds:
        shares = {n: sum(r.structure >= threshold for r in rows) / count for n, rows in readings.items()}
        print(f"structure {threshold:.2f}  " + "  ".join(f"{n} {v:.2f}" for n, v in shares.items()))


def _other(caption: str, index: int) -> torch.Tensor:
    """The scene after another edit than the one asked for."""
    scene = read_caption(caption)
    return from_pillow(render(apply_edit(scene, sample_any_edit(scene, random.Random(f"other/{index}"))), seed=index, size=SIZE))


if __name__ == "__main__":
    main()
