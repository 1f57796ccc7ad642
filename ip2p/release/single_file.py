"""An editor as one safetensors file under the key names of the original Stable Diffusion code, as AUTOMATIC1111 and others read it.

UNet under `model.diffusion_model.`, autoencoder under `first_stage_model.`, text encoder under `cond_stage_model.transformer.`;
eight input channels tell readers that it is an InstructPix2Pix model.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ip2p.diffusion import Diffusion
from ip2p.errors import ModelError, UserError
from ip2p.store import share

_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_WIDTH_OF_SD2 = 1024
_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def save_single_file(editor: Diffusion, path: Path, *, dtype: torch.dtype = torch.float16) -> Path:
    """Write the whole editor to `path`. Raises `ModelError` for an architecture that readers of the form take for another."""
    if editor.text_encoder_2 is not None:
        raise ModelError("editor: of Stable Diffusion XL's size; its folder loads in diffusers, a single file is not written")
    if editor.unet.config.cross_attention_dim == _WIDTH_OF_SD2:
        raise ModelError("editor: of Stable Diffusion 2, whose text encoder has other names in a single file; use the folder")
    tensors = {f"model.diffusion_model.{unet_name(k, editor.unet.config)}": v for k, v in editor.unet.state_dict().items()}
    for key, value in editor.vae.state_dict().items():
        name = vae_name(key, len(editor.vae.config.block_out_channels))
        squared = value[..., None, None] if ".attn_1." in name and value.ndim == 2 else value
        tensors[f"first_stage_model.{name}"] = squared
    for key, value in editor.text_encoder.state_dict().items():
        name = key if key.startswith("text_model.") else f"text_model.{key}"
        tensors[f"cond_stage_model.transformer.{name}"] = value
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {k: v.detach().cpu().to(dtype if v.is_floating_point() else v.dtype).contiguous() for k, v in tensors.items()}
    try:
        save_file(whole, temporary, {"format": "pt"})
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error}); make room there, or name another place") from error
    share(temporary)
    temporary.replace(path)
    return path


def unet_name(key: str, config: Any) -> str:
    """The original name of a diffusers UNet's weight."""
    for ours, theirs in _UNET_ENDS.items():
        if key.startswith(f"{ours}."):
            rest = key.removeprefix(f"{ours}.")
            return f"{theirs}.{_renamed(rest, _UNET_RESNET) if '.resnets.' in ours else rest}"
    found = _BLOCK.fullmatch(key)
    layers = config.layers_per_block
    if found is None or not isinstance(layers, int):
        raise ModelError(f"editor: the UNet's {key} has no name in the original code; save the diffusers folder instead")
    side, level, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    types = config.down_block_types if side == "down" else config.up_block_types
    attends = "Attn" in types[level]
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{(level + 1) * (layers + 1) - 1}.{2 if attends else 1}.{rest}"
    block = f"input_blocks.{1 + level * (layers + 1) + number}" if side == "down" else f"output_blocks.{level * (layers + 1) + number}"
    return f"{block}.0.{_renamed(rest, _UNET_RESNET)}" if kind == "resnets" else f"{block}.1.{rest}"


def vae_name(key: str, levels: int) -> str:
    """The original name of a diffusers autoencoder's weight."""
    side, _, rest = key.partition(".")
    if side in ("quant_conv", "post_quant_conv"):
        return key
    rest = rest.replace("conv_norm_out.", "norm_out.").replace("conv_shortcut.", "nin_shortcut.")
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", rest):
        if found[1] == "resnets":
            return f"{side}.mid.block_{int(found[2]) + 1}.{found[3]}"
        return f"{side}.mid.attn_1.{_renamed(found[3], _VAE_ATTENTION)}"
    if found := _BLOCK.fullmatch(rest):
        level = int(found[2]) if found[1] == "down" else levels - 1 - int(found[2])
        part = {"resnets": f"block.{found[4]}", "downsamplers": "downsample", "upsamplers": "upsample"}[found[3]]
        return f"{side}.{found[1]}.{level}.{part}.{found[5]}"
    return f"{side}.{rest}"


def _renamed(rest: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        if rest.startswith(f"{ours}."):
            return f"{theirs}.{rest.removeprefix(f'{ours}.')}"
    return rest
