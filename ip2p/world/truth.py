"""What only the world can tell: the true picture of an edit, whether an edit was done, and whether the rest stayed.

Source and truth are rendered with one layout seed, so where they differ is exactly where the edit belongs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ip2p.pictures import from_pillow
from ip2p.world.edits import apply_edit
from ip2p.world.language import read_caption, read_instruction
from ip2p.world.render import render

_VISIBLE = 0.06
_CLOSED = 0.3
_STRUCTURE = 0.75  # benchmarks/calibrate_checker.py
_REST = 0.1
_WINDOW = 7


@dataclass(frozen=True, slots=True)
class Truth:
    """Source and true edited picture, `CHW` in [0, 1], and the mask `HW` of where they differ visibly."""

    source_CHW: Tensor
    target_CHW: Tensor
    mask_HW: Tensor

    @classmethod
    def of(cls, source_CHW: Tensor, target_CHW: Tensor) -> Truth:
        """The truth of two pictures that differ where the edit belongs and nowhere else."""
        return cls(source_CHW, target_CHW, (source_CHW - target_CHW).abs().mean(0) > _VISIBLE)


@dataclass(frozen=True, slots=True)
class Reading:
    """Of one edited picture, measured where the edit belongs and elsewhere.

    `done`: there it is nearer the truth than the source and closes at least 30% of the way between them. `stayed`:
    `structure`, the similarity to the source elsewhere (mean SSIM of the colour channels), is at least 0.75; true if
    elsewhere is less than 10% of the picture. `distance`: mean absolute difference from the truth, 0 to 1.
    """

    done: bool
    stayed: bool
    structure: float
    distance: float


def truth_of(caption: str, instruction: str, *, seed: int, size: int) -> Truth:
    """Render the source and the truth of a triplet of the world."""
    scene = read_caption(caption)
    source = from_pillow(render(scene, seed=seed, size=size))
    target = from_pillow(render(apply_edit(scene, read_instruction(instruction)), seed=seed, size=size))
    return Truth.of(source, target)


def read_edit(edited_CHW: Tensor, truth: Truth) -> Reading:
    """Measure an edited picture against the truth."""
    inside = truth.mask_HW
    to_target = (edited_CHW - truth.target_CHW).abs().mean(0)
    to_source = (edited_CHW - truth.source_CHW).abs().mean(0)
    left = to_target[inside].mean()
    way = (truth.source_CHW - truth.target_CHW).abs().mean(0)[inside].mean()
    done = bool(inside.any()) and bool(left < to_source[inside].mean()) and bool(left <= (1 - _CLOSED) * way)
    beyond = F.max_pool2d(inside.float()[None], _WINDOW, stride=1, padding=_WINDOW // 2)[0] == 0  # windows clear of the edit
    structure = float(structural_similarity(edited_CHW, truth.source_CHW)[beyond].mean()) if beyond.any() else 1.0
    stayed = bool(beyond.float().mean() < _REST) or structure >= _STRUCTURE
    return Reading(done, stayed, structure, float(torch.mean(to_target)))


def structural_similarity(image_CHW: Tensor, other_CHW: Tensor) -> Tensor:
    """SSIM `HW` of two images in [0, 1], mean over channels, windows of 7 pixels (Wang et al. 2004, K1 0.01, K2 0.03)."""

    def mean(x: Tensor) -> Tensor:
        edge = _WINDOW // 2
        return F.avg_pool2d(F.pad(x[None], (edge,) * 4, mode="reflect"), _WINDOW, stride=1)[0]

    a, b = mean(image_CHW), mean(other_CHW)
    var_a, var_b = mean(image_CHW**2) - a**2, mean(other_CHW**2) - b**2
    covariance = mean(image_CHW * other_CHW) - a * b
    luminance = (2 * a * b + 0.01**2) / (a**2 + b**2 + 0.01**2)
    return (luminance * (2 * covariance + 0.03**2) / (var_a + var_b + 0.03**2)).mean(0)
