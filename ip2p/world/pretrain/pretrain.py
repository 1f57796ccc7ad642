"""`pretrain`: tokenizer → CLIP → autoencoder → latents → teacher → exported weights. Resumes at any instant.

Each part keeps its checkpoints in `work/pretrain/<part>`; raising its steps in params.yaml and running again trains on.
`part` runs one part alone, so that parts that do not depend on each other can share a machine. Two parts run only if asked for, and
carry training from one machine to the next: `pack` writes the averaged weights in pieces of at most 16 MiB to `work/pretrain/pieces`;
`adopt` makes them (or, without any, the shipped weights) the first checkpoints, so that training goes on from them.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from ip2p.checkpoint import checkpoints, load_newest, save_checkpoint
from ip2p.diffusion import Diffusion
from ip2p.errors import ModelError
from ip2p.models import EMBEDDED, resolve_device
from ip2p.parallel import launch
from ip2p.params import Params, PretrainParams
from ip2p.params.model import HELD_OUT
from ip2p.pictures import grid, to_pillow
from ip2p.records import StageReport
from ip2p.store import digest, fingerprint, replace_folder, staging_of
from ip2p.torchvision_cpu import declare_operators
from ip2p.world.corpus import Corpus, build_corpus
from ip2p.world.language import write_caption
from ip2p.world.pretrain import autoencoder, contrast, export, teacher
from ip2p.world.pretrain.fit import Leg
from ip2p.world.pretrain.tokenizer import train_tokenizer
from ip2p.world.report import sample_captions

_CORPUS_SEED = 1
PARTS = ("tokenizer", "clip", "autoencoder", "teacher", "export")
ADOPT, PACK = "adopt", "pack"


def run(params: Params, *, work: Path, part: str = "all") -> StageReport:
    """Train one part or all, and export the weights to the package. Raises `ModelError` if an earlier part is missing."""
    began = time.monotonic()
    declare_operators()
    chosen = PARTS if part == "all" else (part,)
    jobs: dict[str, Callable[[PretrainParams, Path, str], None]] = {
        ADOPT: _adopt,
        PACK: _pack,
        "tokenizer": _tokenizer,
        "clip": _clip,
        "autoencoder": _autoencoder,
        "teacher": _teacher,
        "export": _export,
    }
    device = str(resolve_device(params.models.device))
    for name in chosen:
        jobs[name](params.pretrain, work, device)
    return StageReport(
        stage="pretrain", seen=len(chosen), kept=len(chosen), seconds=time.monotonic() - began, extra={"parts": ", ".join(chosen)}
    )


def open_corpus(section: PretrainParams, work: Path) -> Corpus:
    """The rendered scenes that everything is trained on; the first `HELD_OUT` are held out."""
    return build_corpus(
        work / "corpus",
        seed=_CORPUS_SEED,
        count=section.scenes,
        size=section.size,
        workers=max(section.workers, len(os.sched_getaffinity(0))),
        progress=lambda n: print(f"rendered {n}", flush=True),
    )


def read_tokenizer(work: Path) -> Any:
    """The trained tokenizer."""
    from transformers import CLIPTokenizer

    if not (work / "tokenizer" / "tokenizer_config.json").exists():
        raise ModelError(f"{work}/tokenizer: not trained yet; run `ip2p pretrain --part tokenizer`")
    return CLIPTokenizer.from_pretrained(work / "tokenizer")


def _tokenizer(section: PretrainParams, work: Path, device: str) -> None:
    if not (work / "tokenizer" / "tokenizer_config.json").exists():
        train_tokenizer(work / "tokenizer", seed=_CORPUS_SEED)


def _leg(section: PretrainParams, steps: int) -> Leg:
    return Leg(steps=steps, lr=section.rate, decay=section.decay, minutes=section.minutes or math.inf)


def _processes(section: PretrainParams, device: str) -> int:
    """How many train together: by the clock only one can, for they would not stop at the same step."""
    return section.workers if device == "cpu" and section.minutes is None else 1


def _clip(section: PretrainParams, work: Path, device: str) -> None:
    open_corpus(section, work)
    tokenizer = read_tokenizer(work)
    leg = replace(_leg(section, section.clip_steps), weight_decay=0.05)
    launch(_processes(section, device), _run_clip, section, work, tokenizer, leg, device)


def _run_clip(rank: int, workers: int, section: PretrainParams, work: Path, tokenizer: Any, leg: Leg, device: str) -> None:
    corpus = open_corpus(section, work)
    options = {"batch": section.clip_batch, "device": device, "compiled": section.compile}
    contrast.train_clip(rank, workers, corpus, tokenizer, work / "clip", leg, **options)  # type: ignore[arg-type]


def _autoencoder(section: PretrainParams, work: Path, device: str) -> None:
    open_corpus(section, work)
    leg = replace(_leg(section, section.autoencoder_steps), ema=0.998)
    launch(_processes(section, device), _run_autoencoder, section, work, leg, device)


def _run_autoencoder(rank: int, workers: int, section: PretrainParams, work: Path, leg: Leg, device: str) -> None:
    options = {"batch": section.autoencoder_batch // workers, "crop": section.autoencoder_crop, "compiled": section.compile}
    corpus = open_corpus(section, work)
    autoencoder.train_autoencoder(rank, workers, corpus, work / "vae", leg, device=device, **options)  # type: ignore[arg-type]


def _teacher(section: PretrainParams, work: Path, device: str) -> None:
    paths = [_latents(section, work, device, size) for size in section.sides]
    launch(_processes(section, device), _run_teacher, section, work, paths, _leg(section, section.teacher_steps), device)


def _run_teacher(rank: int, workers: int, section: PretrainParams, work: Path, latents: list[Path], leg: Leg, device: str) -> None:
    tokenizer, corpus = read_tokenizer(work), open_corpus(section, work)
    vae, _ = _trained_vae(section, work, device)
    export.standardise(vae, *latent_statistics(vae, corpus))

    def on_save(step: int, model: teacher.Teacher) -> None:
        """Samples of held-out captions, above them the renders."""
        scenes = [corpus.scene(i) for i in range(8)]
        captions = [write_caption(s, random.Random(0)) for s in scenes]
        scheduler = DDIMScheduler(**teacher.SCHEDULE, prediction_type="v_prediction")
        rows = [[Image.fromarray(corpus.picture(i)) for i in range(8)]]
        for size in section.sides:
            drawn = Diffusion(vae, model.unet, model.text_encoder, tokenizer, scheduler, torch.device(device), side=size)
            rows.append([to_pillow(x).resize(rows[0][0].size) for x in sample_captions(drawn, captions, steps=16)])
        grid(rows).save(work / "unet" / f"grid-{step:06d}.png")

    from diffusers import DDIMScheduler

    options = {"batch": section.teacher_batch // workers, "compiled": section.compile, "texts": section.teacher_texts}
    teacher.train_teacher(rank, workers, latents, _CORPUS_SEED, tokenizer, work / "unet", leg, device=device, on_save=on_save, **options)  # type: ignore[arg-type]


def _latents(section: PretrainParams, work: Path, device: str, size: int) -> Path:
    """Standardised latents of the corpus at a size as float16, computed once for each state of the autoencoder."""
    vae, mark = _trained_vae(section, work, device)
    path = work / f"latents-{mark}-{size}.npy"
    if path.exists():
        return path
    export.standardise(vae, *latent_statistics(vae, open_corpus(section, work)))
    corpus = open_corpus(section.model_copy(update={"size": size}), work)
    rows = []
    with torch.inference_mode():
        for first in range(0, len(corpus), 64):
            rows.append(vae.encode(pictures(corpus, range(first, first + 64)).to(device)).latent_dist.mode().half().cpu().numpy())
            if first % 4096 == 0:
                print(f"latents {first}/{len(corpus)}", flush=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.save(file, np.concatenate(rows))
    temporary.replace(path)
    return path


def latent_statistics(vae: Any, corpus: Corpus) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `C` of the latents of 512 pictures."""
    with torch.inference_mode():
        parts = [
            vae.encode(pictures(corpus, range(i, i + 64)).to(vae.device)).latent_dist.mode() for i in range(HELD_OUT, HELD_OUT + 512, 64)
        ]
    latents = torch.cat(parts)
    return latents.mean((0, 2, 3)).clone(), latents.std((0, 2, 3)).clone()


