"""No sharing beyond the noise: what Prompt-to-Prompt is measured against."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ip2p.dataset.p2p.processor import Plan


def attend(q: Tensor, k: Tensor, v: Tensor, plan: Plan, itself: bool) -> Tensor:
    """Plain attention."""
    return scaled_dot_product_attention(q, k, v)
