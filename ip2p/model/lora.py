"""Low-rank training (Hu et al. 2021) by peft: the attention projections and the convolution that reads the picture.

`conv_in` is among them so that an editor can grow from a text-to-image teacher by LoRA alone. The result is saved twice: merged
into an editor folder, and as `lora/pytorch_lora_weights.safetensors`, which diffusers' `load_lora_weights` puts on the start: an
editor, or a teacher's UNet once it is grown to an editor's channels (`ip2p.model.unet`), which the teacher's own is too narrow for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv_in"]


def add_lora(unet: Any, rank: int, *, seed: int) -> None:
    """Freeze the UNet and put trainable low-rank weights beside its targets; its output is unchanged.

    The same seed draws the same weights, in every process of a training.
    """
    from peft import LoraConfig

    unet.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS))


@torch.no_grad()
def merge_lora(unet: Any, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Take `weights` for the low-rank ones, save them in diffusers' form into `folder`, and fold them into the UNet."""
    from diffusers import StableDiffusionInstructPix2PixPipeline
    from peft.utils import get_peft_model_state_dict

    unet.load_state_dict(weights, strict=False)
    state = {k: v.detach().cpu().contiguous() for k, v in get_peft_model_state_dict(unet).items()}
    StableDiffusionInstructPix2PixPipeline.save_lora_weights(folder, unet_lora_layers=state, safe_serialization=True)
    unet.fuse_lora()
    unet.unload_lora()
