"""Muon for matrices and convolutions, AdamW for the rest: fewer steps to the same loss, which is what a laptop has least of.

The momentum of each weight of two or more dimensions, flattened to a matrix, is orthogonalised by a quintic
Newton-Schulz iteration (Jordan et al. 2024) and scaled by 0.2·√max(rows, columns), so that AdamW's rates fit
(Liu et al. 2025, "Muon is scalable for LLM training").
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
            updates = self._matrices(weights, group) if group["matrices"] else [self._vector(p, group) for p in weights]
            for p, update in zip(weights, updates, strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"])

    def _matrices(self, weights: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        blended = [self._momentum(p, group).flatten(1) for p in weights]
        owners, rank = _owners(blended), dist.get_rank() if _together() else 0
        updates = [
            orthogonalised(m) if o == rank else torch.empty_like(m, dtype=torch.bfloat16) for m, o in zip(blended, owners, strict=True)
        ]
        if _together():
            _exchange(updates, owners)
        scales = [0.2 * max(m.shape) ** 0.5 for m in blended]
        return [(u.to(p.dtype) * s).view_as(p) for p, u, s in zip(weights, updates, scales, strict=True)]

    def _momentum(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """Nesterov's: the gradient, moved on along the momentum."""
        momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
        momentum.lerp_(p.grad, 1 - group["momentum"])  # type: ignore[arg-type]
        return p.grad.lerp(momentum, group["momentum"])  # type: ignore[union-attr]

    def _vector(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[p]
        first, second = state.setdefault("first", torch.zeros_like(p)), state.setdefault("second", torch.zeros_like(p))
        count = state.setdefault("count", torch.zeros(()))
        count += 1
        b1, b2 = group["betas"]
        first.lerp_(p.grad, 1 - b1)  # type: ignore[arg-type]
        second.lerp_(p.grad.square(), 1 - b2)  # type: ignore[union-attr]
        bias1, bias2 = 1 - b1 ** count.item(), 1 - b2 ** count.item()
        update: Tensor = (first / bias1) / ((second / bias2).sqrt() + 1e-8)
        return update


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


def orthogonalised(matrix: Tensor, *, steps: int = 5) -> Tensor:
    """The nearest matrix with singular values near 1, by Newton-Schulz; bfloat16."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = (matrix / (matrix.norm() + 1e-7)).bfloat16()
    tall = x.shape[0] > x.shape[1]
    x = (x.T if tall else x).contiguous()
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    result: Tensor = x.T if tall else x
    return result
