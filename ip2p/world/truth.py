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
_STRUCTURE, _LAYOUT = 0.75, 0.45  # benchmarks/calibrate_checker.py
_REST = 0.1
_WINDOW, _AROUND = 7, 31


@dataclass(frozen=True, slots=True)
class Truth:
    """Source and true edited picture, `CHW` in [0, 1], and the mask `HW` of where they differ visibly."""

    source_CHW: Tensor
    target_CHW: Tensor
    mask_HW: Tensor

    @property
    def beyond_HW(self) -> Tensor:  # noqa: N802
        """Where nothing was asked: pixels whose windows are clear of the edit. Nowhere if that is less than 10% of the picture."""
        beyond = F.max_pool2d(self.mask_HW.float()[None], _WINDOW, stride=1, padding=_WINDOW // 2)[0] == 0
        return beyond if beyond.float().mean() >= _REST else torch.zeros_like(beyond)

    @classmethod
    def of(cls, source_CHW: Tensor, target_CHW: Tensor) -> Truth:
        """The truth of two pictures that differ where the edit belongs and nowhere else."""
        return cls(source_CHW, target_CHW, (source_CHW - target_CHW).abs().mean(0) > _VISIBLE)


@dataclass(frozen=True, slots=True)
class Reading:
    """Of one edited picture, measured where the edit belongs and elsewhere.

    `done`: there it is nearer the truth than the source and closes at least 30% of the way between them. `stayed`:
    `structure`, the similarity to the source elsewhere (mean SSIM of the colour channels), is at least 0.75. Of an edit of the
    whole picture, as of a style, `structure` is the similarity of its edges to the source's or the truth's, and must be 0.45.
    `distance`: mean absolute difference from the truth, 0 to 1; `outside`: from the source elsewhere, 0 where there is no elsewhere.
    """

    done: bool
    stayed: bool
    structure: float
    distance: float
    outside: float


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
    beyond = truth.beyond_HW
    if beyond.any():
        structure, least = float(structural_similarity(edited_CHW, truth.source_CHW)[beyond].mean()), _STRUCTURE
        outside = float(to_source[beyond].mean())
    else:
        structure = max(layout_similarity(edited_CHW, x) for x in (truth.source_CHW, truth.target_CHW))
        least, outside = _LAYOUT, 0.0
    return Reading(done, structure >= least, structure, float(torch.mean(to_target)), outside)


def layout_similarity(image_CHW: Tensor, other_CHW: Tensor) -> float:
    """Correlation, -1 to 1, of where two images in [0, 1] have edges: faint ones count where there are no others, colours do not."""
    a, b = (x - x.mean() for x in map(_edges, (image_CHW, other_CHW)))
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-6))


def _edges(image_CHW: Tensor) -> Tensor:
    """Strength of edges `HW`, relative to that around them, spread over some pixels."""
    dy, dx = torch.gradient(image_CHW.mean(0))
    edges = (dx**2 + dy**2).sqrt()[None]
    return _mean(_mean(edges / (_mean(edges, _AROUND) + 0.01), 3), 3)[0]


def structural_similarity(image_CHW: Tensor, other_CHW: Tensor) -> Tensor:
    """SSIM `HW` of two images in [0, 1], mean over channels, windows of 7 pixels (Wang et al. 2004, K1 0.01, K2 0.03)."""
    a, b = _mean(image_CHW), _mean(other_CHW)
    var_a, var_b = _mean(image_CHW**2) - a**2, _mean(other_CHW**2) - b**2
    covariance = _mean(image_CHW * other_CHW) - a * b
    luminance = (2 * a * b + 0.01**2) / (a**2 + b**2 + 0.01**2)
    return (luminance * (2 * covariance + 0.03**2) / (var_a + var_b + 0.03**2)).mean(0)


def _mean(image_CHW: Tensor, window: int = _WINDOW) -> Tensor:
    return F.avg_pool2d(F.pad(image_CHW[None], (window // 2,) * 4, mode="reflect"), window, stride=1)[0]
