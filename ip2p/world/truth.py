"""What only the world can tell: the true picture of an edit, whether an edit was done, and whether the rest stayed.

Source and truth are rendered with one layout seed, so where they differ is exactly where the edit belongs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ip2p.pictures import from_pillow
from ip2p.world.edits import apply_edit
from ip2p.world.language import read_caption, read_instruction
from ip2p.world.render import render

_VISIBLE = 0.06
_STAYED = 0.08
_CLOSED = 0.3
_REST = 0.1


@dataclass(frozen=True, slots=True)
class Truth:
    """Source and true edited picture, `CHW` in [0, 1], and the mask `HW` of where they differ visibly."""

    source_CHW: Tensor
    target_CHW: Tensor
    mask_HW: Tensor


@dataclass(frozen=True, slots=True)
class Reading:
    """Of one edited picture, measured where the edit belongs and elsewhere.

    `done`: there it is nearer the truth than the source and closes at least 30% of the way between them. `stayed`:
    elsewhere the mean change is at most 8% of full scale; true if elsewhere is less than 10% of the picture.
    `distance`: mean absolute difference from the truth, 0 to 1.
    """

    done: bool
    stayed: bool
    distance: float


def truth_of(caption: str, instruction: str, *, seed: int, size: int) -> Truth:
    """Render the source and the truth of a triplet of the world."""
    scene = read_caption(caption)
    source = from_pillow(render(scene, seed=seed, size=size))
    target = from_pillow(render(apply_edit(scene, read_instruction(instruction)), seed=seed, size=size))
    return Truth(source, target, (source - target).abs().mean(0) > _VISIBLE)


def read_edit(edited_CHW: Tensor, truth: Truth) -> Reading:
    """Measure an edited picture against the truth."""
    inside, outside = truth.mask_HW, ~truth.mask_HW
    to_target = (edited_CHW - truth.target_CHW).abs().mean(0)
    to_source = (edited_CHW - truth.source_CHW).abs().mean(0)
    left = to_target[inside].mean()
    way = (truth.source_CHW - truth.target_CHW).abs().mean(0)[inside].mean()
    done = bool(inside.any()) and bool(left < to_source[inside].mean()) and bool(left <= (1 - _CLOSED) * way)
    stayed = bool(outside.float().mean() < _REST) or bool(to_source[outside].mean() <= _STAYED)
    return Reading(done, stayed, float(torch.mean(to_target)))
