"""Thresholds of `filter` for the world's CLIP, from pairs whose truth is known: `python benchmarks/calibrate_filter.py`.

True pairs are renders before and after an edit. False pairs keep the captions and swap the second picture: for one
after another edit of the same scene (wrong edit), or for the source itself, softened by the autoencoder (a copy).
A threshold on direction is good if it keeps the true and drops both kinds of false.
"""

from __future__ import annotations

import random

import torch

from ip2p.clip import image_features, similarities, text_features
from ip2p.dataset.world_writer import write_triplets
from ip2p.models import load_clip, load_diffusion, resolve_device
from ip2p.pictures import from_pillow
from ip2p.world.edits import apply_edit, sample_any_edit
from ip2p.world.language import read_caption
from ip2p.world.render import render
from ip2p.world.report import reconstruct
from ip2p.world.truth import truth_of

COUNT, SIZE = 220, 96


def main() -> None:
    device = resolve_device("auto")
    clip, teacher = load_clip("world", device=device), load_diffusion("world", device=device)
    triplets = list(write_triplets(count=COUNT, stream="calibrate"))
    truths = [truth_of(t.caption.text, t.instruction, seed=i, size=SIZE) for i, t in enumerate(triplets)]
    sources = reconstruct(teacher, torch.stack([t.source_CHW for t in truths]))
    seconds = {
        "true edit": reconstruct(teacher, torch.stack([t.target_CHW for t in truths])),
        "wrong edit": reconstruct(teacher, torch.stack([_other(t.caption.text, i) for i, t in enumerate(triplets)])),
        "copy": reconstruct(teacher, sources),
    }
    texts = [text_features(clip, x) for x in ([t.caption.text for t in triplets], [t.edited_caption for t in triplets])]
    before = image_features(clip, sources)
    found = {name: similarities(before, image_features(clip, x), *texts) for name, x in seconds.items()}
    print(f"{'':12}{'score':10}" + "".join(f"{q:>8.0%}" for q in (0.02, 0.05, 0.25, 0.5, 0.75, 0.95)))
    for name, scores in found.items():
        for field in ("caption_0", "caption_1", "image", "direction"):
            quantiles = getattr(scores, field).float().quantile(torch.tensor([0.02, 0.05, 0.25, 0.5, 0.75, 0.95]))
            print(f"{name:12}{field:10}" + "".join(f"{q:8.3f}" for q in quantiles.tolist()))
    print("\nshare kept by a threshold on direction")
    for threshold in (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4):
        shares = {n: (s.direction >= threshold).float().mean().item() for n, s in found.items()}
        print(f"{threshold:6.2f}  " + "  ".join(f"{n} {v:.2f}" for n, v in shares.items()))


def _other(caption: str, index: int) -> torch.Tensor:
    """The scene after another edit than the one asked for."""
    scene = read_caption(caption)
    return from_pillow(render(apply_edit(scene, sample_any_edit(scene, random.Random(f"other/{index}"))), seed=index, size=SIZE))


if __name__ == "__main__":
    main()
