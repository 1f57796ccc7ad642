"""Autoencoder of the illustrated world: a diffusers `AutoencoderKL`, f=8, trained on crops, then on whole pictures.

Squared error plus squared error of image gradients (flat art lives by its edges) and a faint KL term (1e-6).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ip2p.models import resolve_dtype
from ip2p.params.model import HELD_OUT
from ip2p.pictures import grid, to_pillow
from ip2p.world.corpus import Corpus
from ip2p.world.pretrain.fit import Batch, Leg, Measured, fit, ways

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

_KL = 1e-6
_EDGES = 0.5


def new_autoencoder(*, size: int, latent_channels: int = 12) -> AutoencoderKL:
    """An untrained autoencoder for pictures of `size` pixels."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 48, 96, 128),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=size,
        scaling_factor=1.0,
    )


def train_autoencoder(
    rank: int, workers: int, corpus: Corpus, folder: Path, leg: Leg, *, batch: int, crop: int, device: str = "cpu", compiled: bool = False
) -> None:
    """Train to the end of the leg; the last 15% of the steps see whole pictures in smaller batches (same pixels a step)."""
    size = corpus.picture(0).shape[0]
    torch.manual_seed(leg.seed)
    model = new_autoencoder(size=size).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    half = torch.device(device).type == "cuda" and resolve_dtype("auto", torch.device(device)) == torch.bfloat16

    def draw(step: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        side = min(crop, size) if step < 0.85 * leg.steps else size
        images_BHWC = crops(corpus, generator, batch=max(1, batch * crop * crop // (side * side)), side=side)
        shape = (len(images_BHWC), model.config.latent_channels, side // 8, side // 8)
        return images_BHWC, torch.randn(shape, generator=generator)

    def loss(measured: Callable[..., Measured], drawn: Batch) -> Measured:
        images_BHWC, noise_BCHW = drawn
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=half):
            return measured(model, in_range(images_BHWC), noise_BCHW)

    def on_save(step: int) -> None:
        shown_BCHW = in_range(crops(corpus, torch.Generator().manual_seed(0), batch=8, side=size).to(device))
        decoded = model.decode(model.encode(shown_BCHW).latent_dist.mode()).sample
        rows = [[to_pillow((x + 1) / 2) for x in images] for images in (shown_BCHW, decoded)]
        grid(rows).save(folder / f"grid-{step:06d}.png")

    losses = ways(loss, reconstruction_loss, compiled=compiled)
    fit(model, draw, losses, leg, folder, rank=rank, workers=workers, on_save=on_save)


def reconstruction_loss(model: AutoencoderKL, images_BCHW: Tensor, noise_BCHW: Tensor) -> Measured:
    """Loss of one batch of images in [-1, 1] with the noise of its latents, and its PSNR in dB."""
    posterior = model.encode(images_BCHW).latent_dist
    recon = model.decode(posterior.mean + posterior.std * noise_BCHW.to(posterior.mean)).sample
    error = recon.float() - images_BCHW
    mse = error.square().mean()
    edges = error.diff(dim=2).square().mean() + error.diff(dim=3).square().mean()
    kl = posterior.kl().float().mean() / posterior.mean[0].numel()
    return mse + _EDGES * edges + _KL * kl, {"psnr": psnr(mse.detach())}


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of a mean squared error over images in [-1, 1]."""
    return 10 * torch.log10(4 / mse)


def crops(corpus: Corpus, generator: torch.Generator, *, batch: int, side: int) -> Tensor:
    """Random square crops, `images_BHWC` of 8 bits; offsets are multiples of 8 so that crops see the latent grid."""
    size = corpus.picture(0).shape[0]
    cells = (size - side) // 8 + 1
    picks = torch.randint(HELD_OUT, len(corpus), (batch,), generator=generator).tolist()
    offsets = (torch.randint(0, cells, (batch, 2), generator=generator) * 8).tolist()
    stack = np.stack([corpus.picture(i)[y : y + side, x : x + side] for i, (y, x) in zip(picks, offsets, strict=True)])
    return torch.from_numpy(stack)


def in_range(images_BHWC: Tensor) -> Tensor:
    """Pictures of 8 bits as `images_BCHW` in [-1, 1]."""
    return images_BHWC.permute(0, 3, 1, 2).float().div(127.5).sub(1)
