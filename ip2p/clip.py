"""CLIP: how it is loaded, and the four similarities (paper §3.1.2), once: `filter` and `evaluate` share them.

Images in [0, 1], resized bicubic to CLIP's size with no crop; features are L2-normalised.
Shapes: B batch, D embedding, C H W image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from ip2p.errors import ModelError, first_line
from ip2p.models import is_path, model_source
from ip2p.torchvision_cpu import declare_operators

_SIGNS = 32


@dataclass(frozen=True)
class Clip:
    """An OpenCLIP model with its tokenizer and the size and normalisation of its input."""

    model: Any
    tokenizer: Any
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: torch.device


@dataclass(frozen=True, slots=True)
class Similarities:
    """Cosines of a batch of pairs, each `B`."""

    caption_0: Tensor
    caption_1: Tensor
    image: Tensor
    direction: Tensor


def load_clip(name: str, *, device: torch.device) -> Clip:
    """Load an OpenCLIP model. Raises `ModelError` if the folder or the name is unknown, or has no weights of its own."""
    declare_operators()
    import open_clip

    if name != "world" and not is_path(name):
        architecture, _, pretrained = name.partition(":")
        if architecture not in open_clip.list_models():
            raise ModelError(f"models.clip: {name!r} is no OpenCLIP architecture; write ARCHITECTURE:PRETRAINED or a folder as ./path")
        _require_activation(architecture, pretrained)
        source, weights = architecture, pretrained or None
    else:
        folder = Path(model_source(name, kind="clip", subject="models.clip"))
        if not (folder / "open_clip_config.json").is_file():
            raise ModelError(f"models.clip: {folder} holds no open_clip_config.json; give the folder of an OpenCLIP model")
        source, weights = f"local-dir:{folder}", None
    try:
        model = open_clip.create_model(source, pretrained=weights, device=device, weights_only=True, require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(source)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"models.clip: {name} cannot be loaded: {first_line(error)}") from error
    preprocess = open_clip.get_model_preprocess_cfg(model)
    size = preprocess["size"]
    return Clip(
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        size=size if isinstance(size, int) else size[0],
        mean=tuple(preprocess["mean"]),
        std=tuple(preprocess["std"]),
        device=device,
    )


def _require_activation(architecture: str, pretrained: str) -> None:
    """Raises `ModelError` if the weights are of QuickGELU and the architecture is not: OpenCLIP only warns, and similarities drift."""
    import open_clip

    quick = (open_clip.get_pretrained_cfg(architecture, pretrained) or {}).get("quick_gelu")
    if quick and not (open_clip.get_model_config(architecture) or {}).get("quick_gelu"):
        raise ModelError(f"models.clip: {architecture}:{pretrained} has weights of QuickGELU; write {architecture}-quickgelu:{pretrained}")


@torch.no_grad()
def image_features(clip: Clip, images_BCHW: Tensor, *, legacy: bool = False) -> Tensor:
    """Unit features `BD` of images in [0, 1] of any size; `legacy` as the reference's evaluation: fed as [-1, 1], resized unfiltered."""
    x = images_BCHW.to(clip.device)
    if legacy:
        x = x * 2 - 1
    if x.shape[-2:] != (clip.size, clip.size):
        x = F.interpolate(x, size=(clip.size, clip.size), mode="bicubic", align_corners=False, antialias=not legacy)
        x = x if legacy else x.clamp(0, 1)
    mean, std = (torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (clip.mean, clip.std))
    return F.normalize(clip.model.encode_image((x - mean) / std).float(), dim=-1)


@torch.no_grad()
def text_features(clip: Clip, texts: list[str]) -> Tensor:
    """Unit features `BD` of texts."""
    return F.normalize(clip.model.encode_text(clip.tokenizer(texts).to(clip.device)).float(), dim=-1)


def embedding_codes(image_0_BD: Tensor, image_1_BD: Tensor) -> list[int]:
    """64 bits, signed, of each pair's embeddings: signs of 32 fixed random projections of either image (SimHash)."""
    planes = torch.randn(image_0_BD.shape[-1], _SIGNS, generator=torch.Generator().manual_seed(0)).to(image_0_BD.device)
    bits = (torch.cat([image_0_BD @ planes, image_1_BD @ planes], dim=-1) > 0).tolist()
    values = [sum(1 << i for i, bit in enumerate(row) if bit) for row in bits]
    return [v - (1 << 64) if v >= 1 << 63 else v for v in values]


def similarities(image_0_BD: Tensor, image_1_BD: Tensor, text_0_BD: Tensor, text_1_BD: Tensor) -> Similarities:
    """The four similarities of pairs, from unit features."""
    return Similarities(
        caption_0=(image_0_BD * text_0_BD).sum(-1),
        caption_1=(image_1_BD * text_1_BD).sum(-1),
        image=(image_0_BD * image_1_BD).sum(-1),
        direction=F.cosine_similarity(image_1_BD - image_0_BD, text_1_BD - text_0_BD, dim=-1),
    )
