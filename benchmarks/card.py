"""What a device can do, measured, and what a call asks of it: the shares of peak and bandwidth that the benchmarks print."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """What one call computes (FLOP) and moves (bytes that its operators read and write, each alone, unfused)."""

    flops: float
    bytes: float

    def shares(self, seconds: float, device: torch.device, dtype: torch.dtype) -> str:
        """The call's share of the device's measured peak and of its measured bandwidth, if it takes `seconds`."""
        peak, bandwidth = measured_peak(device, dtype), measured_bandwidth(device)
        return f"{self.flops / seconds / peak:.0%} | {self.bytes / seconds / bandwidth:.0%}"


def cost_of(call: Callable[[], Any]) -> Cost:
    """What a call costs, by running it once."""
    with FlopCounterMode(display=False) as flops, _Traffic() as traffic:
        call()
    return Cost(flops.get_total_flops(), traffic.bytes)


class _Traffic(TorchDispatchMode):
    """Counts the bytes of the tensors that operators take and give; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if not function.is_view:
            tensors = (x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor))
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return out


@lru_cache(maxsize=8)
def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the best of many, once a run."""
    size = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(40))


@lru_cache(maxsize=8)
def measured_bandwidth(device: torch.device) -> float:
    """Bytes a second of copying a large tensor (read and written), the best of many, once a run."""
    source = torch.zeros(2**28 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() * source.element_size() / min(seconds(lambda: target.copy_(source), device) for _ in range(20))


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """How long a call takes, until the device is done."""
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
