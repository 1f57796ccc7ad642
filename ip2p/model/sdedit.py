"""The SDEdit baseline (Meng et al. 2022): noise the source part of the way, let the teacher denoise it to the edited caption."""

from __future__ import annotations

import torch
from torch import Tensor

from ip2p.diffusion import Diffusion, decode_latents, encode_images, encode_text, run_guided
from ip2p.sampler import Solver, draw_noise, make_schedule, sample


@torch.inference_mode()
def sdedit(
    teacher: Diffusion,
    sources_BCHW: Tensor,
    captions: list[str],
    seeds: list[int],
    *,
    strength: float,
    steps: int,
    guidance: float,
    solver: Solver = "euler_ancestral",
) -> Tensor:
    """SDEdit with the teacher: noise the source to `strength` of the schedule, denoise with the edited caption."""
    steps = max(2, round(steps * strength))
    schedule = make_schedule(teacher.alphas_cumprod, steps=steps, prediction=teacher.prediction, solver=solver, start=strength)
    latents = encode_images(teacher, sources_BCHW)[0] * teacher.vae.config.scaling_factor
    context = torch.cat([encode_text(teacher, [""]).expand(len(captions), -1, -1), encode_text(teacher, captions)])

    def predict(x: Tensor, timestep: Tensor, i: int) -> Tensor:
        return run_guided(teacher, x, timestep, context, guidance)

    noise = draw_noise(seeds, tuple(latents.shape[1:]), len(schedule.timesteps)).to(teacher.device)
    return decode_latents(teacher, sample(predict, schedule, noise, start_BCHW=latents))
