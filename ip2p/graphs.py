"""CUDA graphs of a model's calls: the kernels of a call, recorded once for its shapes, are launched as one.

A UNet's call is some thousand kernels; for few rows a GPU is done with each sooner than Python can ask for the next.
A replay runs the kernels that were recorded, so its result is that of the call, bit for bit.

One recording is under way in a process at a time, and meanwhile no other thread may load or compile a model (`undisturbed`): both wait
for the whole device, which breaks a recording.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

_MOST = 64
"""Shapes that are remembered; each holds what it was given and shares the memory of all else with the others."""
undisturbed = threading.Lock()
"""Held by who records, and by who loads a model beside others."""


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    given: list[Tensor]
    result: Tensor


class Graphed:
    """A call whose arguments are tensors on one GPU and whose result is a tensor; from the second call of a shape on it is replayed.

    A result is good until the next call. For one thread at a time, and for a model whose weights stay where they are. While another
    thread loads or records, and where memory is too short to record, the call is made plainly.
    """

    def __init__(self, call: Callable[..., Tensor]) -> None:
        self._call = call
        self._recordings: OrderedDict[Hashable, _Recording | None] = OrderedDict()
        self._memory, self._room = torch.cuda.graph_pool_handle(), True

    @torch.inference_mode()
    def __call__(self, *arguments: Any, **options: Any) -> Tensor:
        """The call's result; recorded when its shapes come for the second time, for the first is often the last."""
        tensors, form = tree_flatten((arguments, options))
        key = (str(form), *((x.shape, x.dtype, x.stride()) for x in tensors))
        if key not in self._recordings:
            self._remember(key, None)
            return self._call(*arguments, **options)
        recording = self._recordings[key] or self._record(tensors, form)
        self._remember(key, recording)
        if recording is None:
            return self._call(*arguments, **options)
        for held, new in zip(recording.given, tensors, strict=True):
            held.copy_(new)
        recording.graph.replay()
        return recording.result

    def _record(self, tensors: list[Tensor], form: Any) -> _Recording | None:
        if not self._room or not undisturbed.acquire(blocking=False):
            return None
        try:
            given = [x.clone() for x in tensors]
            arguments, options = tree_unflatten(given, form)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
                result = self._call(*arguments, **options)
            return _Recording(graph, given, result)
        except torch.cuda.OutOfMemoryError:
            self._room = False
            return None
        finally:
            undisturbed.release()

    def _remember(self, key: Hashable, recording: _Recording | None) -> None:
        self._recordings[key] = recording
        self._recordings.move_to_end(key)
        while len(self._recordings) > _MOST:
            self._recordings.popitem(last=False)
