"""The editor's diffusers folder: the trained UNet beside the teacher's frozen parts, written so that it is whole or absent."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ip2p.diffusion import Diffusion
from ip2p.errors import UserError
from ip2p.model.seen import NONE, Seen
from ip2p.records import RECORD
from ip2p.store import read_json, replace_folder, share, staging_of, write_json

_DIFFUSERS = {"vae": "AutoencoderKL", "unet": "UNet2DConditionModel", "scheduler": "DDIMScheduler"}
_TRANSFORMERS = {"text_encoder": "CLIPTextModel", "tokenizer": "CLIPTokenizer"}
_SECOND = {"text_encoder_2": "CLIPTextModelWithProjection", "tokenizer_2": "CLIPTokenizer"}
_ABSENT: list[None] = [None, None]


_MEASURES = {
    "direction_similarity": "CLIP direction similarity",
    "image_similarity": "CLIP image similarity to the source",
    "done": "edit done (read by a checker)",
    "stayed": "the rest kept (read by a checker)",
    "success": "both",
}


def save_editor(
    unet: Any, teacher: Diffusion, out: Path, *, lora: Path | None = None, record: dict[str, Any] | None = None, seen: Seen = NONE
) -> None:
    """Write a folder that diffusers' InstructPix2Pix pipeline (of SD or SDXL) loads, the LoRA weights of `lora` beside.

    With a record of its training comes a model card, and with either the captions that it has `seen`. Raises `UserError` if the disk is
    full; nothing half-written stays.
    """
    staging = staging_of(out)
    try:
        _write_editor(unet, teacher, staging, lora=lora, record=record, seen=seen)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise UserError(f"{out}: cannot be written ({error}); make room on the disk and run again, what was made before is kept") from error
    share(*staging.rglob("*.safetensors"))
    replace_folder(staging, out)


def _write_editor(unet: Any, teacher: Diffusion, staging: Path, *, lora: Path | None, record: dict[str, Any] | None, seen: Seen) -> None:
    unet.save_pretrained(staging / "unet", safe_serialization=True)
    large = teacher.text_encoder_2 is not None
    parts = _TRANSFORMERS | (_SECOND if large else {})
    for part in ("vae", "scheduler", *parts):
        getattr(teacher, part).save_pretrained(staging / part)
    forget_origin(staging)
    name = "StableDiffusionXLInstructPix2PixPipeline" if large else "StableDiffusionInstructPix2PixPipeline"
    index: dict[str, object] = {"_class_name": name}
    index |= {part: ["diffusers", kind] for part, kind in _DIFFUSERS.items()} | {
        part: ["transformers", kind] for part, kind in parts.items()
    }
    if large:
        index["force_zeros_for_empty_prompt"] = teacher.zero_empty
    else:
        index |= {"requires_safety_checker": False, **dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"), _ABSENT)}
    if record is not None:
        write_json(staging / RECORD, record)
        (staging / "README.md").write_text(model_card(record), encoding="utf-8")
    if record is not None or len(seen):
        seen.write(staging)
    if lora is not None:
        shutil.copytree(lora, staging / "lora")
    write_json(staging / "model_index.json", index)


def forget_origin(folder: Path) -> None:
    """Drop from the configurations of saved parts where each was loaded from: a path of this machine is nobody else's business."""
    for path in folder.rglob("config.json"):
        write_json(path, {name: value for name, value in read_json(path).items() if name != "_name_or_path"})


_LOSSES = {"better": "the preferred edits learned from as pairs are", "dpo": "Diffusion-DPO"}
_USE = """Loads with diffusers' `StableDiffusionInstructPix2PixPipeline`, or `ip2p edit --model FOLDER PICTURE INSTRUCTION -o OUT`."""
_USE_EMBEDDED = """Ships with ip2p: `ip2p edit --model world PICTURE INSTRUCTION -o OUT` (`world-128`: at 128 pixels, not 96). Here is its
UNet, in fp16; the other parts are the embedded teacher's, and `ip2p model export world --to diffusers -o FOLDER` writes them all.
It knows the illustrated world, and no photograph."""


def model_card(record: dict[str, Any], evaluation: dict[str, Any] | None = None, *, embedded: bool = False) -> str:
    """The card of an editor: what it is, how it came to be, how to use it and, if it was evaluated, how good it is."""
    section = record["train"]
    how = f"LoRA of rank {section['lora_rank']}, merged" if section["lora_rank"] else "all weights of the UNet"
    sizes = f", pictures of {' and '.join(map(str, sorted(set(section['sizes']))))} pixels" if section.get("sizes") else ""
    lines = [
        "---",
        "library_name: diffusers",
        "pipeline_tag: image-to-image",
        "tags: [instruct-pix2pix, image-editing, ip2p]",
        "---",
        "# An instruction-following image editor",
        "Edits a picture by a plain instruction (InstructPix2Pix, Brooks et al. 2023).",
        _USE_EMBEDDED if embedded else _USE,
        "",
        "## How it was trained",
        f"- From `{record['start']}`, {how}.",
        f"- {record['pairs']} image pairs that the filters kept; dataset `{record['dataset'][:16]}`.",
        *([f"- {n} preferences among served edits ({_LOSSES[section['preference_loss']]})."] if (n := record.get("preferences")) else []),
        f"- {section['steps']} steps of {section['batch']}, {section['optimizer']} at {section['lr']:g}, EMA {section['ema']}{sizes}.",
        f"- Conditioning dropped: text {section['drop_text']}, both {section['drop_both']}, picture {section['drop_image']}.",
        f"- Loss at the end {record['loss']:.4f}. `{RECORD}` has every parameter.",
        "",
    ]
    weak = "Counting and spatial relations are weak, as of most editors of this kind."
    if evaluation is not None:
        head = evaluation["headline"]
        scales = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in head["setting"].items())
        measured = [
            f"- {told}: {head[name]:.3f}, 95% interval {head['intervals'][name][0]:.3f} to {head['intervals'][name][1]:.3f}"
            for name, told in _MEASURES.items()
            if name in head
        ]
        lines += [f"## How good it is\nOn {evaluation['count']} held-out edits ({scales}):", *measured, ""]
        if by_type := {t: v["success"] for t, v in head.get("by_type", {}).items() if "success" in v}:
            worst = sorted(by_type, key=by_type.__getitem__)[:3]
            weak = f"Least often done right: {', '.join(f'{t} ({by_type[t]:.2f})' for t in worst)}."
    lines += [
        "## Limits",
        weak,
        "It learned from image pairs, most often synthetic, and repeats the biases of what made them.",
        "",
    ]
    return "\n".join(lines)
