"""One resumable training loop for the embedded models, on CPU or GPU, in one process or several.

A batch is drawn from a generator seeded by (seed, step, rank): a killed run, resumed, goes on as if nothing had happened.
Several processes average gradients over gloo (CPU). For a GPU other processes draw ahead, so that it never waits for scenes,
captions or tokens.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ip2p.checkpoint import load_newest, save_checkpoint
from ip2p.muon import Muon
from ip2p.parallel import average_gradients
from ip2p.world.pretrain.quicker import Quicker

Batch = tuple[Tensor, ...]
Draw = Callable[[int, torch.Generator], Batch]
"""What a step sees, on the CPU; called in other processes for a GPU."""
Measured = tuple[Tensor, dict[str, Tensor]]
"""The loss of a batch, and what else is worth logging."""
Loss = Callable[[Batch], Measured]
"""What measures a batch on the model's device."""
_AHEAD = 4
"""Batches that each drawing process keeps ready."""


@dataclass(frozen=True)
class Leg:
    """How long and how fast to train. `lr` warms up, stays, and falls to zero over the last `decay` of the leg.

    A leg ends after `steps`, or after `minutes` of this process if that comes first: for a machine that is had for minutes.
    """

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
    minutes: float = math.inf

    def rate(self, step: int, seconds: float = 0.0) -> float:
        """Learning rate at `step`, so many seconds after this process began."""
        left = 1 - max(step / self.steps, seconds / 60 / self.minutes)
        return self.lr * min(1.0, (step + 1) / self.warmup) * max(0.0, min(1.0, left / self.decay if self.decay else 1.0))

    def left(self, step: int, a_step: float, seconds: float) -> float:
        """Seconds left at `step`, where each takes `a_step` seconds, so many seconds after this process began."""
        return min((self.steps - step) * a_step, 60 * self.minutes - seconds)


class _Batches(Dataset[Batch]):
    """Batches by number of their step."""

    def __init__(self, draw: Draw, leg: Leg, rank: int) -> None:
        self.draw, self.leg, self.rank = draw, leg, rank

    def __getitem__(self, step: int) -> Batch:
        return self.draw(step, torch.Generator().manual_seed((self.leg.seed * 1_000_003 + step) * 64 + self.rank))


def fit(
    model: nn.Module,
    draw: Draw,
    losses: Sequence[Loss],
    leg: Leg,
    folder: Path,
    *,
    rank: int = 0,
    workers: int = 1,
    on_save: Callable[[int], None] | None = None,
) -> dict[str, Tensor]:
    """Train to the end of the leg, resuming from `folder`, by the quicker of `losses`; returns the moving average of the weights."""
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = Muon(model, lr=leg.lr, weight_decay=leg.weight_decay)
    ema = {k: v.detach().clone() for k, v in model.state_dict().items()}
    step, device = load_newest(folder, model, optimizer, ema), parameters[0].device
    frozen = {name: ema[name] for name, p in model.named_parameters() if not p.requires_grad}  # which a checkpoint has as average alone
    model.load_state_dict(frozen, strict=False)
    start = began = saved = time.monotonic()
    told, loss = step, losses[0] if len(losses) == 1 else _quicker(losses, parameters, leg, step, folder, rank)
    sums: dict[str, Tensor] = {}
    for batch in _drawn(draw, leg, step, rank, device):
        value, logged = loss(tuple(x.to(device, non_blocking=True) for x in batch))
        optimizer.zero_grad(set_to_none=True)
        norm = _backward(value, parameters, leg, workers)
        rate = leg.rate(step, time.monotonic() - start)
        if math.isfinite(norm.item()):
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        _update_ema(ema, model, min(leg.ema, (1 + step) / (10 + step)))
        step += 1
        for name, number in ({"loss": value.detach(), "norm": norm} | logged).items():
            sums[name] = sums.get(name, torch.zeros_like(number)) + number
        last = step == leg.steps or time.monotonic() - start > 60 * leg.minutes
        if rank == 0 and (step % leg.log_every == 0 or last):
            means = {k: v.item() / (step - told) for k, v in sums.items()}
            _report(folder, step, leg, means, rate, (step - told) / (time.monotonic() - began), device)
            sums, began, told = {}, time.monotonic(), step
        if rank == 0 and (time.monotonic() - saved > leg.save_seconds or last):
            save_checkpoint(folder, step, model, optimizer, ema)
            if on_save is not None:
                _with_average(model, ema, lambda at=step: on_save(at))  # type: ignore[misc]
            saved = time.monotonic()
        if last:
            break
    return ema


def _backward(value: Tensor, parameters: list[nn.Parameter], leg: Leg, workers: int) -> Tensor:
    """Gradients of a loss, averaged over the processes and clipped; returns their norm before."""
    value.backward()  # type: ignore[no-untyped-call]
    average_gradients(parameters, workers)
    return nn.utils.clip_grad_norm_(parameters, leg.clip)


def _quicker(losses: Sequence[Loss], parameters: Sequence[nn.Parameter], leg: Leg, step: int, folder: Path, rank: int) -> Quicker:
    """The quicker one of a loss and the same compiled, in a leg that begins now, at `step`."""
    began = time.monotonic()
    return Quicker(
        losses[0],
        losses[1],
        parameters,
        left=lambda steps, a_step: leg.left(step + steps, a_step, time.monotonic() - began),
        tell=lambda line: tell(folder, f"{folder.name} {line}", rank),
    )


def _drawn(draw: Draw, leg: Leg, step: int, rank: int, device: torch.device) -> DataLoader[Batch]:
    """The batches from `step` on, in order; drawn here for a CPU, ahead and on all other cores for a GPU."""
    cuda = device.type == "cuda"
    feeders = max(1, len(os.sched_getaffinity(0)) - 2) if cuda else 0
    options: dict[str, Any] = {"prefetch_factor": _AHEAD, "multiprocessing_context": "fork"} if feeders else {}
    steps = range(step, leg.steps)
    return DataLoader(_Batches(draw, leg, rank), batch_size=None, sampler=steps, num_workers=feeders, pin_memory=cuda, **options)


def _with_average(model: nn.Module, ema: dict[str, Tensor], look: Callable[[], None]) -> None:
    """Call `look` while the model holds its averaged weights."""
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(ema)
    model.eval()
    with torch.no_grad():
        look()
    model.load_state_dict(kept)
    model.train()


@torch.no_grad()
def _update_ema(ema: dict[str, Tensor], model: nn.Module, rate: float) -> None:
    state = model.state_dict()
    floats = [k for k, v in state.items() if v.is_floating_point()]
    torch._foreach_lerp_([ema[k] for k in floats], [state[k] for k in floats], 1 - rate)
    for name in state.keys() - set(floats):
        ema[name].copy_(state[name])


def _report(folder: Path, step: int, leg: Leg, means: dict[str, float], rate: float, speed: float, device: torch.device) -> None:
    told = " ".join(f"{k} {v:.4f}" for k, v in means.items())
    tell(folder, f"{folder.name} step {step}/{leg.steps} {told} lr {rate:.2e} {speed:.2f} step/s {device.type}")


def ways(loss: Callable[[Callable[..., Any], Batch], Measured], function: Callable[..., Any], *, compiled: bool) -> list[Loss]:
    """The loss by a function as it is, and by the same compiled if that may be tried."""
    return [partial(loss, f) for f in ([function, torch.compile(function)] if compiled else [function])]


def tell(folder: Path, line: str, rank: int = 0) -> None:
    """Print a line and add it to the folder's log, if this is the first process."""
    if rank:
        return
    print(line, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        log.write(line + "\n")
