"""The editor's diffusers folder: the trained UNet beside the teacher's frozen parts, written so that it is whole or absent."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ip2p.diffusion import Diffusion
from ip2p.store import write_json

_DIFFUSERS = {"vae": "AutoencoderKL", "unet": "UNet2DConditionModel", "scheduler": "DDIMScheduler"}
_TRANSFORMERS = {"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}
_ABSENT: list[None] = [None, None]


def save_editor(unet: Any, teacher: Diffusion, out: Path, *, lora: Path | None = None) -> None:
    """Write a folder that diffusers' `StableDiffusionInstructPix2PixPipeline` loads, with the LoRA weights of `lora` beside."""
    staging = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    unet.save_pretrained(staging / "unet", safe_serialization=True)
    for part in ("vae", "text_encoder", "tokenizer", "scheduler"):
        getattr(teacher, part).save_pretrained(staging / part)
    index: dict[str, object] = {"_class_name": "StableDiffusionInstructPix2PixPipeline", "requires_safety_checker": False}
    index |= {part: ["diffusers", name] for part, name in _DIFFUSERS.items()}
    index |= {part: ["transformers", name] for part, name in _TRANSFORMERS.items()}
    index |= dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"), _ABSENT)
    if lora is not None:
        shutil.copytree(lora, staging / "lora")
    write_json(staging / "model_index.json", index)
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging.replace(out)
