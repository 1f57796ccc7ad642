"""Dataset → editor (paper §3.2, METHOD §4): the teacher's UNet, grown, learns to denoise the edited image given the source.

Crash-safe: checkpoints carry everything and every step seeds its own randomness, so a killed run resumed gives the same
losses. The global batch is drawn alike by all and split over workers, so it does not depend on their number.
"""

from __future__ import annotations

import copy
import math
import resource
import shutil
import sys
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ip2p.attention import Float32Attention
from ip2p.checkpoint import load_newest, save_checkpoint, trained_state
from ip2p.diffusion import Diffusion
from ip2p.errors import DataError, ParamsError, UserError
from ip2p.model.data import Latents, draw_batch, example_pairs, load_latents
from ip2p.model.edit import edit_batch
from ip2p.model.folder import save_editor
from ip2p.model.guidance import EditRequest, edit_options
from ip2p.model.lora import add_lora, merge_lora
from ip2p.model.objective import ema_rate, learning_rate, loss_of, new_optimizer
from ip2p.model.plan import require_memory
from ip2p.model.unet import new_editor_unet
from ip2p.models import load_diffusion, model_digest, model_label, resolve_device, resolve_dtype
from ip2p.parallel import average, average_gradients, barrier, joined, launch
from ip2p.params import Params
from ip2p.pictures import grid, to_pillow
from ip2p.records import StageReport
from ip2p.store import Folder, code_mark, digest, fingerprint, read_json, write_json
from ip2p.track import MADE, Run, track

_GRID = 6
_MEMORY = {"accumulate", "gradient_checkpointing", "compile", "ema_on_cpu"}
_WITHOUT_EFFECT = {"workers", "log_every", "grid_every", "checkpoint_every", "keep", "cache_gb", *_MEMORY}
"""Parameters that do not change what is learned, up to the order of sums."""


