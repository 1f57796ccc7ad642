"""What training minimises and by which schedules: the loss, the rate, the EMA's decay, the optimizers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ip2p.diffusion import Diffusion, text_arguments
from ip2p.errors import ParamsError
from ip2p.model.data import TrainBatch
from ip2p.muon import Muon
from ip2p.params import TrainParams
from ip2p.sampler import add_noise


def loss_of(unet: Any, batch: TrainBatch, model: Diffusion, *, min_snr: float = 0.0) -> Tensor:
    """Mean squared error of the UNet's eps (or v) on a batch; with `min_snr` γ, min(SNR, γ) weights x0 (Hang et al. 2023)."""
    errors_B = _errors(unet, batch, model)
    if min_snr:
        alpha_B = model.alphas_cumprod[batch.timesteps_B].to(model.device)
        errors_B = errors_B * snr_weight(alpha_B, model.prediction, min_snr)
    return errors_B.mean()


def dpo_loss(unet: Any, start: Any, batch: TrainBatch, model: Diffusion, *, beta: float) -> Tensor:
    """Diffusion-DPO (Wallace et al. 2023, eq. 14): -log σ(β/2 · (gain on the better edit - gain on the worse)).

    The batch's first half are the better edits, its second the worse. An edit's gain is by how much its error is smaller than
    that of the UNet at the start.
    """
    with torch.no_grad():
        before = _errors(start, batch, model)
    better, worse = (before - _errors(unet, batch, model)).chunk(2)
    return -F.logsigmoid(beta / 2 * (better - worse)).mean()


def _errors(unet: Any, batch: TrainBatch, model: Diffusion) -> Tensor:
    """The mean squared error of each sample's eps (or v)."""
    device = model.device
    alpha = model.alphas_cumprod[batch.timesteps_B].view(-1, 1, 1, 1).to(device)
    clean, noise, source, text = (x.to(device) for x in (batch.clean_BCHW, batch.noise_BCHW, batch.source_BCHW, batch.text_BLD))
    noisy, target = add_noise(clean, noise, alpha, model.prediction)
    rows = torch.cat([noisy, source], dim=1).contiguous(memory_format=torch.channels_last)
    conditions = text_arguments(model, text, (rows.shape[-2], rows.shape[-1]))
    errors_B: Tensor = (unet(rows, batch.timesteps_B.to(device), **conditions).sample.float() - target).square().mean(dim=(1, 2, 3))
    return errors_B


def snr_weight(alpha_B: Tensor, prediction: str, gamma: float) -> Tensor:
    """min(SNR, γ) over what an error of eps, or of v, weighs in x0: SNR, or SNR + 1."""
    snr = alpha_B / (1 - alpha_B)
    weight: Tensor = (gamma / snr).clamp(max=1) if prediction == "epsilon" else snr.clamp(max=gamma) / (snr + 1)  # SNR may be 0
    return weight


def learning_rate(section: TrainParams, step: int) -> float:
    """The rate at a step: linear warm-up, constant, linear fall over the last share `decay`."""
    rise = min(1.0, (step + 1) / section.warmup) if section.warmup else 1.0
    fall = min(1.0, (section.steps - step) / (section.steps * section.decay)) if section.decay else 1.0
    return section.lr * rise * fall


def ema_rate(section: TrainParams, step: int) -> float:
    """EMA decay with warm-up, as the reference averages: min(decay, (1 + step) / (10 + step))."""
    return min(section.ema, (1 + step) / (10 + step))


def require_optimizer(section: TrainParams) -> None:
    """Raise `ParamsError` if the optimizer is not installed."""
    if section.optimizer == "adamw8bit":
        try:
            import bitsandbytes  # noqa: F401
        except ImportError as error:
            raise ParamsError("train.optimizer: adamw8bit needs bitsandbytes; `pip install 'ip2p[gpu]'`, or take adamw") from error


def new_optimizer(unet: nn.Module, section: TrainParams) -> torch.optim.Optimizer:
    """The optimizer that the parameters name, over the weights that are trained."""
    if section.optimizer == "muon":
        return Muon(unet, lr=section.lr, weight_decay=section.weight_decay)
    weights = [p for p in unet.parameters() if p.requires_grad]
    if section.optimizer == "adamw8bit":
        require_optimizer(section)
        import bitsandbytes

        optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(weights, lr=section.lr, weight_decay=section.weight_decay)
        return optimizer
    fused = True if weights[0].device.type == "cuda" else None
    return torch.optim.AdamW(weights, lr=section.lr, weight_decay=section.weight_decay, fused=fused)
