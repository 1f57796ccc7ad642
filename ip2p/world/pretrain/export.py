"""Trained checkpoints to the formats of the big models: a diffusers folder and an OpenCLIP folder, in fp16.

The autoencoder's latents are standardised channel by channel by folding mean and spread into its two 1×1 convolutions,
so that diffusers' single scaling factor is 1 and every channel counts alike.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ip2p.store import write_bytes
from ip2p.world.pretrain.contrast import clip_config
from ip2p.world.pretrain.teacher import SCHEDULE, Teacher


@torch.no_grad()
def standardise(vae: Any, mean_C: Tensor, std_C: Tensor) -> None:
    """Fold `latent → (latent - mean) / std` into `quant_conv`, and its inverse into `post_quant_conv`."""
    channels = len(mean_C)
    encode, decode = vae.quant_conv, vae.post_quant_conv
    scale = torch.cat([1 / std_C, torch.ones(channels)])
    shift = torch.cat([-mean_C / std_C, -2 * std_C.log()])
    encode.weight.mul_(scale.view(-1, 1, 1, 1))
    encode.bias.mul_(scale).add_(shift)
    decode.bias.add_(decode.weight[:, :, 0, 0] @ mean_C)
    decode.weight.mul_(std_C.view(1, -1, 1, 1))


def export_vae(vae: Any, folder: Path) -> None:
    """Write the autoencoder's diffusers folder."""
    vae.half().save_pretrained(folder / "vae", safe_serialization=True)


def export_teacher(model: Teacher, tokenizer: Any, folder: Path) -> None:
    """Write UNet, text encoder, tokenizer, scheduler and `model_index.json` beside the autoencoder."""
    from diffusers import DDIMScheduler

    model.unet.half().save_pretrained(folder / "unet", safe_serialization=True)
    model.text_encoder.half().save_pretrained(folder / "text_encoder", safe_serialization=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    scheduler = DDIMScheduler(**SCHEDULE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    write_bytes(folder / "model_index.json", (json.dumps(index, indent=2) + "\n").encode())


def export_clip(model: Any, tokenizer: Any, folder: Path, *, size: int) -> None:
    """Write the OpenCLIP folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    state = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    config = clip_config(size=size, vocabulary=len(tokenizer))
    write_bytes(folder / "open_clip_config.json", (json.dumps(config, indent=2) + "\n").encode())
