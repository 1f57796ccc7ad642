"""A latent diffusion model (teacher or editor) and the five things that are done with it, each written once.

Text to states, images to latents and back, the UNet's prediction, classifier-free guidance. All take and give float32;
inside, the arithmetic is the model's `dtype` by autocast. Shapes: B batch, C H W image or latent, L tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer


@dataclass(frozen=True)
class Diffusion:
    """A latent diffusion model: a teacher (`unet` takes C channels) or an editor (2·C)."""

    vae: AutoencoderKL
    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: SchedulerMixin
    device: torch.device
    dtype: torch.dtype = torch.float32

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

    def arithmetic(self) -> torch.autocast:
        """The context in which UNet and autoencoder compute."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)


@torch.no_grad()
def encode_text(model: Diffusion, texts: list[str]) -> Tensor:
    """Last hidden states of the text encoder, `text_BLD`, padded to its full context as SD does."""
    length = model.text_encoder.config.max_position_embeddings
    tokens = model.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    states: Tensor = model.text_encoder(tokens.input_ids.to(model.device)).last_hidden_state
    return states


@torch.no_grad()
def encode_images(model: Diffusion, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (its mode) and spread of the autoencoder's posterior of images in [0, 1]: latents as they are, unscaled (METHOD §4)."""
    with model.arithmetic():
        posterior = model.vae.encode((images_BCHW.to(model.device) * 2 - 1).contiguous(memory_format=torch.channels_last)).latent_dist
    return posterior.mean.float(), posterior.std.float()


@torch.no_grad()
def decode_latents(model: Diffusion, latents_BCHW: Tensor) -> Tensor:
    """Images in [0, 1] of scaled latents."""
    with model.arithmetic():
        latents = (latents_BCHW / model.vae.config.scaling_factor).contiguous(memory_format=torch.channels_last)
        images = model.vae.decode(latents).sample
    pictures: Tensor = ((images.float() + 1) / 2).clamp(0, 1)
    return pictures


def run_unet(model: Diffusion, rows_BCHW: Tensor, timestep: Tensor, text_BLD: Tensor) -> Tensor:
    """The UNet's prediction for rows of noisy (scaled) latents, with the source's latents beside them for an editor."""
    with model.arithmetic():
        rows = rows_BCHW.contiguous(memory_format=torch.channels_last)
        prediction: Tensor = model.unet(rows, timestep.to(model.device), text_BLD).sample
    return prediction.float()


def run_guided(model: Diffusion, x_BCHW: Tensor, timestep: Tensor, text_2BLD: Tensor, guidance: float | Tensor) -> Tensor:
    """A teacher's prediction under classifier-free guidance; `text_2BLD` holds the empty texts, then the texts."""
    without, given = run_unet(model, torch.cat([x_BCHW, x_BCHW]), timestep, text_2BLD).chunk(2)
    return without + guidance * (given - without)


@torch.inference_mode()
def reconstruct(model: Diffusion, images_BCHW: Tensor, *, batch: int = 32) -> Tensor:
    """Images in [0, 1] through the autoencoder and back, as 8-bit pictures hold them; on the CPU."""
    parts = []
    for x in images_BCHW.split(batch):
        latents = encode_images(model, x)[0] * model.vae.config.scaling_factor
        parts.append(decode_latents(model, latents).mul(255).round().div(255).cpu())
    return torch.cat(parts)
