"""Muon for matrices and convolutions, AdamW for the rest: fewer steps to the same loss, which is what a laptop has least of.

The momentum of each weight of two or more dimensions, flattened to a matrix, is orthogonalised by three quintic
iterations (Newton-Schulz as in Jordan et al. 2024, whose five share one polynomial; here each has its own, after Amsel et al. 2025,
"The Polar Express") and scaled by 0.2·√max(rows, columns), so that AdamW's rates fit (Liu et al. 2025, "Muon is scalable for
LLM training").
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Muon(torch.optim.Optimizer):
    """One optimizer over both kinds of weights; state is plain tensors, as AdamW's is.

    Processes that train together share the orthogonalising: each does its part of the matrices and sends them to the others.
    """

    def __init__(self, model: nn.Module, *, lr: float, weight_decay: float) -> None:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for n, p in named if _is_matrix(n, p)], "matrices": True},
            {"params": [p for n, p in named if not _is_matrix(n, p)], "matrices": False},
        ]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            updates = self._matrices(weights, group) if group["matrices"] else self._vectors(weights, group)
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, updates, alpha=-group["lr"])

    def _matrices(self, weights: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        blended = [m.flatten(1) for m in self._momenta(weights, group)]
        owners, rank = _owners(blended), dist.get_rank() if _together() else 0
        mine = iter(_orthogonalised_all([m for m, o in zip(blended, owners, strict=True) if o == rank]))
        updates = [next(mine) if o == rank else torch.empty_like(m, dtype=torch.bfloat16) for m, o in zip(blended, owners, strict=True)]
        if _together():
            _exchange(updates, owners)
        scales = [0.2 * max(m.shape) ** 0.5 for m in blended]
        return [(u.to(p.dtype) * s).view_as(p) for p, u, s in zip(weights, updates, scales, strict=True)]

    def _momenta(self, weights: list[Tensor], group: dict[str, Any]) -> tuple[Tensor, ...]:
        """Nesterov's: the gradients, moved on along the momentum."""
        gradients, momenta = _gradients(weights), self._states(weights, "momentum")
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        return torch._foreach_lerp(gradients, momenta, group["momentum"])

    def _vectors(self, weights: list[Tensor], group: dict[str, Any]) -> tuple[Tensor, ...]:
        gradients, first, second = _gradients(weights), self._states(weights, "first"), self._states(weights, "second")
        counts = [self.state[p].setdefault("count", torch.zeros(())) for p in weights]
        torch._foreach_add_(counts, 1)
        b1, b2 = group["betas"]
        torch._foreach_lerp_(first, gradients, 1 - b1)
        torch._foreach_lerp_(second, torch._foreach_mul(gradients, gradients), 1 - b2)
        done = [c.item() for c in counts]
        spread = torch._foreach_sqrt(torch._foreach_div(second, [1 - b2**n for n in done]))
        torch._foreach_add_(spread, 1e-8)
        return torch._foreach_div(torch._foreach_div(first, [1 - b1**n for n in done]), spread)  # type: ignore[no-any-return]

    def _states(self, weights: list[Tensor], name: str) -> list[Tensor]:
        return [self.state[p].setdefault(name, torch.zeros_like(p)) for p in weights]


def _gradients(weights: list[Tensor]) -> list[Tensor]:
    return [p.grad for p in weights if p.grad is not None]


def _together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _owners(matrices: list[Tensor]) -> list[int]:
    """Which process orthogonalises each matrix: the costliest first, each to whom has least to do."""
    if not _together():
        return [0] * len(matrices)
    load, owners = [0] * dist.get_world_size(), [0] * len(matrices)
    costs = [m.numel() * min(m.shape) for m in matrices]
    for i in sorted(range(len(matrices)), key=lambda i: -costs[i]):
        owners[i] = load.index(min(load))
        load[owners[i]] += costs[i]
    return owners


def _exchange(updates: list[Tensor], owners: list[int]) -> None:
    """Send each process's matrices to the others, all of one process at once."""
    for owner in range(dist.get_world_size()):
        own = [u for u, o in zip(updates, owners, strict=True) if o == owner]
        if not own:
            continue
        flat = torch.cat([u.flatten() for u in own])
        dist.broadcast(flat.view(torch.uint8), src=owner)
        for target, source in zip(own, flat.split([u.numel() for u in own]), strict=True):
            target.copy_(source.view_as(target))


def _is_matrix(name: str, p: Tensor) -> bool:
    return p.ndim >= 2 and "embedding" not in name and min(p.shape[0], p[0].numel()) >= 8


def _orthogonalised_all(matrices: list[Tensor]) -> list[Tensor]:
    """Each matrix orthogonalised; on a GPU those of one shape together, for their launches take longer than their products."""
    if not matrices or matrices[0].device.type == "cpu":
        return [orthogonalised(m) for m in matrices]
    alike: dict[torch.Size, list[int]] = {}
    for i, m in enumerate(matrices):
        alike.setdefault(m.shape, []).append(i)
    results = {i: x for some in alike.values() for i, x in zip(some, orthogonalised(torch.stack([matrices[i] for i in some])), strict=True)}
    return [results[i] for i in range(len(matrices))]


_QUINTICS = ((8.2987, -24.4305, 18.0903), (3.9152, -2.9211, 0.5592), (3.1746, -2.3804, 0.4978))
"""a, b, c of a·x + b·x³ + c·x⁵, in order: each brings singular values from where the one before left them, at first [0.005, 1], as near
to 1 as a quintic can (tests/test_muon.py); after the third they lie in [0.5, 1.5]."""


def orthogonalised(matrix: Tensor) -> Tensor:
    """A matrix with the singular vectors of each `…RC` and singular values near 1, but for those below 0.005 of its norm; bfloat16."""
    x = (matrix / (1.01 * matrix.norm(dim=(-2, -1), keepdim=True) + 1e-7)).bfloat16()  # 1.01: never above 1 when rounded
    tall = x.shape[-2] > x.shape[-1]
    x = (x.mT if tall else x).contiguous()
    fused = torch.addmm if x.ndim == 2 else torch.baddbmm
    for a, b, c in _QUINTICS:
        gram = x @ x.mT
        x = fused(x, fused(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    result: Tensor = x.mT if tall else x
    return result
