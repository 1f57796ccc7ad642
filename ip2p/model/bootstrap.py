"""Means and how sure they are: bootstrap over edits (Efron 1979), with one fixed seed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_Z2 = 1.959964**2


def resampled_means(values: Sequence[float], *, rounds: int = 1000) -> Tensor:
    """Means of bootstrap resamples, the same each time."""
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(0, len(values), (rounds, len(values)), generator=generator)
    return torch.tensor(values, dtype=torch.float64)[picks].mean(1)


def bootstrap(values: Sequence[float], *, rounds: int = 1000) -> tuple[float, float]:
    """95% percentile interval of the mean."""
    means = resampled_means(values, rounds=rounds)
    return float(means.quantile(0.025)), float(means.quantile(0.975))


def share_interval(hits: Sequence[float], *, rounds: int = 1000) -> tuple[float, float]:
    """95% interval of a share of hits (1) and misses (0): the bootstrap's, or Wilson's (1927) where all are alike."""
    if len(set(hits)) > 1:
        return bootstrap(hits, rounds=rounds)
    beyond = _Z2 / (len(hits) + _Z2)
    return (1 - beyond, 1.0) if hits[0] else (0.0, beyond)
