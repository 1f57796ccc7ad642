"""Known faults of editors, found by looking at the weights and by denoising pairs whose edit is known.

Losses are means over pairs and evenly spaced timesteps, with one noise for all conditions: an editor that was trained right
denoises best with its picture as the mode, unscaled; keeps the teacher's loss without picture and text; and is helped by its
picture when the text is gone. `benchmarks/faults.py` trains editors with a fault and prints what is found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ip2p.diffusion import Diffusion, encode_images, encode_text, run_unet
from ip2p.errors import ModelError
from ip2p.model.data import example_pairs
from ip2p.model.unet import new_editor_unet
from ip2p.records import RECORD
from ip2p.sampler import add_noise
from ip2p.store import read_json

_TIMESTEPS = (50, 200, 400, 600, 800, 950)
_BATCH = 16
_SAME_BIAS = 0.8
_WORSE = 1.1
"""Times the teacher's loss that an editor may have with neither picture nor text (docs/log.md)."""
_HELPED = 0.75
"""Share of the loss without the picture below which an editor uses it enough to be judged (docs/log.md)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: good, faulty, or (None) not to be known."""

    name: str
    good: bool | None
    told: str

    def line(self) -> str:
        """As it is printed."""
        return f"{ {True: 'ok   ', False: 'FAULT', None: '?    '}[self.good] }  {self.name}: {self.told}"


def check(editor: Diffusion, teacher: Diffusion, dataset: Path, folder: Path | None = None, *, pairs: int = 48) -> list[Finding]:
    """Look for the known faults of an editor whose teacher is known, on pairs of a dataset.

    Raises `ModelError` if the UNet is no editor's, `DataError` if the dataset cannot be read.
    """
    findings = [bias_kept(editor, teacher), averaged(folder)]
    instructions, before, after = example_pairs(dataset, pairs, editor.image_size)
    return findings + behaviour(editor, teacher, before, after, instructions)


def bias_kept(editor: Diffusion, teacher: Diffusion) -> Finding:
    """Whether `conv_in`'s bias was kept when the UNet grew; a well-known training script left it random."""
    if editor.unet.conv_in.bias.shape != teacher.unet.conv_in.bias.shape:
        ours, theirs = (len(m.unet.conv_in.bias) for m in (editor, teacher))
        raise ModelError(
            f"models.teacher: its UNet is {theirs} channels wide, the editor's {ours}; name the teacher that it was trained from"
        )
    same = float(F.cosine_similarity(editor.unet.conv_in.bias, teacher.unet.conv_in.bias, dim=0))
    told = f"cosine {same:.2f} with the teacher's; training moves it little, a new one has none"
    return Finding("bias of conv_in kept", same >= _SAME_BIAS, told)


def averaged(folder: Path | None) -> Finding:
    """Whether the weights are a moving average, by the training record."""
    path = folder / RECORD if folder else None
    if path is None or not path.exists():
        return Finding("moving average", None, f"no {RECORD} beside the model; weights of the last step give rougher edits")
    decay = read_json(path)["train"]["ema"]
    return Finding("moving average", decay > 0, f"trained with an EMA decay of {decay}")


@torch.inference_mode()
def behaviour(editor: Diffusion, teacher: Diffusion, before: Tensor, after: Tensor, instructions: list[str]) -> list[Finding]:
    """What the losses under right and wrong conditions say."""
    scale = editor.vae.config.scaling_factor
    source, clean = (torch.cat([encode_images(editor, x)[0] for x in images.split(_BATCH)]) for images in (before, after))
    clean = clean * scale
    text, empty = encode_text(editor, instructions), encode_text(editor, [""]).expand(len(instructions), -1, -1)
    none = torch.zeros_like(source)
    told = denoising_loss(editor, clean, source, text)
    scaled = denoising_loss(editor, clean, source * scale, text)
    blind = denoising_loss(editor, clean, none, text)
    no_text = denoising_loss(editor, clean, source, empty)
    nothing = denoising_loss(editor, clean, none, empty)
    start = replace(teacher, unet=new_editor_unet(teacher.unet, editor.latent_channels).to(editor.device).eval())
    before_training = denoising_loss(start, clean, none, encode_text(teacher, [""]).expand(len(instructions), -1, -1))
    same_type = editor.prediction == teacher.prediction
    spread, helped = float(clean.std()), told < _HELPED * blind
    return [
        Finding("latents of unit spread", 0.5 < spread < 2.0, f"{spread:.2f} after the autoencoder's scaling factor of {scale:g}"),
        Finding(
            "source latents unscaled",
            None if scale == 1 else told <= scaled,
            f"loss {told:.4f} with the mode as it is, {scaled:.4f} with it scaled by {scale:g}",
        ),
        Finding("reads the picture", told < blind, f"loss {told:.4f} with the picture, {blind:.4f} without"),
        Finding(
            "trained without the picture",
            nothing <= _WORSE * before_training if same_type else None,
            f"loss {nothing:.4f} with neither picture nor text, the teacher's {before_training:.4f}"
            + ("" if same_type else ", which predicts another quantity"),
        ),
        Finding(
            "trained without the text",
            no_text < blind if helped else None,
            f"loss {no_text:.4f} with the picture alone, {blind:.4f} with the text alone"
            + ("" if helped else "; the picture helps too little to tell"),
        ),
    ]


def denoising_loss(model: Diffusion, clean: Tensor, source: Tensor, text: Tensor) -> float:
    """Mean squared error of an editor's prediction, of the type that its scheduler names, over `_TIMESTEPS`."""
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    total = 0.0
    for t in _TIMESTEPS:
        noisy, target = add_noise(clean, noise, model.alphas_cumprod[t].to(model.device), model.prediction)
        rows = torch.cat([noisy, source], dim=1)
        for part, x, y in zip(rows.split(_BATCH), text.split(_BATCH), target.split(_BATCH), strict=True):
            total += float((run_unet(model, part, torch.tensor(t), x) - y).square().mean()) * len(part)
    return total / len(clean) / len(_TIMESTEPS)
