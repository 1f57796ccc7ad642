"""The state of one training process, and its step: draw a share of the global batch, step, average; and its checkpoint."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ip2p.attention import Float32Attention
from ip2p.checkpoint import load_newest, save_checkpoint, trained_state
from ip2p.compiled import other_gradients
from ip2p.diffusion import Diffusion
from ip2p.errors import UserError
from ip2p.model.data import Latents, TrainBatch, draw_batch
from ip2p.model.lora import add_lora
from ip2p.model.objective import dpo_loss, ema_rate, learning_rate, loss_of, new_optimizer
from ip2p.model.preferences import Preferences, draw_preferences
from ip2p.model.unet import new_editor_unet
from ip2p.parallel import agree, average, average_gradients
from ip2p.params import Params
from ip2p.store import Folder


@dataclass(frozen=True)
class Job:
    """What every training process is told."""

    params: Params
    dataset: Folder
    data_digest: str
    work: Path
    out: Path
    preferences: Path | None = None


@dataclass
class Trainer:
    """The state of one training process; `losses` are those of all steps so far, of the whole batch each."""

    job: Job
    rank: int
    workers: int
    base: Diffusion
    latents: tuple[Latents, ...]
    """Of each size of pictures; steps take them in turns."""
    preferences: Preferences | None = None
    unet: Any = field(init=False)
    start: Any = field(init=False, default=None)
    """The UNet as it was at the start, which DPO measures preferences against; None without it."""
    optimizer: torch.optim.Optimizer = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    ema: dict[str, Tensor] = field(init=False)
    step: int = field(init=False)
    losses: list[float] = field(init=False)
    gradient_norm: Tensor = field(init=False)
    """Of the last step, before clipping."""
    preference_loss: float = field(init=False, default=math.nan)
    """Of the last step, of the whole batch."""
    _compared: set[torch.Size] = field(init=False, default_factory=set)
    """Shapes of batches of which compiled training was compared with plain."""

    def __post_init__(self) -> None:
        section = self.job.params.train
        start = self.base.unet
        if self.preferences is not None and section.preference_loss == "dpo":
            self.start = new_editor_unet(start, self.base.latent_channels).to(self.base.device, memory_format=torch.channels_last)
            self.start.eval().requires_grad_(False)
        self.unet = new_unet(self.base, self.job.params).to(self.base.device, memory_format=torch.channels_last).train()
        self.base = replace(self.base, unet=self.unet)
        compared = [unet for unet in (self.unet, self.start) if unet is not None]  # must compute alike
        start.to("meta")  # no longer needed: gives its memory back, whoever still holds it
        if section.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        if self.base.dtype != torch.float32 and self.base.device.type == "cpu":
            for unet in compared:
                unet.set_attn_processor(Float32Attention())
        self.optimizer = new_optimizer(self.unet, section)
        self.scaler = torch.amp.GradScaler(self.base.device.type, enabled=self.base.dtype == torch.float16)
        home = torch.device("cpu") if section.ema_on_cpu else self.base.device
        self.ema = {k: v.detach().to(home, copy=True) for k, v in trained_state(self.unet).items()}
        extra: dict[str, Tensor] = {}
        self.step = load_newest(self.job.work, self.unet, self.optimizer, self.ema, extra=extra)
        if not agree(self.step, self.base.device):
            told = "the processes find different checkpoints there; on several machines it must be one shared folder"
            raise UserError(f"{self.job.work}: {told}")
        self.losses = extra["losses"].tolist() if self.step else []
        if self.step and self.scaler.is_enabled():
            self.scaler.load_state_dict({**self.scaler.state_dict(), **{k: extra[k].item() for k in ("scale", "_growth_tracker")}})
        if section.compile:
            for unet in compared:
                unet.compile()

    def advance(self) -> float:
        """One optimizer step; returns the loss of the whole batch."""
        section, seed = self.job.params.train, self.job.params.seed
        share = section.batch // self.workers
        part = share // section.accumulate
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(section, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        total, preferred = torch.zeros(2, device=self.base.device)
        latents = self.latents[self.step % len(self.latents)]
        for number in range(section.accumulate):
            first = self.rank * share + number * part
            batch = draw_batch(latents, section, seed=seed, step=self.step, first=first, count=part)
            if section.compile and batch.clean_BCHW.shape not in self._compared:
                self._compare(batch)
            loss = self._loss(batch) / section.accumulate
            self.scaler.scale(loss).backward()
            total += loss.detach()
            if self.preferences is not None:
                preferred += self._prefer(number)
        average_gradients(list(self.unet.parameters()), self.workers)
        self.scaler.unscale_(self.optimizer)
        self.gradient_norm = torch.nn.utils.clip_grad_norm_(self.unet.parameters(), section.clip_norm or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._average_weights(ema_rate(section, self.step))
        self.step += 1
        self.losses.append(average(total, self.workers))
        if self.preferences is not None:
            self.preference_loss = average(preferred, self.workers)
        return self.losses[-1]

    def _loss(self, batch: TrainBatch) -> Tensor:
        with self.base.arithmetic():
            return loss_of(self.unet, batch, self.base, min_snr=self.job.params.train.min_snr)

    def _compare(self, batch: TrainBatch) -> None:
        """Raise `UserError` if compiled training would learn something else of batches like this, a step's first."""
        loss = lambda: 2**10 * self._loss(batch)  # noqa: E731  (float16 has no gradients as small as the loss's own)
        if wrong := other_gradients(loss, [p for p in self.unet.parameters() if p.requires_grad]):
            by = f"compiled by torch {torch.__version__} on {self.base.device.type}"
            raise UserError(f"{by}, this UNet's {wrong}; set train.compile to false")
        self.optimizer.zero_grad(set_to_none=True)
        self._compared.add(batch.clean_BCHW.shape)

    def _prefer(self, number: int) -> Tensor:
        """Add the gradients of preferences to those of a part of this process's share; returns its share of their loss."""
        assert self.preferences is not None
        section, seed = self.job.params.train, self.job.params.seed
        share = section.preference_batch // self.workers
        part = share // section.accumulate
        of = {"batch": section.preference_batch, "seed": seed, "step": self.step, "first": self.rank * share + number * part, "count": part}
        with self.base.arithmetic():
            drawn = draw_preferences(self.preferences, **of, both=self.start is not None)
            if self.start is not None:
                loss = dpo_loss(self.unet, self.start, drawn, self.base, beta=section.preference_beta)
            else:
                loss = self._loss(drawn)
            loss = loss / section.accumulate
        self.scaler.scale(section.preference_weight * loss).backward()
        return loss.detach()

    def finite(self) -> bool:
        """Whether what is trained, and its average, are numbers still."""
        tensors = [*trained_state(self.unet).values(), *self.ema.values()]
        return all(bool(torch.isfinite(v).all()) for v in tensors)

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


def new_unet(base: Diffusion, params: Params) -> Any:
    """The UNet to train: all of it, or LoRA weights beside it."""
    unet = new_editor_unet(base.unet, base.latent_channels)
    if params.train.lora_rank:
        add_lora(unet, params.train.lora_rank, seed=params.seed)
    return unet
