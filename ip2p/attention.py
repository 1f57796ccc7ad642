"""Fused attention in float32 inside a bfloat16 autocast: on CPU the backward of bfloat16 attention is about six times slower."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Float32Attention:
    """A diffusers attention processor; without autocast it computes what diffusers' own does."""

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: object, **__: object) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        heads = (attn.to_q(hidden_states), attn.to_k(source), attn.to_v(source))
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2).float() for x in heads)
        with torch.autocast(hidden_states.device.type, enabled=False):
            out = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = attn.to_out[0](out.transpose(1, 2).flatten(2))
        return result
