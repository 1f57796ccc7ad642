"""The editor's UNet: grown from a teacher's (paper §3.2), twice the input channels, nothing changed until trained.

The new weights of `conv_in` are zero and its bias is kept, so that before training the editor's output equals the
teacher's for any source image. An editor's UNet goes on as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ip2p.errors import ModelError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


def new_editor_unet(start: UNet2DConditionModel, latent_channels: int) -> UNet2DConditionModel:
    """A trainable float32 editor UNet from a teacher's or an editor's. Raises `ModelError` if it is neither."""
    from diffusers import UNet2DConditionModel

    require_start(start, latent_channels)
    editor = UNet2DConditionModel.from_config({**start.config, "in_channels": 2 * latent_channels})
    state = {k: v.float() for k, v in start.state_dict().items()}
    if start.config.in_channels == latent_channels:
        old = state["conv_in.weight"]
        state["conv_in.weight"] = torch.cat([old, torch.zeros_like(old)], dim=1)
    editor.load_state_dict(state)
    return editor.requires_grad_(True)


def require_start(start: UNet2DConditionModel, latent_channels: int) -> None:
    """Raise `ModelError` unless the UNet is a teacher's or an editor's."""
    channels = int(start.config.in_channels)
    if channels not in (latent_channels, 2 * latent_channels):
        raise ModelError(
            f"train: the UNet takes {channels} channels; a text-to-image teacher's takes {latent_channels}, an editor's "
            f"{2 * latent_channels} (an inpainting or depth model cannot be grown)"
        )


def require_editor(unet: UNet2DConditionModel, latent_channels: int, subject: str) -> None:
    """Raise `ModelError` unless the UNet takes noisy and source latents."""
    if unet.config.in_channels != 2 * latent_channels:
        raise ModelError(
            f"{subject}: the UNet takes {unet.config.in_channels} channels, an editor's takes {2 * latent_channels}; "
            "give the folder of a trained editor"
        )
