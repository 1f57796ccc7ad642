"""Crash-safe training state: one safetensors file a checkpoint, newest valid wins, the last few are kept.

Holds the trained weights, their moving average, optimizer moments, the step and what else is given; nothing is pickled.
Random streams need no state: every step seeds its own from (run seed, step), so a resumed run continues bit for bit on CPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ip2p.tensors import write_tensors

_NUMBER = "#"
"""Ends the name of a state that is a plain number."""


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state without what is frozen."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {k: v for k, v in model.state_dict().items() if k not in frozen}


def save_checkpoint(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    ema: Mapping[str, Tensor] | None = None,
    *,
    extra: Mapping[str, Tensor] | None = None,
    keep: int = 2,
) -> Path:
    """Write `step-NNNNNNNN.safetensors` under a temporary name, flush, rename; then drop all but the newest `keep`.

    Raises `UserError` if the disk does not take it; earlier checkpoints stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{k}": v for k, v in trained_state(model).items()}
    tensors |= {f"ema.{k}": v for k, v in (ema or {}).items()}
    tensors |= {f"extra.{k}": v for k, v in (extra or {}).items()}
    for index, state in optimizer.state_dict()["state"].items() if optimizer else ():
        tensors |= _flat(state, f"optimizer.{index}")
    path = folder / f"step-{step:08d}.safetensors"
    copied = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    write_tensors(copied, path, kept="earlier checkpoints are", metadata={"step": str(step)})
    for old in checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(p for p in folder.glob("step-*.safetensors") if re.fullmatch(r"step-\d{8}\.safetensors", p.name))


def load_newest(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    ema: dict[str, Tensor] | None = None,
    *,
    extra: dict[str, Tensor] | None = None,
) -> int:
    """Restore the newest checkpoint that reads whole, filling `extra`; returns its step, or 0 if there is none."""
    for path in reversed(checkpoints(folder)):
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
                step = int(file.metadata()["step"])
        except (SafetensorError, OSError, KeyError):
            continue
        _restore(tensors, model, optimizer, ema)
        if extra is not None:
            extra.update(_part(tensors, "extra."))
        return step
    return 0


def _restore(tensors: dict[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer | None, ema: dict[str, Tensor] | None) -> None:
    weights = _part(tensors, "model.")
    model.load_state_dict(weights, strict=weights.keys() == model.state_dict().keys())
    if ema is not None:
        for name, value in _part(tensors, "ema.").items():
            ema[name].copy_(value)
    if optimizer is not None:
        state: dict[int, dict[str, Any]] = {}
        for name, value in _part(tensors, "optimizer.").items():
            index, *keys, last = name.split(".")
            inner = state.setdefault(int(index), {})
            for key in keys:
                inner = inner.setdefault(key, {})
            inner[last.removesuffix(_NUMBER)] = value.item() if last.endswith(_NUMBER) else value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _flat(state: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    """An optimizer's state of one weight as tensors by dotted name: 8-bit optimizers nest it, and count steps by plain numbers."""
    flat: dict[str, Tensor] = {}
    for key, value in state.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}.{key}")
        elif isinstance(value, Tensor):
            flat[f"{prefix}.{key}"] = value
        elif value is not None:
            flat[f"{prefix}.{key}{_NUMBER}"] = torch.tensor(value)
    return flat


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