def pictures(corpus: Corpus, numbers: range) -> Tensor:
    """Pictures of these numbers, `images_BCHW` in [-1, 1]."""
    return autoencoder.in_range(torch.from_numpy(corpus.pictures(numbers)))


def _trained_vae(section: PretrainParams, work: Path, device: str) -> tuple[Any, str]:
    vae = autoencoder.new_autoencoder(size=section.size)
    _load_ema(work / "vae", vae)
    mark = fingerprint("latents", digest(checkpoints(work / "vae")[-1]), section.size, section.scenes)
    return vae.to(device).eval().requires_grad_(False), mark


def _export(section: PretrainParams, work: Path, device: str) -> None:
    """Write the newest averages of all parts to the package, in fp16."""
    tokenizer, corpus = read_tokenizer(work), open_corpus(section, work)
    staging = work / "weights"
    shutil.rmtree(staging, ignore_errors=True)
    modules = _modules(section, tokenizer)
    for name, module in modules.items():
        _load_ema(work / name, module)
    vae = modules["vae"].eval().requires_grad_(False)
    export.standardise(vae, *latent_statistics(vae, corpus))
    export.export_vae(vae, staging / "teacher")
    export.export_teacher(modules["unet"], tokenizer, staging / "teacher")
    export.export_clip(modules["clip"], tokenizer, staging / "clip", size=section.size)
    for name in ("teacher", "clip"):
        fresh = staging_of(EMBEDDED / name)
        shutil.copytree(staging / name, fresh, dirs_exist_ok=True)
        replace_folder(fresh, EMBEDDED / name)
    size = sum(f.stat().st_size for f in EMBEDDED.rglob("*") if f.is_file()) / 1e6
    print(f"exported {size:.1f} MB to {EMBEDDED}", flush=True)


