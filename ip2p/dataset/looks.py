"""What a picture looks like in three numbers: contrast, burnt share, and a perceptual hash (difference hash)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_BLACK, _WHITE = 0.01, 0.99
_GRID = 8


@torch.no_grad()
def contrast(images_BCHW: Tensor) -> Tensor:
    """Standard deviation of the grey image, 0 to 0.5; a picture of one colour has 0."""
    return images_BCHW.mean(1).flatten(1).std(dim=1)


@torch.no_grad()
def burnt(images_BCHW: Tensor) -> Tensor:
    """Share of pixels that are pure black or pure white."""
    low, high = images_BCHW.amin(1), images_BCHW.amax(1)
    return ((low > _WHITE) | (high < _BLACK)).float().flatten(1).mean(1)


@torch.no_grad()
def difference_hash(images_BCHW: Tensor) -> list[int]:
    """64 bits, signed: whether each of 8×8 cells of the shrunken grey image is brighter than its right neighbour."""
    small = F.interpolate(images_BCHW.mean(1, keepdim=True), size=(_GRID, _GRID + 1), mode="area")[:, 0]
    bits = (small[:, :, :-1] > small[:, :, 1:]).flatten(1).tolist()
    values = [sum(1 << i for i, bit in enumerate(row) if bit) for row in bits]
    return [v - (1 << 64) if v >= 1 << 63 else v for v in values]
