"""Self-attention and cross-attention shared together, as UltraEdit mixes them."""

from __future__ import annotations

from torch import Tensor

from ip2p.dataset.p2p import cross_attention, self_attention
from ip2p.dataset.p2p.processor import Plan


def attend(q: Tensor, k: Tensor, v: Tensor, plan: Plan, itself: bool) -> Tensor:
    """Each kind of attention by its own method."""
    return (self_attention.attend if itself else cross_attention.attend)(q, k, v, plan, itself)
