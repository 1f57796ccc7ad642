"""Pictures → how unsafe an image classifier finds them: a hook for any transformers classifier with a label such as `nsfw`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from ip2p.errors import ModelError, first_line
from ip2p.models import model_source, pinned
from ip2p.torchvision_cpu import declare_operators

LABELS = ("nsfw", "unsafe", "porn", "hentai", "sexy")
"""Labels whose probabilities add up to what a picture is rated."""


@dataclass(frozen=True)
class Safety:
    """A classifier, its input's size and normalisation, and the numbers of its unsafe labels."""

    model: Any
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    unsafe: tuple[int, ...]
    device: torch.device


def load_safety(name: str, *, device: torch.device) -> Safety:
    """Load an image classifier from a folder or the Hub. Raises `ModelError` if it has no label of `LABELS`."""
    declare_operators()
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    source = model_source(name, kind="safety", subject="models.safety")
    try:
        model = AutoModelForImageClassification.from_pretrained(**pinned(source), use_safetensors=True)
        preprocess = AutoImageProcessor.from_pretrained(**pinned(source))
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"models.safety: {source} cannot be loaded: {first_line(error)}") from error
    unsafe = tuple(int(i) for i, label in model.config.id2label.items() if str(label).lower() in LABELS)
    if not unsafe:
        raise ModelError(f"models.safety: {source} knows {sorted(map(str, model.config.id2label.values()))}, none of {', '.join(LABELS)}")
    side = preprocess.size.get("shortest_edge")
    size = (side, side) if side else (preprocess.size["height"], preprocess.size["width"])
    frozen = model.to(device).eval().requires_grad_(False)
    return Safety(frozen, size, tuple(preprocess.image_mean), tuple(preprocess.image_std), unsafe, device)


@torch.inference_mode()
def rate_unsafe(safety: Safety, images_BCHW: Tensor) -> Tensor:
    """Probability `B` that each image in [0, 1] is unsafe."""
    x = F.interpolate(images_BCHW.to(safety.device), size=safety.size, mode="bilinear", align_corners=False, antialias=True)
    mean, std = (torch.tensor(v, device=x.device).view(1, -1, 1, 1) for v in (safety.mean, safety.std))
    probabilities: Tensor = safety.model(pixel_values=(x - mean) / std).logits.float().softmax(-1)
    return probabilities[:, list(safety.unsafe)].sum(-1)
