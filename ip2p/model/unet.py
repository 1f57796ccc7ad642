"""The editor's UNet, grown from the teacher's (paper §3.2): twice the input channels, nothing changed until trained.

The new weights of `conv_in` are zero and its bias is kept, so that before training the editor's output equals the
teacher's for any source image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ip2p.errors import ModelError

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


def grow_unet(teacher: UNet2DConditionModel) -> UNet2DConditionModel:
    """A trainable float32 copy of the teacher's UNet that also reads the source latents."""
    from diffusers import UNet2DConditionModel

    channels = int(teacher.config.in_channels)
    editor = UNet2DConditionModel.from_config({**teacher.config, "in_channels": 2 * channels})
    state = {k: v.float() for k, v in teacher.state_dict().items()}
    old = state["conv_in.weight"]
    state["conv_in.weight"] = torch.cat([old, torch.zeros_like(old)], dim=1)
    editor.load_state_dict(state)
    return editor.requires_grad_(True)


def require_editor(unet: UNet2DConditionModel, latent_channels: int, subject: str) -> None:
    """Raise `ModelError` unless the UNet takes noisy and source latents."""
    if unet.config.in_channels != 2 * latent_channels:
        raise ModelError(
            f"{subject}: the UNet takes {unet.config.in_channels} channels, an editor's takes {2 * latent_channels}; "
            "give the folder of a trained editor"
        )
