"""The attention processor that a Prompt-to-Prompt method runs in, and the plan that steers it from step to step.

Rows of the UNet's batch are four blocks of B pairs: source and target without text, then source and target with text.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ip2p.diffusion import of_any_batch

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

METHODS = ("self_attention", "cross_attention", "both", "none")


@dataclass(frozen=True)
class Plan:
    """One step's sharing: of the P pairs that share, the rows with text, and how the target's words come from the source's.

    `words_PLL[p, i, j]` is the weight with which target token j takes source token i's attention; `new_PL` is 1 where a
    target token has no source and keeps its own. `from_R`: the row that each of the 4·B rows takes queries and keys from.
    """

    source_P: Tensor
    target_P: Tensor
    from_R: Tensor
    words_PLL: Tensor | None = None
    new_PL: Tensor | None = None


def plan_step(active: list[bool], words: tuple[Tensor, Tensor] | None, device: torch.device) -> Plan | None:
    """The plan of a step in which these of B pairs share, None if none does; `words_BLL` and `new_BL` are those of all pairs.

    It is made before the step: a GPU's layers would each wait for what it decides, and `torch.compile` break off there.
    """
    if not any(active):
        return None
    count = len(active)
    pairs = [i for i, shares in enumerate(active) if shares]
    half = [*range(count), *(i if shares else i + count for i, shares in enumerate(active))]
    numbers = [i + 2 * count for i in pairs], [i + 3 * count for i in pairs], [*half, *(i + 2 * count for i in half)]
    tensors = [*map(torch.tensor, numbers), *(x[pairs] for x in words or ())]
    return Plan(*(of_any_batch(x.to(device)) for x in tensors))


Attend = Callable[[Tensor, Tensor, Tensor, Plan, bool], Tensor]


@dataclass
class Steering:
    """What the processors read at every call; None: plain attention."""

    plan: Plan | None = None


class SharedAttention:
    """A diffusers attention processor that runs `attend` under the plan of `steering`."""

    def __init__(self, attend: Attend, steering: Steering) -> None:
        self.attend, self.steering = attend, steering

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *_: object, **__: object) -> Tensor:
        itself = encoder_hidden_states is None
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        states = (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        q, k, v = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in states)
        plan = self.steering.plan
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v) if plan is None else self.attend(q, k, v, plan, itself)
        result: Tensor = attn.to_out[0](out.transpose(1, 2).flatten(2))
        return result


def install(unet: UNet2DConditionModel, method: str) -> Steering:
    """Run every attention layer of the UNet by this method; the returned `Steering` steers it."""
    if method not in METHODS:
        raise ValueError(f"no Prompt-to-Prompt method {method!r}: one of {', '.join(METHODS)}")
    attend: Attend = importlib.import_module(f"ip2p.dataset.p2p.{method}").attend
    steering = Steering()
    unet.set_attn_processor(SharedAttention(attend, steering))  # type: ignore[arg-type]
    return steering
