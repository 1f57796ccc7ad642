"""How often `ip2p.world.truth` is wrong, and its threshold on structure: `python benchmarks/calibrate_checker.py`.

Pictures whose answer is known go through the autoencoder, as every edit does. The true edit must read as done and stayed,
the untouched source as stayed and not done, another edit of the same scene as not done, and a new picture of the edited
caption (another layout: all that was asked for, nothing of what was given) as not stayed.
"""

from __future__ import annotations

import random

import torch

from ip2p.dataset.world_writer import write_triplets
from ip2p.models import load_diffusion, resolve_device
from ip2p.pictures import from_pillow
from ip2p.world.edits import apply_edit, sample_any_edit
from ip2p.world.language import read_caption
from ip2p.world.render import render
from ip2p.world.report import reconstruct
from ip2p.world.truth import read_edit, truth_of

COUNT, SIZE = 220, 96


def main() -> None:
    teacher = load_diffusion("world", device=resolve_device("auto"))
    triplets = list(write_triplets(count=COUNT, stream="calibrate-checker"))
    truths = [truth_of(t.caption.text, t.instruction, seed=i, size=SIZE) for i, t in enumerate(triplets)]
    pictures = {
        "true edit": torch.stack([t.target_CHW for t in truths]),
        "source": torch.stack([t.source_CHW for t in truths]),
        "wrong edit": torch.stack([_other(t.caption.text, i) for i, t in enumerate(triplets)]),
        "new picture": torch.stack(
            [from_pillow(render(read_caption(t.edited_caption), seed=10**9 + i, size=SIZE)) for i, t in enumerate(triplets)]
        ),
    }
    readings = {n: [read_edit(x, t) for x, t in zip(reconstruct(teacher, p), truths, strict=True)] for n, p in pictures.items()}
    print(f"{'':12}{'done':>6}{'stayed':>8}{'success':>9}   structure at 2%, 25%, 50%, 75%, 98%")
    for name, rows in readings.items():
        done, stayed = sum(r.done for r in rows) / COUNT, sum(r.stayed for r in rows) / COUNT
        both = sum(r.done and r.stayed for r in rows) / COUNT
        structure = torch.tensor([r.structure for r in rows]).quantile(torch.tensor([0.02, 0.25, 0.5, 0.75, 0.98]))
        print(f"{name:12}{done:6.2f}{stayed:8.2f}{both:9.2f}   " + " ".join(f"{q:.2f}" for q in structure.tolist()))
    print("\nshare whose structure reaches a threshold")
    for threshold in (0.6, 0.65, 0.7, 0.75, 0.8, 0.85):
        shares = {n: sum(r.structure >= threshold for r in rows) / COUNT for n, rows in readings.items()}
        print(f"{threshold:6.2f}  " + "  ".join(f"{n} {v:.2f}" for n, v in shares.items()))


def _other(caption: str, index: int) -> torch.Tensor:
    """The scene after another edit than the one asked for."""
    scene = read_caption(caption)
    return from_pillow(render(apply_edit(scene, sample_any_edit(scene, random.Random(f"other/{index}"))), seed=index, size=SIZE))


if __name__ == "__main__":
    main()
