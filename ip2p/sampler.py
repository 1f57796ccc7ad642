"""Euler ancestral sampling over SD's noise schedule, for teacher and editor alike (METHOD: k-diffusion's, eta 1).

Sigmas are linear in t from the last timestep to 0, then 0. All randomness is drawn a sample from its own seed, on the
CPU, so a seed gives the same picture in any batch and on any device (within float rounding).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor, int], Tensor]
"""(scaled latents_BCHW, timestep, step number) → the UNet's (guided) prediction."""


@dataclass(frozen=True)
class Schedule:
    """Noise levels `sigmas` (S+1, ending in 0) and the fractional timesteps `timesteps` (S) they belong to."""

    sigmas: Tensor
    timesteps: Tensor
    prediction: str


def make_schedule(alphas_cumprod: Tensor, *, steps: int, prediction: str, start: float = 1.0) -> Schedule:
    """A schedule of `steps` steps; `start` < 1 begins later, at that share of the timesteps (SDEdit)."""
    alphas = alphas_cumprod.double().cpu()
    levels = ((1 - alphas) / alphas).sqrt().log()
    times = torch.linspace((len(levels) - 1) * start, 0, steps, dtype=torch.float64)
    low = times.floor().long()
    high = times.ceil().long()
    sigmas = levels[low].lerp(levels[high], times - low).exp()
    return Schedule(torch.cat([sigmas, sigmas.new_zeros(1)]).float(), times.float(), prediction)


def draw_noise(seeds: Sequence[int], shape: tuple[int, ...], steps: int) -> Tensor:
    """Standard normal noise `(steps, B, *shape)`: a sample's initial noise, then each step's ancestral noise."""
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        rows.append(torch.randn((steps, *shape), generator=generator))
    return torch.stack(rows, dim=1)


@torch.no_grad()
def sample_ancestral(predict: Predict, schedule: Schedule, noise_SBCHW: Tensor, *, start_BCHW: Tensor | None = None) -> Tensor:
    """Run the sampler; `noise_SBCHW` holds initial and ancestral noise, `start_BCHW` clean latents to begin from."""
    sigmas = schedule.sigmas.to(noise_SBCHW.device)
    x = noise_SBCHW[0] * sigmas[0]
    if start_BCHW is not None:
        x = x + start_BCHW
    for i in range(len(schedule.timesteps)):
        sigma, following = sigmas[i], sigmas[i + 1]
        output = predict(x / (sigma**2 + 1).sqrt(), schedule.timesteps[i], i)
        clean = to_clean(x, output, sigma, schedule.prediction)
        up = torch.minimum(following, (following**2 * (sigma**2 - following**2) / sigma**2).clamp(min=0).sqrt())
        down = (following**2 - up**2).clamp(min=0).sqrt()
        x = x + (x - clean) / sigma * (down - sigma)
        if following > 0:
            x = x + noise_SBCHW[i + 1] * up
    return x


def to_clean(x: Tensor, output: Tensor, sigma: Tensor, prediction: str) -> Tensor:
    """The predicted clean latents, from noisy latents at `sigma` and the UNet's eps or v."""
    if prediction == "epsilon":
        return x - sigma * output
    if prediction == "v_prediction":
        return x / (sigma**2 + 1) - output * sigma / (sigma**2 + 1).sqrt()
    raise ValueError(f"prediction type {prediction!r} is not supported: epsilon or v_prediction")