class DivergedError(UserError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Job:
    """What every training process is told."""

    params: Params
    dataset: Folder
    data_digest: str
    work: Path
    out: Path


@dataclass
class Trainer:
    """The state of one training process; `losses` are those of all steps so far, of the whole batch each."""

    job: Job
    rank: int
    workers: int
    base: Diffusion
    latents: Latents
    unet: Any = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    ema: dict[str, Tensor] = field(init=False)
    step: int = field(init=False)
    losses: list[float] = field(init=False)
    gradient_norm: Tensor = field(init=False)
    """Of the last step, before clipping."""

    def __post_init__(self) -> None:
        section = self.job.params.train
        start = self.base.unet
        self.unet = new_unet(self.base, self.job.params).to(self.base.device, memory_format=torch.channels_last).train()
        self.base = replace(self.base, unet=self.unet)
        start.to("meta")  # no longer needed: gives its memory back, whoever still holds it
        if section.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        if self.base.dtype != torch.float32 and self.base.device.type == "cpu":
            self.unet.set_attn_processor(Float32Attention())
        self.optimizer = new_optimizer(self.unet, section)
        self.scaler = torch.amp.GradScaler(self.base.device.type, enabled=self.base.dtype == torch.float16)
        home = torch.device("cpu") if section.ema_on_cpu else self.base.device
        self.ema = {k: v.detach().to(home, copy=True) for k, v in trained_state(self.unet).items()}
        extra: dict[str, Tensor] = {}
        self.step = load_newest(self.job.work, self.unet, self.optimizer, self.ema, extra=extra)
        self.losses = extra["losses"].tolist() if self.step else []
        if self.step and self.scaler.is_enabled():
            self.scaler.load_state_dict({**self.scaler.state_dict(), **{k: extra[k].item() for k in ("scale", "_growth_tracker")}})
        if section.compile:
            self.unet.compile()

    def advance(self) -> float:
        """One optimizer step; returns the loss of the whole batch."""
        section, seed = self.job.params.train, self.job.params.seed
        share = section.batch // self.workers
        part = share // section.accumulate
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(section, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.base.device)
        for first in range(self.rank * share, (self.rank + 1) * share, part):
            batch = draw_batch(self.latents, section, seed=seed, step=self.step, first=first, count=part)
            with self.base.arithmetic():
                loss = loss_of(self.unet, batch, self.base, min_snr=section.min_snr) / section.accumulate
            self.scaler.scale(loss).backward()
            total += loss.detach()
        average_gradients(list(self.unet.parameters()), self.workers)
        self.scaler.unscale_(self.optimizer)
        self.gradient_norm = torch.nn.utils.clip_grad_norm_(self.unet.parameters(), section.clip_norm or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._average_weights(ema_rate(section, self.step))
        self.step += 1
        self.losses.append(average(total, self.workers))
        return self.losses[-1]

    def save(self) -> None:
        """Write a checkpoint."""
        extra = {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        if self.scaler.is_enabled():
            state = self.scaler.state_dict()
            extra |= {k: torch.tensor(state[k]) for k in ("scale", "_growth_tracker")}
        save_checkpoint(self.job.work, self.step, self.unet, self.optimizer, self.ema, extra=extra, keep=self.job.params.train.keep)

    @torch.no_grad()
    def _average_weights(self, rate: float) -> None:
        state = trained_state(self.unet)
        now = [state[k].to(v.device) for k, v in self.ema.items()]
        torch._foreach_lerp_(list(self.ema.values()), now, 1 - rate)


def run(params: Params, *, dataset: Folder, marker: Path, out: Path, work: Path) -> StageReport:
    """Train an editor into the diffusers folder `out`, resuming from `work`. Raises `DataError` if not validated."""
    began = time.monotonic()
    section = params.train
    if not marker.exists():
        raise DataError(f"{marker}: missing, so {dataset} was not validated; run `ip2p validate` (or `dvc repro`) first")
    device = resolve_device(params.models.device)
    rank, launched = joined(cpu=device.type == "cpu")
    workers = launched if launched > 1 else section.workers if device.type == "cpu" else 1
    if section.batch % (workers * section.accumulate):
        shares = f"{workers} processes" + (f" × train.accumulate = {section.accumulate}" if section.accumulate > 1 else "")
        raise ParamsError(f"train.batch: {section.batch} cannot be shared by {shares}; make it a multiple")
    data = digest(dataset)
    if read_json(marker).get("dataset") != data:
        raise DataError(f"{dataset}: changed since it was validated; run `ip2p validate` (or `dvc repro`) first")
    mark = fingerprint(
        "train",
        section.model_dump(exclude=_WITHOUT_EFFECT),
        params.seed,
        str(resolve_dtype(params.models.dtype, device)),
        data,
        model_digest(section.start or params.models.teacher, "teacher"),
        code_mark(*(f"model/{n}.py" for n in ("train", "objective", "lora", "data", "unet")), "muon.py", "diffusion.py", "pictures.py"),
    )
    job = Job(params, dataset, data, work / mark, out)
    job.work.mkdir(parents=True, exist_ok=True)
    loaded = _load(job, rank, launched)  # encodes latents once, before several processes want them
    require_memory(params, loaded[0], workers=workers)
    if launched > 1 or workers == 1:
        _work(rank, workers, job, loaded)
    else:
        del loaded
        launch(workers, _work, job)
    barrier()
    if rank == 0:
        for old in work.iterdir():
            if old.is_dir() and old != job.work:
                shutil.rmtree(old)
    progress = read_json(job.work / "progress.json")
    seen = section.steps * section.batch
    extra = {"loss": progress["loss"], "samples_per_second": progress["samples_per_second"], "dataset": data[:16], "run": mark}
    return StageReport(stage="train", seen=seen, kept=seen, seconds=time.monotonic() - began, extra=extra)


def load_base(params: Params) -> Diffusion:
    """The model that training starts from: the teacher, or an editor; told to predict what the parameters say."""
    from diffusers import DDIMScheduler

    models, section = params.models, params.train
    device = resolve_device(models.device)
    subject = "train.start" if section.start else "models.teacher"
    base = load_diffusion(
        section.start or models.teacher, device=device, dtype=resolve_dtype(models.dtype, device), subject=subject, exact=True
    )
    if section.prediction is None:
        return base
    return replace(base, scheduler=DDIMScheduler.from_config(base.scheduler.config, prediction_type=section.prediction))


def new_unet(base: Diffusion, params: Params) -> Any:
    """The UNet to train: all of it, or LoRA weights beside it."""
    unet = new_editor_unet(base.unet, base.latent_channels)
    if params.train.lora_rank:
        add_lora(unet, params.train.lora_rank, seed=params.seed)
    return unet


def _load(job: Job, rank: int = 0, workers: int = 1) -> tuple[Diffusion, Latents]:
    params = job.params
    base = load_base(params)
    mark = model_digest(params.train.start or params.models.teacher, "teacher")
    told = partial(_told, "train: latents, part")
    of = partial(load_latents, job.dataset, base, params.train, model_digest=mark, seed=params.seed, cache=job.work.parent)
    return base, of(rank=rank, workers=workers, on_part=told)


def _told(what: str, done: int, of: int) -> None:
    print(f"{what} {done} of {of}", flush=True)


def _work(rank: int, workers: int, job: Job, loaded: tuple[Diffusion, Latents] | None = None) -> None:
    trainer = Trainer(job, rank, workers, *(loaded or _load(job)))
    del loaded
    if rank > 0:
        _train(trainer, None)
        return
    params = job.params
    parameters = {f"train.{k}": v for k, v in params.train.model_dump().items()} | {
        "teacher": params.models.teacher,
        "seed": params.seed,
        "dataset": job.data_digest,
        "processes": workers,
    }
    with track(params.track, "train", parameters, resume=job.work / "mlflow-run") as tracked:
        _train(trainer, tracked)
        if params.train.lora_rank:
            merge_lora(trainer.unet, trainer.ema, job.work / "lora")
        else:
            trainer.unet.load_state_dict(trainer.ema)
        start = model_label(params.train.start or params.models.teacher)
        record = {
            "start": start,
            "start_digest": model_digest(params.train.start or params.models.teacher, "teacher"),
            "dataset": job.data_digest,
            "pairs": len(trainer.latents),
            "loss": read_json(job.work / "progress.json")["loss"],
            "train": params.train.model_dump() | {"start": start if params.train.start else None},
        }
        save_editor(trainer.unet, trainer.base, job.out, lora=job.work / "lora" if params.train.lora_rank else None, record=record)
        tracked.tag(MADE, digest(job.out))
        _log_grid(trainer, tracked)


def _train(trainer: Trainer, tracked: Run | None) -> None:
    """The loop: step, and on rank 0 log, checkpoint and draw sample grids."""
    section = trainer.job.params.train
    began, since = time.monotonic(), trainer.step
    while trainer.step < section.steps:
        loss = trainer.advance()
        if not math.isfinite(loss):
            raise DivergedError(f"train: the loss is {loss} at step {trainer.step}; lower train.lr in params.yaml (checkpoints are kept)")
        if tracked is None:
            continue
        last = trainer.step == section.steps
        if last or trainer.step % section.log_every == 0:
            speed = (trainer.step - since) * section.batch / (time.monotonic() - began)
            _log(trainer, tracked, speed)
            began, since = time.monotonic(), trainer.step
        if last or trainer.step % section.checkpoint_every == 0:
            trainer.save()
        if not last and trainer.step % section.grid_every == 0:
            _log_grid(trainer, tracked)


def _log(trainer: Trainer, tracked: Run, speed: float) -> None:
    section = trainer.job.params.train
    recent = trainer.losses[-((trainer.step - 1) % section.log_every + 1) :]
    values = {
        "loss": sum(recent) / len(recent),
        "samples_per_second": speed,
        "lr": learning_rate(section, trainer.step - 1),
        "gradient_norm": trainer.gradient_norm.item(),
        "memory_gb": memory_gb(trainer.base.device),
    }
    tracked.metrics(values, trainer.step)
    write_json(trainer.job.work / "progress.json", {"step": trainer.step, **values})
    print(f"train {trainer.step}/{section.steps}  loss {values['loss']:.4f}  {speed:.1f} samples/s", flush=True)


def memory_gb(device: torch.device) -> float:
    """The most memory that this process has held so far: the GPU's, or the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def _log_grid(trainer: Trainer, tracked: Run) -> None:
    """Log source, the dataset's edit and the editor's edit of a few examples, by the averaged weights and fixed seeds."""
    section, base = trainer.job.params.evaluate, trainer.base
    instructions, before, after = example_pairs(trainer.job.dataset, _GRID, base.image_size)
    averaged = copy.deepcopy(trainer.unet)
    averaged.load_state_dict(trainer.ema, strict=False)
    editor = replace(base, unet=averaged.eval())
    requests = [EditRequest(x, section.text_guidance, section.image_guidance, i) for i, x in enumerate(instructions)]
    edited = edit_batch(editor, before, requests, edit_options(section))
    sheet = grid([[to_pillow(x) for x in trio] for trio in zip(before, after, edited, strict=True)])
    tracked.picture(sheet, f"grids/{trainer.step:06d}.png")
