"""The four CLIP similarities (paper §3.1.2), once: `filter` and `evaluate` share them.

Images in [0, 1], resized bicubic to CLIP's size with no crop; features are L2-normalised.
Shapes: B batch, D embedding, C H W image.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ip2p.models import Clip

_SIGNS = 32


@dataclass(frozen=True, slots=True)
class Similarities:
    """Cosines of a batch of pairs, each `B`."""

    caption_0: Tensor
    caption_1: Tensor
    image: Tensor
    direction: Tensor


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
