"""Autoencoder of the illustrated world: a diffusers `AutoencoderKL`, f=8, trained on crops, then on whole pictures.

Squared error plus squared error of image gradients (flat art lives by its edges) and a faint KL term (1e-6).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ip2p.pictures import grid, to_pillow
from ip2p.world.corpus import Corpus
from ip2p.world.pretrain.fit import Leg, fit

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
    rank: int, workers: int, corpus: Corpus, folder: Path, leg: Leg, *, batch: int, crop: int, device: str = "cpu"
) -> None:
    """Train until `leg.steps`; the last 15% of the steps see whole pictures in smaller batches (same pixels a step)."""
    size = corpus.picture(0).shape[0]
    torch.manual_seed(leg.seed)
    model = new_autoencoder(size=size).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        side = crop if step < 0.85 * leg.steps else size
        images_BCHW = crops(corpus, generator, batch=max(1, batch * crop * crop // (side * side)), side=side)
        return reconstruction_loss(model, images_BCHW.to(device), generator)

    def on_save(step: int) -> None:
        shown_BCHW = crops(corpus, torch.Generator().manual_seed(0), batch=8, side=size).to(device)
        decoded = model.decode(model.encode(shown_BCHW).latent_dist.mode()).sample
        rows = [[to_pillow((x + 1) / 2) for x in images] for images in (shown_BCHW, decoded)]
        grid(rows).save(folder / f"grid-{step:06d}.png")

    fit(model, loss, leg, folder, rank=rank, workers=workers, on_save=on_save)


def reconstruction_loss(model: AutoencoderKL, images_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
    """Loss of one batch of images in [-1, 1], and its PSNR in dB."""
    posterior = model.encode(images_BCHW).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(images_BCHW)
    recon = model.decode(posterior.mean + posterior.std * noise).sample
    error = recon - images_BCHW
    mse = error.square().mean()
    edges = error.diff(dim=2).square().mean() + error.diff(dim=3).square().mean()
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return mse + _EDGES * edges + _KL * kl, {"psnr": psnr(mse.detach())}


def psnr(mse: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error over images in [-1, 1]."""
    return float(10 * torch.log10(4 / mse))


def crops(corpus: Corpus, generator: torch.Generator, *, batch: int, side: int) -> Tensor:
    """Random square crops, `images_BCHW` in [-1, 1]; offsets are multiples of 8 so that crops see the latent grid."""
    size = corpus.picture(0).shape[0]
    cells = (size - side) // 8 + 1
    picks = torch.randint(0, len(corpus), (batch,), generator=generator).tolist()
    offsets = (torch.randint(0, cells, (batch, 2), generator=generator) * 8).tolist()
    stack = np.stack([corpus.picture(i)[y : y + side, x : x + side] for i, (y, x) in zip(picks, offsets, strict=True)])
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float().div(127.5).sub(1)
