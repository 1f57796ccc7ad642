"""Trained checkpoints to the formats of the big models: a diffusers folder and an OpenCLIP folder, in fp16.

The autoencoder's latents are standardised channel by channel by folding mean and spread into its two 1×1 convolutions,
so that diffusers' single scaling factor is 1 and every channel counts alike.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ip2p.errors import ModelError
from ip2p.store import write_bytes
from ip2p.world.pretrain.contrast import clip_config
from ip2p.world.pretrain.teacher import SCHEDULE, Teacher

PIECE = 15 * 2**20
"""Bytes of weights a piece: with its header well under 16 MiB."""


@torch.no_grad()
def standardise(vae: Any, mean_C: Tensor, std_C: Tensor) -> None:
    """Fold `latent → (latent - mean) / std` into `quant_conv`, and its inverse into `post_quant_conv`."""
    encode, decode = vae.quant_conv, vae.post_quant_conv
    scale = torch.cat([1 / std_C, torch.ones_like(std_C)])
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


def write_pieces(state: Mapping[str, Tensor], folder: Path, name: str) -> list[Path]:
    """Write weights in fp16 as `NAME-0001-of-NNNN.safetensors`, none larger than 16 MiB, so that they travel where files are small."""
    pieces: list[dict[str, Tensor]] = [{}]
    room = PIECE
    for key, weight in _halved(state).items():
        if pieces[-1] and weight.nbytes > room:
            pieces.append({})
            room = PIECE
        room -= weight.nbytes
        pieces[-1][key] = weight
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{name}-*.safetensors"):
        old.unlink()
    paths = [folder / f"{name}-{i:04d}-of-{len(pieces):04d}.safetensors" for i in range(1, len(pieces) + 1)]
    for path, piece in zip(paths, pieces, strict=True):
        save_file(piece, path)
    return paths


def _halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: (v.half() if v.is_floating_point() else v).cpu().contiguous() for k, v in state.items()}


def read_pieces(folder: Path, name: str) -> dict[str, Tensor]:
    """What `write_pieces` wrote under a name; nothing if there is none. Raises `ModelError` naming a piece that is missing."""
    found = sorted(folder.glob(f"{name}-*-of-*.safetensors"))
    count = int(found[0].stem.rpartition("-")[2]) if found else 0
    for i in range(1, count + 1):
        path = folder / f"{name}-{i:04d}-of-{count:04d}.safetensors"
        if not path.exists():
            raise ModelError(f"{path}: missing; bring all {count} pieces of {name}, or none")
    return {k: v for path in found for k, v in load_file(path).items()}


def export_clip(model: Any, tokenizer: Any, folder: Path, *, size: int) -> None:
    """Write the OpenCLIP folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    save_file(_halved(model.state_dict()), folder / "open_clip_model.safetensors")
    config = clip_config(size=size, vocabulary=len(tokenizer))
    write_bytes(folder / "open_clip_config.json", (json.dumps(config, indent=2) + "\n").encode())
