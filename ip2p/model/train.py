"""Dataset → editor (paper §3.2, METHOD §4): the teacher's UNet, grown, learns to denoise the edited image given the source.

Crash-safe: checkpoints carry everything and every step seeds its own randomness, so a killed run resumed gives the same
losses. The global batch is drawn once and split over workers, so it does not depend on their number.
"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ip2p.attention import Float32Attention
from ip2p.checkpoint import load_newest, save_checkpoint
from ip2p.diffusion import Diffusion
from ip2p.errors import DataError, ParamsError, UserError
from ip2p.model.data import Latents, TrainBatch, draw_batch, load_latents
from ip2p.model.edit import edit_batch
from ip2p.model.folder import save_editor
from ip2p.model.guidance import EditRequest, edit_options
from ip2p.model.unet import grow_unet
from ip2p.models import load_diffusion, model_digest, resolve_device, resolve_dtype
from ip2p.muon import Muon
from ip2p.parallel import average_gradients, launch
from ip2p.params import Params, TrainParams
from ip2p.pictures import from_bytes, grid, to_pillow
from ip2p.records import StageReport
from ip2p.store import code_mark, digest, fingerprint, read_json, read_shards, write_json
from ip2p.track import Run, track

_GRID = 6


class DivergedError(UserError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Job:
    """What every training process is told."""

    params: Params
    dataset: Path
    work: Path
    out: Path


@dataclass
class Trainer:
    """The state of one training process."""

    job: Job
    rank: int
    workers: int
    teacher: Diffusion
    latents: Latents
    unet: Any = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    ema: dict[str, Tensor] = field(init=False)
    step: int = field(init=False)

    def __post_init__(self) -> None:
        section = self.job.params.train
        self.unet = grow_unet(self.teacher.unet).to(self.teacher.device, memory_format=torch.channels_last).train()
        if self.teacher.dtype != torch.float32:
            self.unet.set_attn_processor(Float32Attention())
        self.optimizer = new_optimizer(self.unet, section)
        self.ema = {k: v.detach().clone() for k, v in self.unet.state_dict().items()}
        self.step = load_newest(self.job.work, self.unet, self.optimizer, self.ema)

    def advance(self) -> float:
        """One optimizer step; returns this worker's loss."""
        section, seed = self.job.params.train, self.job.params.seed
        whole = draw_batch(self.latents, section, torch.Generator().manual_seed(seed * 1_000_003 + self.step))
        share = section.batch // self.workers
        batch = whole.part(self.rank * share, share)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(section, self.step)
        with self.teacher.arithmetic():
            loss = loss_of(self.unet, batch, self.teacher)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        average_gradients(list(self.unet.parameters()), self.workers)
        self.optimizer.step()
        self._average_weights(ema_rate(section, self.step))
        self.step += 1
        return loss.item()

    def save(self) -> None:
        """Write a checkpoint."""
        save_checkpoint(self.job.work, self.step, self.unet, self.optimizer, self.ema)

    @torch.no_grad()
    def _average_weights(self, rate: float) -> None:
        state = self.unet.state_dict()
        torch._foreach_lerp_(list(self.ema.values()), [state[k] for k in self.ema], 1 - rate)


def run(params: Params, *, dataset: Path, marker: Path, out: Path, work: Path) -> StageReport:
    """Train an editor into the diffusers folder `out`, resuming from `work`. Raises `DataError` if not validated."""
    began = time.monotonic()
    section = params.train
    if not marker.exists():
        raise DataError(f"{marker}: missing, so {dataset} was not validated; run `ip2p validate` (or `dvc repro`) first")
    if section.batch % section.workers:
        raise ParamsError(f"train.batch: {section.batch} cannot be shared by train.workers = {section.workers}; make it a multiple")
    data, teacher = digest(dataset), model_digest(params.models.teacher, "teacher")
    if read_json(marker).get("dataset") != data:
        raise DataError(f"{dataset}: changed since it was validated; run `ip2p validate` (or `dvc repro`) first")
    same = section.model_dump(exclude={"workers", "log_every", "grid_every", "checkpoint_every"})
    device = resolve_device(params.models.device)
    arithmetic = str(resolve_dtype(params.models.dtype, device))
    mark = fingerprint(
        "train", same, params.seed, arithmetic, data, teacher, code_mark("model/train.py", "model/data.py", "model/unet.py", "muon.py")
    )
    job = Job(params, dataset, work / mark, out)
    job.work.mkdir(parents=True, exist_ok=True)
    _load(job)  # encodes latents once, before several processes want them
    launch(section.workers if device.type == "cpu" else 1, _work, job)
    for old in work.iterdir():
        if old.is_dir() and old != job.work:
            shutil.rmtree(old)
    progress = read_json(job.work / "progress.json")
    seen = section.steps * section.batch
    extra = {"loss": progress["loss"], "samples_per_second": progress["samples_per_second"], "dataset": data[:16], "run": mark}
    return StageReport(stage="train", seen=seen, kept=seen, seconds=time.monotonic() - began, extra=extra)


def new_optimizer(unet: torch.nn.Module, section: TrainParams) -> torch.optim.Optimizer:
    """The optimizer that the parameters name, over all weights of the UNet."""
    if section.optimizer == "muon":
        return Muon(unet, lr=section.lr, weight_decay=section.weight_decay)
    return torch.optim.AdamW(unet.parameters(), lr=section.lr, weight_decay=section.weight_decay)


