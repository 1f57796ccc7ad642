"""Classical Prompt-to-Prompt (Hertz et al. 2022): each word of the edited caption looks where its word of the source did.

Word swap and refinement are one: swapped words take the source words' maps, new words keep their own (equations of §3.2,
by the alignment of `words`), and what sums to less or more than 1 is brought back to 1: a removed phrase would otherwise dim
the whole attention. Only rows with text share, for without text both captions are the empty one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ip2p.dataset.p2p.processor import Plan


def attend(q: Tensor, k: Tensor, v: Tensor, plan: Plan, itself: bool) -> Tensor:
    """Cross-attention by the source's maps, word for word; self-attention as it is."""
    out = scaled_dot_product_attention(q, k, v)
    if itself:
        return out
    assert plan.words_PLL is not None and plan.new_PL is not None
    given, own = (_maps(q[rows], k[rows]) for rows in (plan.source_P, plan.target_P))
    mixed = given @ plan.words_PLL[:, None].to(given.dtype) + own * plan.new_PL[:, None, None].to(own.dtype)
    mixed = mixed / mixed.sum(-1, keepdim=True).clamp(min=1e-6)
    return out.index_copy(0, plan.target_P, (mixed @ v[plan.target_P]).to(out.dtype))


def _maps(q: Tensor, k: Tensor) -> Tensor:
    return torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
