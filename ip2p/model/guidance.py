"""Two guidance scales (paper §3.2.1, eq. 3) at no more UNet rows than the algebra needs, or fewer at a measured cost.

e = e(∅,∅) + s_I·(e(I,∅) − e(∅,∅)) + s_T·(e(I,T) − e(I,∅)) = (1 − s_I)·e(∅,∅) + (s_I − s_T)·e(I,∅) + s_T·e(I,T)

A branch whose factor is 0 is never computed: at s_I = 1 the first, at s_T = s_I the second, at s_T = 0 the third. The
approximations: guidance in a part of the steps only, and guidance differences kept for a few steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ip2p.diffusion import Diffusion, run_unet
from ip2p.params import EvaluateParams
from ip2p.sampler import Predict, Solver

Factors = tuple[float, float, float]
MAX_SCALE = 50.0
"""The greatest scale that anybody may ask for."""
MAX_SEED = 2**53 - 1
"""JSON carries whole numbers no further: JavaScript, for one, rounds what is larger (RFC 8259, section 6)."""


@dataclass(frozen=True, slots=True)
class EditRequest:
    """One edit: instruction, scales s_T and s_I, and the seed that decides its noise."""

    instruction: str
    text_guidance: float = 7.5
    image_guidance: float = 1.5
    seed: int = 0


@dataclass(frozen=True, slots=True)
class EditOptions:
    """How edits are sampled. Outside of `interval` (shares of the steps) the scales are 1; differences hold for `every` steps."""

    steps: int = 100
    solver: Solver = "euler_ancestral"
    interval: tuple[float, float] = (0.0, 1.0)
    every: int = 1

    def is_guided(self, step: int) -> bool:
        """Whether guidance holds at a step."""
        return self.interval[0] <= step / max(1, self.steps - 1) <= self.interval[1]


def edit_options(section: EvaluateParams) -> EditOptions:
    """The options that the parameters name."""
    return EditOptions(section.steps, section.solver, section.guidance_interval, section.guidance_every)


@dataclass(frozen=True)
class Rows:
    """Rows of a UNet call: of which request each is, its picture and text, its factor, and whether it is given both."""

    request_R: Tensor
    images_RCHW: Tensor
    text_RLD: Tensor
    factor_R: Tensor
    both_R: Tensor
    branches: tuple[slice, ...]
    """Where the rows of each branch stand."""


def plan_rows(factors: list[Factors], sources_BCHW: Tensor, empty_1LD: Tensor, texts_BLD: Tensor, *, both: bool) -> Rows:
    """The rows whose factor is not 0; with `both`, that of picture and text for every request."""
    needed = [(branch, i, f[branch]) for branch in range(3) for i, f in enumerate(factors) if f[branch] != 0 or (both and branch == 2)]
    ends = list(accumulate(sum(b == branch for b, _, _ in needed) for branch in range(3)))
    device, blank = sources_BCHW.device, torch.zeros_like(sources_BCHW[0])
    return Rows(
        request_R=torch.tensor([i for _, i, _ in needed], device=device),
        images_RCHW=torch.stack([sources_BCHW[i] if branch else blank for branch, i, _ in needed]),
        text_RLD=torch.stack([texts_BLD[i] if branch == 2 else empty_1LD[0] for branch, i, _ in needed]),
        factor_R=torch.tensor([f for _, _, f in needed], device=device),
        both_R=torch.tensor([float(branch == 2) for branch, _, _ in needed], device=device),
        branches=tuple(slice(a, b) for a, b in pairwise([0, *ends])),
    )


class Guide:
    """The rows of each step of a batch of requests, and the guided prediction from what the UNet says of them."""

    def __init__(
        self, requests: list[EditRequest], sources_BCHW: Tensor, empty_1LD: Tensor, texts_BLD: Tensor, options: EditOptions
    ) -> None:
        conditioning = (sources_BCHW, empty_1LD, texts_BLD)
        self._options = options
        self._guided = plan_rows([factors_of(r) for r in requests], *conditioning, both=options.every > 1)
        self._plain = plan_rows([(0.0, 0.0, 1.0)] * len(requests), *conditioning, both=False)
        self._difference: Tensor | None = None

    def rows(self, step: int) -> Rows:
        """What the UNet is asked at a step."""
        fresh = step % self._options.every == 0 or self._difference is None
        return self._guided if self._options.is_guided(step) and fresh else self._plain

    def combine(self, out_RCHW: Tensor, step: int, like_BCHW: Tensor) -> Tensor:
        """The guided prediction at a step, from the UNet's for `rows(step)`; steps come in order."""
        rows = self.rows(step)
        whole = _summed(out_RCHW, rows, rows.factor_R, like_BCHW)
        if not self._options.is_guided(step) or self._options.every == 1:
            return whole
        if rows is self._plain:
            assert self._difference is not None
            return whole + self._difference
        self._difference = whole - _summed(out_RCHW, rows, rows.both_R, like_BCHW)
        return whole


def guided_predictor(editor: Diffusion, guide: Guide, on_step: Callable[[int], None] = lambda i: None) -> Predict:
    """The guided prediction of a batch of requests, for the sampler."""

    def predict(x: Tensor, timestep: Tensor, i: int) -> Tensor:
        on_step(i)
        rows = guide.rows(i)
        out = run_unet(editor, torch.cat([x[rows.request_R], rows.images_RCHW], dim=1), timestep, rows.text_RLD)
        return guide.combine(out, i, x)

    return predict


def factors_of(request: EditRequest) -> Factors:
    """Factors of the three branches: nothing, picture, picture and text."""
    return 1 - request.image_guidance, request.image_guidance - request.text_guidance, request.text_guidance


def _summed(out_RCHW: Tensor, rows: Rows, factor_R: Tensor, like_BCHW: Tensor) -> Tensor:
    """The rows of each request, weighed and added branch by branch: the same bits each time, on a GPU too."""
    weighed_RCHW, whole = factor_R.view(-1, 1, 1, 1) * out_RCHW, torch.zeros_like(like_BCHW)
    for branch in rows.branches:
        whole[rows.request_R[branch]] += weighed_RCHW[branch]
    return whole
