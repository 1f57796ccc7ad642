"""Sampling over SD's noise schedule, for teacher and editor alike: Euler ancestral, the reference's, or DPM-Solver++(2M), the fast one.

Sigmas are linear in t from the last timestep to 0, then 0. All randomness is drawn a sample from its own seed, on the
CPU, so a seed gives the same picture in any batch and on any device (within float rounding).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

Solver = Literal["euler_ancestral", "dpmpp_2m"]
PREDICTIONS = ("epsilon", "v_prediction")
"""What a UNet may predict here."""
Predict = Callable[[Tensor, Tensor, int], Tensor]
"""(scaled latents_BCHW, timestep, step number) → the UNet's (guided) prediction."""


_LEAST_ALPHA = 2**-24
"""In place of the 0 at which schedules of zero terminal SNR end (Lin et al. 2024), whose noise level would be infinite."""


@dataclass(frozen=True)
class Schedule:
    """Noise levels `sigmas` (S+1, ending in 0) and the fractional timesteps `timesteps` (S) they belong to."""

    sigmas: Tensor
    timesteps: Tensor
    prediction: str
    solver: str

    def on(self, device: torch.device) -> Schedule:
        """On a device, so that no step waits for a transfer."""
        return replace(self, sigmas=self.sigmas.to(device), timesteps=self.timesteps.to(device))


def make_schedule(
    alphas_cumprod: Tensor, *, steps: int, prediction: str, solver: Solver = "euler_ancestral", start: float = 1.0
) -> Schedule:
    """A schedule of `steps` steps; `start` < 1 begins later, at that share of the timesteps (SDEdit)."""
    alphas = alphas_cumprod.double().cpu().clamp(min=_LEAST_ALPHA)
    levels = ((1 - alphas) / alphas).sqrt().log()
    times = torch.linspace((len(levels) - 1) * start, 0, steps, dtype=torch.float64)
    low = times.floor().long()
    high = times.ceil().long()
    sigmas = levels[low].lerp(levels[high], times - low).exp()
    return Schedule(torch.cat([sigmas, sigmas.new_zeros(1)]).float(), times.float(), prediction, solver)


def draw_noise(seeds: Sequence[int], shape: tuple[int, ...], steps: int) -> Tensor:
    """Standard normal noise `(steps, B, *shape)`: a sample's initial noise, then each step's ancestral noise."""
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        rows.append(torch.randn((steps, *shape), generator=generator))
    return torch.stack(rows, dim=1)


@dataclass(frozen=True)
class State:
    """Sampling after `done` steps: noisy latents, and the clean latents that the last step predicted."""

    x_BCHW: Tensor
    clean_BCHW: Tensor
    done: int = 0

    def rows(self, picks: Tensor) -> State:
        """The state of some rows of the batch."""
        return State(self.x_BCHW[picks], self.clean_BCHW[picks], self.done)


def begin(schedule: Schedule, noise_BCHW: Tensor, *, start_BCHW: Tensor | None = None) -> State:
    """The state before the first step: noise, over clean latents `start_BCHW` if there are any."""
    x = noise_BCHW * schedule.sigmas[0].to(noise_BCHW.device)
    x = x if start_BCHW is None else x + start_BCHW
    return State(x, x)


def scaled(schedule: Schedule, state: State) -> Tensor:
    """What the UNet sees of a state: noisy latents brought to unit variance."""
    return state.x_BCHW / (schedule.sigmas[state.done] ** 2 + 1).sqrt()


def take_step(schedule: Schedule, noise_SBCHW: Tensor, state: State, output_BCHW: Tensor) -> State:
    """The state after one more step, by the UNet's (guided) `output` for it; the schedule lies on the latents' device."""
    i, sigmas, x = state.done, schedule.sigmas, state.x_BCHW
    clean = to_clean(x, output_BCHW, sigmas[i], schedule.prediction)
    if i + 1 == len(schedule.timesteps):
        x = clean
    elif schedule.solver == "euler_ancestral":
        x = _euler_ancestral(x, clean, sigmas[i], sigmas[i + 1], noise_SBCHW[i + 1])
    else:
        x = _dpmpp_2m(x, clean, state.clean_BCHW if i else clean, sigmas, i)
    return State(x, clean, i + 1)


@torch.no_grad()
def advance(predict: Predict, schedule: Schedule, noise_SBCHW: Tensor, state: State, *, until: int) -> State:
    """Take steps until `until` are done; of the clean latents after the last step, `x_BCHW` is a copy."""
    schedule = schedule.on(noise_SBCHW.device)
    while state.done < until:
        output = predict(scaled(schedule, state), schedule.timesteps[state.done], state.done)
        state = take_step(schedule, noise_SBCHW, state, output)
    return state


def sample(predict: Predict, schedule: Schedule, noise_SBCHW: Tensor, *, start_BCHW: Tensor | None = None) -> Tensor:
    """Clean latents; `noise_SBCHW` holds initial and ancestral noise, `start_BCHW` clean latents to begin from."""
    state = begin(schedule, noise_SBCHW[0], start_BCHW=start_BCHW)
    return advance(predict, schedule, noise_SBCHW, state, until=len(schedule.timesteps)).clean_BCHW


def _euler_ancestral(x: Tensor, clean: Tensor, sigma: Tensor, following: Tensor, noise: Tensor) -> Tensor:
    """One step to `following`, part of it by fresh noise (k-diffusion's, eta 1)."""
    up = torch.minimum(following, (following**2 * (sigma**2 - following**2) / sigma**2).clamp(min=0).sqrt())
    down = (following**2 - up**2).clamp(min=0).sqrt()
    return x + (x - clean) / sigma * (down - sigma) + noise * up


def _dpmpp_2m(x: Tensor, clean: Tensor, before: Tensor, sigmas: Tensor, i: int) -> Tensor:
    """One multistep step of order two in log-sigma (Lu et al. 2022, DPM-Solver++(2M)); `before` is the last step's `clean`.

    Extrapolation is capped at that of equal steps: the last step of few is several times as long as the one before it.
    """
    step = (sigmas[i] / sigmas[i + 1]).log()
    last = (sigmas[i - 1] / sigmas[i]).log() if i else step
    ahead = clean + (clean - before) * (step / (2 * last)).clamp(max=0.5)
    return sigmas[i + 1] / sigmas[i] * x - torch.expm1(-step) * ahead


def add_noise(clean: Tensor, noise: Tensor, alpha: Tensor, prediction: str) -> tuple[Tensor, Tensor]:
    """Noisy latents at cumulative `alpha`, and what the UNet is to predict of them: eps, or v (Salimans & Ho 2022)."""
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    return noisy, noise if prediction == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * clean


def to_clean(x: Tensor, output: Tensor, sigma: Tensor, prediction: str) -> Tensor:
    """The predicted clean latents, from noisy latents at `sigma` and the UNet's eps or v."""
    if prediction == "epsilon":
        return x - sigma * output
    if prediction == "v_prediction":
        return x / (sigma**2 + 1) - output * sigma / (sigma**2 + 1).sqrt()
    raise ValueError(f"prediction type {prediction!r} is not supported: epsilon or v_prediction")
