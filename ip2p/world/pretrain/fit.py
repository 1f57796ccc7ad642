"""One resumable training loop for the embedded models, on CPU or GPU, in one process or several.

Loss functions draw their batch from a generator seeded by (seed, step, rank): a killed run, resumed, goes on as if
nothing had happened. Several processes average gradients over gloo (CPU).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ip2p.checkpoint import load_newest, save_checkpoint
from ip2p.muon import Muon
from ip2p.parallel import average_gradients

Loss = Callable[[int, torch.Generator], tuple[Tensor, dict[str, float]]]


@dataclass(frozen=True)
class Leg:
    """How long and how fast to train. `lr` warms up, stays, and falls to zero over the last `decay` of the steps."""

    steps: int
    lr: float
    seed: int = 0
    warmup: int = 200
    decay: float = 0.3
    weight_decay: float = 0.01
    ema: float = 0.999
    clip: float = 1.0
    save_seconds: float = 120.0
    log_every: int = 50

    def rate(self, step: int) -> float:
        """Learning rate at `step`."""
        start = self.steps * (1 - self.decay)
        fall = 1.0 if step < start else max(0.0, (self.steps - step) / max(1.0, self.steps - start))
        return self.lr * min(1.0, (step + 1) / self.warmup) * fall


def fit(
    model: nn.Module, loss: Loss, leg: Leg, folder: Path, *, rank: int = 0, workers: int = 1, on_save: Callable[[int], None] | None = None
) -> dict[str, Tensor]:
    """Train until `leg.steps`, resuming from `folder`; returns the moving average of the weights."""
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = Muon(model, lr=leg.lr, weight_decay=leg.weight_decay)
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    step = load_newest(folder, model, optimizer, ema)
    device = parameters[0].device
    began = saved = time.monotonic()
    sums: dict[str, float] = {}
    while step < leg.steps:
        for group in optimizer.param_groups:
            group["lr"] = leg.rate(step)
        generator = torch.Generator().manual_seed((leg.seed * 1_000_003 + step) * 64 + rank)
        value, logged = loss(step, generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        average_gradients(parameters, workers)
        norm = nn.utils.clip_grad_norm_(parameters, leg.clip)
        if math.isfinite(norm.item()):
            optimizer.step()
        _update_ema(ema, model, min(leg.ema, (1 + step) / (10 + step)))
        step += 1
        for name, number in ({"loss": value.item(), "norm": norm.item()} | logged).items():
            sums[name] = sums.get(name, 0.0) + number
        if rank == 0 and step % leg.log_every == 0:
            _report(folder, step, leg, sums, time.monotonic() - began, device)
            sums, began = {}, time.monotonic()
        if rank == 0 and (time.monotonic() - saved > leg.save_seconds or step == leg.steps):
            save_checkpoint(folder, step, model, optimizer, ema)
            if on_save is not None:
                model_state = {k: v.clone() for k, v in model.state_dict().items()}
                model.load_state_dict(ema)
                model.eval()
                with torch.no_grad():
                    on_save(step)
                model.load_state_dict(model_state)
                model.train()
            saved = time.monotonic()
    return ema


@torch.no_grad()
def _update_ema(ema: dict[str, Tensor], model: nn.Module, rate: float) -> None:
    state = model.state_dict()
    floats = [k for k, v in state.items() if v.is_floating_point()]
    torch._foreach_lerp_([ema[k] for k in floats], [state[k] for k in floats], 1 - rate)
    for name in state.keys() - set(floats):
        ema[name].copy_(state[name])


def _report(folder: Path, step: int, leg: Leg, sums: dict[str, float], seconds: float, device: torch.device) -> None:
    means = " ".join(f"{k} {v / leg.log_every:.4f}" for k, v in sums.items())
    line = f"{folder.name} step {step}/{leg.steps} {means} lr {leg.rate(step):.2e} {leg.log_every / seconds:.2f} step/s {device.type}"
    print(line, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        log.write(line + "\n")
