"""The reference's Prompt-to-Prompt (paper §3.1.2): the edited image attends as its source does, over its own values.

softmax(QKᵀ) of the source applied to the target's V is fused attention with Q and K taken from the source's row: no
attention map is ever materialised. It holds with and without text alike.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ip2p.dataset.p2p.processor import Plan


def attend(q: Tensor, k: Tensor, v: Tensor, plan: Plan, itself: bool) -> Tensor:
    """Self-attention by the source's queries and keys; cross-attention as it is."""
    if itself:
        q, k = q[plan.from_R], k[plan.from_R]
    return scaled_dot_product_attention(q, k, v)