def _modules(section: PretrainParams, tokenizer: Any) -> dict[str, Any]:
    """The modules that are trained, new, by the folder of their checkpoints."""
    vae = autoencoder.new_autoencoder(size=section.size)
    clip = contrast.new_clip(contrast.clip_config(size=section.size, vocabulary=len(tokenizer)))
    return {"vae": vae, "unet": _new_teacher(section, vae, tokenizer), "clip": clip}


def _adopt(section: PretrainParams, work: Path, device: str) -> None:
    """Write the weights of `pieces`, or the shipped ones, as the first checkpoint of each part that has none."""
    if not (work / "tokenizer").exists():
        shutil.copytree(EMBEDDED / "teacher" / "tokenizer", work / "tokenizer")
    for name, module in _modules(section, read_tokenizer(work)).items():
        if checkpoints(work / name):
            continue
        brought = export.read_pieces(work / "pieces", name)
        module.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in (brought or _shipped(name)).items()})
        save_checkpoint(work / name, 1, module, ema=module.state_dict())
        print(f"{name}: goes on from the {'pieces brought' if brought else 'shipped weights'}", flush=True)


def _pack(section: PretrainParams, work: Path, device: str) -> None:
    """Write the newest averages of the parts that were trained in pieces."""
    for name, module in _modules(section, read_tokenizer(work)).items():
        if checkpoints(work / name):
            _load_ema(work / name, module)
            for path in export.write_pieces(module.state_dict(), work / "pieces", name):
                print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB", flush=True)


def _shipped(name: str) -> dict[str, Tensor]:
    """The shipped weights of a part."""
    if name != "unet":
        path = {"vae": "teacher/vae/diffusion_pytorch_model", "clip": "clip/open_clip_model"}[name]
        return dict(load_file(EMBEDDED / f"{path}.safetensors"))
    parts = {"unet": "diffusion_pytorch_model", "text_encoder": "model"}
    files = {part: load_file(EMBEDDED / "teacher" / part / f"{file}.safetensors") for part, file in parts.items()}
    return {f"{part}.{k}": v for part, weights in files.items() for k, v in weights.items()}


def _new_teacher(section: PretrainParams, vae: Any, tokenizer: Any) -> teacher.Teacher:
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    channels = vae.config.latent_channels
    return teacher.new_teacher(latent_channels=channels, latent_size=section.size // 8, vocabulary=len(tokenizer), end=end)


def _load_ema(folder: Path, model: nn.Module) -> int:
    ema = {k: v.clone() for k, v in model.state_dict().items()}
    step = load_newest(folder, model, ema=ema)
    if step == 0:
        raise ModelError(f"{folder}: no checkpoint; run `ip2p pretrain --part` with the part that makes it")
    model.load_state_dict(ema)
    return step
