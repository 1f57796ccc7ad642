"""Editing with two guidance scales (paper §3.2.1, eq. 3), batched over pictures, instructions, scales and seeds.

e = e(∅,∅) + s_I·(e(I,∅) − e(∅,∅)) + s_T·(e(I,T) − e(I,∅))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ip2p.diffusion import Diffusion, decode_latents, encode_images, encode_text, run_unet
from ip2p.model.unet import require_editor
from ip2p.models import load_diffusion
from ip2p.pictures import from_pillow, to_pillow
from ip2p.sampler import Solver, draw_noise, make_schedule, sample


@dataclass(frozen=True, slots=True)
class EditRequest:
    """One edit: instruction, scales s_T and s_I, and the seed that decides its noise."""

    instruction: str
    text_guidance: float = 7.5
    image_guidance: float = 1.5
    seed: int = 0


def load_editor(folder: Path | str, *, device: torch.device, dtype: torch.dtype = torch.float32) -> Diffusion:
    """Load a trained editor. Raises `ModelError` if the folder is missing or holds no editor."""
    name = folder if isinstance(folder, str) else f"./{folder}" if not folder.is_absolute() else str(folder)
    editor = load_diffusion(name, device=device, dtype=dtype, subject="editor")
    require_editor(editor.unet, editor.latent_channels, f"editor: {name}")
    return editor


@torch.inference_mode()
def edit_batch(
    editor: Diffusion,
    images_BCHW: Tensor,
    requests: list[EditRequest],
    *,
    steps: int,
    solver: Solver = "euler_ancestral",
    on_step: Callable[[int], None] = lambda i: None,
) -> Tensor:
    """Edited images `BCHW` in [0, 1] of images in [0, 1] whose sides are multiples of the latent factor."""
    device, count = editor.device, len(requests)
    sources, _ = encode_images(editor, images_BCHW)
    empty, texts = encode_text(editor, [""]), encode_text(editor, [r.instruction for r in requests])
    context = torch.cat([empty.expand(2 * count, -1, -1), texts])
    images = torch.cat([torch.zeros_like(sources), sources, sources])
    s_text, s_image = (
        torch.tensor([getattr(r, n) for r in requests], device=device).view(-1, 1, 1, 1) for n in ("text_guidance", "image_guidance")
    )

    def predict(x: Tensor, timestep: Tensor, i: int) -> Tensor:
        on_step(i)
        rows = torch.cat([torch.cat([x, x, x]), images], dim=1)
        neither, image, both = run_unet(editor, rows, timestep, context).chunk(3)
        guided: Tensor = neither + s_image * (image - neither) + s_text * (both - image)
        return guided

    scheduler: Any = editor.scheduler
    schedule = make_schedule(scheduler.alphas_cumprod, steps=steps, prediction=scheduler.config.prediction_type, solver=solver)
    noise = draw_noise([r.seed for r in requests], tuple(sources.shape[1:]), steps).to(device)
    return decode_latents(editor, sample(predict, schedule, noise))


def edit_picture(
    editor: Diffusion,
    picture: Image.Image,
    request: EditRequest,
    *,
    steps: int,
    solver: Solver = "euler_ancestral",
    on_step: Callable[[int], None] = lambda i: None,
) -> Image.Image:
    """Edit a picture of any size; the result has the size of the original."""
    working = picture.resize(working_size(editor, picture.size), Image.Resampling.LANCZOS)
    edited = edit_batch(editor, from_pillow(working)[None], [request], steps=steps, solver=solver, on_step=on_step)
    return to_pillow(edited[0]).resize(picture.size, Image.Resampling.LANCZOS)


def working_size(editor: Diffusion, size: tuple[int, int]) -> tuple[int, int]:
    """The size nearest in shape and area to what the editor was trained on, in multiples that its UNet divides."""
    multiple = editor.factor * int(2 ** (len(editor.unet.config.block_out_channels) - 1))
    scale = editor.image_size / (size[0] * size[1]) ** 0.5
    width, height = (max(multiple, round(side * scale / multiple) * multiple) for side in size)
    return width, height
