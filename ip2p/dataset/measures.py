"""Everything that is stored about a pair beside its images: similarities, alignment, looks. Filters read these columns."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ip2p.clip import embedding_codes
from ip2p.dataset.alignment import align
from ip2p.dataset.looks import burnt, contrast, difference_hash
from ip2p.dataset.thresholds import Similar
from ip2p.safety import Safety, rate_unsafe


def measure_pairs(
    before_BCHW: Tensor, after_BCHW: Tensor, scores: list[Similar], features: tuple[Tensor, Tensor], safety: Safety | None = None
) -> list[dict[str, Any]]:
    """One row of columns a pair of images in [0, 1]; `features` are CLIP's of both images, `BD` each."""
    if not scores:
        return []
    images = (before_BCHW, after_BCHW)
    aligned = align(*images)
    columns = {
        "shift": aligned.shift.tolist(),
        "zoom": aligned.zoom.tolist(),
        "outside": aligned.outside.tolist(),
        "contrast": torch.minimum(*map(contrast, images)).tolist(),
        "burnt": torch.maximum(*map(burnt, images)).tolist(),
        "hash_0": difference_hash(images[0]),
        "hash_1": difference_hash(images[1]),
        "hash_clip": embedding_codes(*features),
        "unsafe": [None] * len(scores) if safety is None else torch.maximum(*(rate_unsafe(safety, x) for x in images)).tolist(),
    }
    return [asdict(s) | {n: c[i] for n, c in columns.items()} for i, s in enumerate(scores)]
