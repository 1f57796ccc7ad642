"""Editing requests as they come: each is at a step of its own, and all of one latent size share every UNet call.

A request joins at the next step of whatever is under way and waits for no batch to end (continuous batching, as servers of
language models do it); one that is given up leaves at its next step. A seed gives the picture that `edit_batch` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ip2p.diffusion import Diffusion, decode_latents, run_unet
from ip2p.model.edit import Remembered
from ip2p.model.guidance import EditOptions, EditRequest, Guide
from ip2p.sampler import Schedule, State, begin, draw_noise, make_schedule, scaled, take_step


@dataclass(eq=False)
class Editing:
    """One request under way: what guides it, its noise, and how far it is."""

    guide: Guide
    schedule: Schedule
    noise_S1CHW: Tensor
    state: State

    @property
    def steps(self) -> int:
        """Steps in all."""
        return len(self.schedule.timesteps)

    @property
    def ended(self) -> bool:
        """Whether all steps are done."""
        return self.state.done == self.steps

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its latents; only equal ones share a UNet call."""
        return tuple(self.state.x_BCHW.shape)


@torch.inference_mode()
def begin_editing(editor: Diffusion, image_CHW: Tensor, request: EditRequest, options: EditOptions, remembered: Remembered) -> Editing:
    """Start an edit of an image in [0, 1] whose sides are multiples of the latent factor."""
    sources = remembered.encode(editor, image_CHW[None])
    texts = remembered.embed(editor, ["", request.instruction])
    schedule = make_schedule(editor.alphas_cumprod, steps=options.steps, prediction=editor.prediction, solver=options.solver)
    noise = draw_noise([request.seed], tuple(sources.shape[1:]), options.steps).to(editor.device)
    guide = Guide([request], sources, texts[:1], texts[1:], options)
    return Editing(guide, schedule.on(editor.device), noise, begin(schedule, noise[0]))


@torch.inference_mode()
def advance_all(editor: Diffusion, editings: Sequence[Editing]) -> None:
    """Take one step of each; all must have one shape of latents, and none may have ended."""
    asked = [(e, e.guide.rows(e.state.done)) for e in editings]
    rows = torch.cat([torch.cat([scaled(e.schedule, e.state)[r.request_R], r.images_RCHW], dim=1) for e, r in asked])
    times = torch.cat([e.schedule.timesteps[e.state.done].expand(len(r.request_R)) for e, r in asked])
    outputs = run_unet(editor, rows, times, torch.cat([r.text_RLD for _, r in asked])).split([len(r.request_R) for _, r in asked])
    for editing, out in zip(editings, outputs, strict=True):
        guided = editing.guide.combine(out, editing.state.done, editing.state.x_BCHW)
        editing.state = take_step(editing.schedule, editing.noise_S1CHW, editing.state, guided)


@torch.inference_mode()
def pictures_of(editor: Diffusion, editings: Sequence[Editing]) -> Tensor:
    """Images `BCHW` in [0, 1], on the CPU: the edits of those that have ended, of others the clean picture as now predicted."""
    return decode_latents(editor, torch.cat([e.state.clean_BCHW for e in editings])).cpu()
