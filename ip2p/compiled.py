"""Compiled training, checked: `torch.compile` may compute other gradients without a word.

torch 2.13 does, on a CPU, of the illustrated world's autoencoder: the loss is the same to its last digit, and 122 of its 188 tensors have
no gradient (a residual block before an upsampler is enough). So what is trained compiled computes the first batch of each shape both ways.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

_APART = 0.25
"""Relative difference of a tensor's gradient from which it is another one: bfloat16's differ from float32's by a tenth at most."""
_COUNTS = 1e-3
"""Gradients below this share of the largest tensor's are noise."""


def other_gradients(loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter]) -> str:
    """What is wrong with the gradients of a compiled loss, by the largest relative difference of a tensor's from the same uncompiled.

    Computes it both ways and leaves the gradients of the compiled one. Empty if nothing is wrong; those that alone are no numbers are.
    """
    plain = [g.cpu() for g in _gradients(loss, parameters, "force_eager")]
    norms = [g.norm().item() for g in plain]
    least = _COUNTS * max(norms)
    compiled = zip(plain, norms, _gradients(loss, parameters, "default"), strict=True)
    apart = [(a - b.cpu()).norm().item() / norm for a, norm, b in compiled if norm > least]
    most = max((x if math.isfinite(x) else math.inf for x in apart), default=0.0)
    return f"gradients are others (by {most:.0%})" if most > _APART else ""


def _gradients(loss: Callable[[], Tensor], parameters: Sequence[nn.Parameter], stance: Literal["force_eager", "default"]) -> list[Tensor]:
    for p in parameters:
        p.grad = None
    with torch.compiler.set_stance(stance):
        loss().backward()  # type: ignore[no-untyped-call]
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