def loss_of(unet: Any, batch: TrainBatch, teacher: Diffusion) -> Tensor:
    """Mean squared error of the UNet's eps (or v) on a batch."""
    scheduler: Any = teacher.scheduler
    device = teacher.device
    alpha = scheduler.alphas_cumprod[batch.timesteps_B].view(-1, 1, 1, 1).to(device)
    clean, noise, source, text = (x.to(device) for x in (batch.clean_BCHW, batch.noise_BCHW, batch.source_BCHW, batch.text_BLD))
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    target = noise if scheduler.config.prediction_type == "epsilon" else alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
    rows = torch.cat([noisy, source], dim=1).contiguous(memory_format=torch.channels_last)
    return F.mse_loss(unet(rows, batch.timesteps_B.to(device), text).sample.float(), target)


def learning_rate(section: TrainParams, step: int) -> float:
    """The rate at a step: linear warm-up, constant, linear fall over the last share `decay`."""
    rise = min(1.0, (step + 1) / section.warmup) if section.warmup else 1.0
    fall = min(1.0, (section.steps - step) / (section.steps * section.decay)) if section.decay else 1.0
    return section.lr * rise * fall


def ema_rate(section: TrainParams, step: int) -> float:
    """EMA decay with warm-up (METHOD §4)."""
    return min(section.ema, (1 + step) / (10 + step))


def _load(job: Job) -> tuple[Diffusion, Latents]:
    models, section = job.params.models, job.params.train
    device = resolve_device(models.device)
    teacher = load_diffusion(models.teacher, device=device, dtype=resolve_dtype(models.dtype, device))
    mark = model_digest(models.teacher, "teacher")
    cache = job.work.parent
    return teacher, load_latents(job.dataset, teacher, section, teacher_digest=mark, seed=job.params.seed, cache=cache)


def _work(rank: int, workers: int, job: Job) -> None:
    trainer = Trainer(job, rank, workers, *_load(job))
    if rank > 0:
        _train(trainer, None)
        return
    section = job.params.train
    parameters = {f"train.{k}": v for k, v in section.model_dump().items()} | {
        "teacher": job.params.models.teacher,
        "seed": job.params.seed,
    }
    with track(job.params.track, "train", parameters, resume=job.work / "mlflow-run") as tracked:
        _train(trainer, tracked)
        _log_grid(trainer, tracked)
        trainer.unet.load_state_dict(trainer.ema)
        save_editor(trainer.unet, trainer.teacher, job.out)


def _train(trainer: Trainer, tracked: Run | None) -> None:
    """The loop: step, and on rank 0 log, checkpoint and draw sample grids."""
    section = trainer.job.params.train
    losses: list[float] = []
    began = time.monotonic()
    while trainer.step < section.steps:
        loss = trainer.advance()
        if not math.isfinite(loss):
            raise DivergedError(f"train: the loss is {loss} at step {trainer.step}; lower train.lr in params.yaml (checkpoints are kept)")
        if tracked is None:
            continue
        losses.append(loss)
        last = trainer.step == section.steps
        if last or trainer.step % section.log_every == 0:
            speed = len(losses) * section.batch / (time.monotonic() - began)
            _log(trainer, tracked, {"loss": sum(losses) / len(losses), "samples_per_second": speed})
            losses, began = [], time.monotonic()
        if last or trainer.step % section.checkpoint_every == 0:
            trainer.save()
        if not last and trainer.step % section.grid_every == 0:
            _log_grid(trainer, tracked)


def _log(trainer: Trainer, tracked: Run, values: dict[str, float]) -> None:
    section = trainer.job.params.train
    values["lr"] = learning_rate(section, trainer.step - 1)
    tracked.metrics(values, trainer.step)
    write_json(trainer.job.work / "progress.json", {"step": trainer.step, **values})
    speed = f"{values['samples_per_second']:.1f} samples/s"
    print(f"train {trainer.step}/{section.steps}  loss {values['loss']:.4f}  {speed}", flush=True)


def _log_grid(trainer: Trainer, tracked: Run) -> None:
    """Log source, the dataset's edit and the editor's edit of a few examples, by the averaged weights and fixed seeds."""
    dataset, section, teacher = trainer.job.dataset, trainer.job.params.evaluate, trainer.teacher
    split = "validation-" if any(dataset.glob("validation-*.parquet")) else "train-"
    rows = read_shards(dataset, split).slice(0, _GRID).to_pylist()
    before, after = (torch.stack([from_bytes(r[c]["bytes"], where=r["pair_id"]) for r in rows]) for c in ("original_image", "edited_image"))
    averaged = grow_unet(teacher.unet)
    averaged.load_state_dict(trainer.ema)
    editor = replace(teacher, unet=averaged.to(teacher.device).eval())
    requests = [EditRequest(r["edit_prompt"], section.text_guidance, section.image_guidance, i) for i, r in enumerate(rows)]
    edited = edit_batch(editor, before, requests, edit_options(section))
    sheet = grid([[to_pillow(x) for x in trio] for trio in zip(before, after, edited, strict=True)])
    tracked.picture(sheet, f"grids/{trainer.step:06d}.png")
