"""Load a text-to-image teacher, a CLIP or an editor from a folder or the Hub: one way for the world and for SD 1.5.

A name is `world` (the embedded models), a local folder written as a path (`./vae`, `/models/sd15`), or a Hub id. Weights
are read from safetensors only.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from ip2p.errors import ModelError
from ip2p.store import digest, fingerprint
from ip2p.torchvision_cpu import declare_operators

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

EMBEDDED = Path(__file__).parent / "world" / "weights"


@dataclass(frozen=True)
class Diffusion:
    """A latent diffusion model: a teacher (`unet` takes C channels) or an editor (2·C)."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: SchedulerMixin
    device: torch.device

    @property
    def latent_channels(self) -> int:
        """C of the autoencoder's latents."""
        return int(self.vae.config.latent_channels)

    @property
    def image_size(self) -> int:
        """Side of a square picture at the size that the UNet was trained on, pixels."""
        return int(self.unet.config.sample_size) * self.factor

    @property
    def factor(self) -> int:
        """Pixels a latent cell, along one side."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))


@dataclass(frozen=True)
class Clip:
    """An OpenCLIP model with its tokenizer and the size and normalisation of its input."""

    model: Any
    tokenizer: Any
    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: torch.device


def resolve_device(name: str) -> torch.device:
    """The device that `auto` or a torch device name means here. Raises `ModelError` if it is not to be had."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f"models.device: {name!r} is no device; write `auto`, `cpu` or `cuda`") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"models.device: {name} is not available here; set it to `auto` or `cpu`")
    return device


def load_diffusion(name: str, *, device: torch.device, subject: str = "models.teacher") -> Diffusion:
    """Load a diffusers folder (or Hub id) in float32, ready for inference.

    Raises `ModelError` naming `subject` and what is missing.
    """
    declare_operators()
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    source = model_source(name, kind="teacher", subject=subject)
    parts: dict[str, Any] = {}
    for part, load in (("vae", AutoencoderKL), ("unet", UNet2DConditionModel), ("text_encoder", CLIPTextModel)):
        model = _part(load, source, part, subject, dtype=torch.float32, use_safetensors=True)
        parts[part] = model.to(device).eval().requires_grad_(False)
    parts["tokenizer"] = _part(CLIPTokenizer, source, "tokenizer", subject)
    parts["scheduler"] = _part(DDIMScheduler, source, "scheduler", subject)
    return Diffusion(**parts, device=device)


def load_clip(name: str, *, device: torch.device) -> Clip:
    """Load an OpenCLIP model. Raises `ModelError` if the folder or the name is unknown."""
    declare_operators()
    import open_clip

    if name != "world" and not _is_path(name):
        architecture, _, pretrained = name.partition(":")
        if architecture not in open_clip.list_models():
            raise ModelError(f"models.clip: {name!r} is no OpenCLIP architecture; write ARCHITECTURE:PRETRAINED or a folder as ./path")
        source, weights = architecture, pretrained or None
    else:
        folder = Path(model_source(name, kind="clip", subject="models.clip"))
        if not (folder / "open_clip_config.json").is_file():
            raise ModelError(f"models.clip: {folder} holds no open_clip_config.json; give the folder of an OpenCLIP model")
        source, weights = f"local-dir:{folder}", None
    try:
        model = open_clip.create_model(source, pretrained=weights, device=device, weights_only=True)
        tokenizer = open_clip.get_tokenizer(source)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"models.clip: {name} cannot be loaded: {str(error).splitlines()[0]}") from error
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


def model_source(name: str, *, kind: str, subject: str) -> str:
    """Folder or Hub id that a name stands for. Raises `ModelError` if a local folder is missing."""
    if name == "world":
        name = str(EMBEDDED / kind)
    if not _is_path(name):
        return name
    path = Path(name).expanduser()
    if not path.is_dir():
        raise ModelError(f"{subject}: no folder {name}; give an existing folder, a Hub id, or `world`")
    return str(path)


@lru_cache(maxsize=8)
def model_digest(name: str, kind: str) -> str:
    """What identifies a model in a fingerprint: the bytes of a local folder, the name of a remote one."""
    source = model_source(name, kind=kind, subject=f"models.{kind}")
    return digest(Path(source)) if Path(source).is_dir() else fingerprint(source)


def encode_text(model: Diffusion, texts: list[str]) -> torch.Tensor:
    """Last hidden states of the text encoder, `text_BLD`, padded to its full context as SD does."""
    length = model.text_encoder.config.max_position_embeddings
    tokens = model.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    with torch.no_grad():
        states: torch.Tensor = model.text_encoder(tokens.input_ids.to(model.device)).last_hidden_state
    return states


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or (os.sep == "\\" and ":" in name)


def _part(load: Any, source: str, part: str, subject: str, **options: Any) -> Any:
    if _is_path(source) and not (Path(source) / part).is_dir():
        raise ModelError(f"{subject}: {source} has no `{part}` folder; give a diffusers text-to-image folder")
    try:
        return load.from_pretrained(source, subfolder=part, **options)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"{subject}: {source}/{part} cannot be loaded: {str(error).splitlines()[0]}") from error
