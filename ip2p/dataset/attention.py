"""Prompt-to-Prompt by shared self-attention (METHOD §2): the edited image attends as its source does, over its own values.

softmax(QKᵀ) of the source applied to the target's V is fused attention with Q and K taken from the source's row: no
attention map is ever materialised. Off, the processor computes exactly what diffusers' own does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


@dataclass
class Sharing:
    """Which row each row takes Q and K from (`rows_B` of row numbers), or None for plain attention."""

    rows_B: Tensor | None = field(default=None)


class SharedSelfAttention:
    """An attention processor that reads `sharing` at every self-attention."""

    def __init__(self, sharing: Sharing) -> None:
        self.sharing = sharing

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: object, **__: object) -> Tensor:
        itself = encoder_hidden_states is None
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        if itself and self.sharing.rows_B is not None:
            q, k = q[self.sharing.rows_B], k[self.sharing.rows_B]
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = attn.to_out[0](out.transpose(1, 2).flatten(2))
        return result


def share_self_attention(unet: UNet2DConditionModel) -> Sharing:
    """Install the processor on every attention layer; the returned `Sharing` steers it."""
    sharing = Sharing()
    unet.set_attn_processor(SharedSelfAttention(sharing))  # type: ignore[arg-type]
    return sharing
