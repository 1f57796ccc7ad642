"""`torch.compile` where it pays: a leg that is long enough tries its steps both ways and goes on the quicker one.

Compiling takes minutes at each start, and saves from nothing to half of a step: that depends on the device, the model and the batch
(docs/benchmarks.md has two CPU cores). So it is measured where it is to be used, if the gradients are the same (`compiled`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from ip2p.compiled import other_gradients

if TYPE_CHECKING:
    from ip2p.world.pretrain.fit import Batch, Loss, Measured

TRIED = 50
"""Steps that are tried of each way."""
_WARM = 10
"""The first of them, which are not timed: they compile."""
WORTH = 1800.0
"""Seconds a leg must have left to be tried: compiling takes two or three minutes, which a shorter one does not win back."""


class Quicker:
    """A loss plainly computed and the same compiled: the quicker of the two, once `TRIED` steps of each were timed.

    `left` tells the seconds that a leg has left after so many steps of so many seconds; `tell` writes a line to its log. What cannot be
    compiled here, or gives `parameters` other gradients (of the first batch of each shape), is told, and goes on plainly.
    """

    def __init__(
        self,
        plain: Loss,
        compiled: Loss,
        parameters: Sequence[nn.Parameter],
        *,
        left: Callable[[int, float], float],
        tell: Callable[[str], None],
    ) -> None:
        self._plain, self._compiled, self._parameters, self._left, self._tell = plain, compiled, parameters, left, tell
        self._way, self._begun, self._compared = plain, list[float](), set[tuple[torch.Size, ...]]()
        self._settled = False

    def __call__(self, batch: Batch) -> Measured:
        if not self._settled:
            self._begun.append(time.monotonic())
            self._choose(len(self._begun) - 1)
        if self._way is self._compiled and (shape := tuple(x.shape for x in batch)) not in self._compared:
            self._compared.add(shape)
            if wrong := self._wrong(batch):
                self._settle(self._plain, f"{wrong}: goes on plain")
        return self._way(batch)

    def _choose(self, steps: int) -> None:
        """Change the way after each trial."""
        if steps == TRIED:
            if self._left(steps, self._seconds(0)) < WORTH:
                self._settle(self._plain)
            else:
                self._way = self._compiled
        elif steps == 2 * TRIED:
            plain, compiled = self._seconds(0), self._seconds(TRIED)
            waited = self._begun[TRIED + _WARM] - self._begun[TRIED] - _WARM * compiled
            way, name = (self._compiled, "compiled") if compiled < plain else (self._plain, "plain")
            told = f"a step takes {compiled:.3g} s compiled (after {max(0.0, waited):.0f} s), {plain:.3g} s plain"
            self._settle(way, f"{told}: goes on {name}")

    def _wrong(self, batch: Batch) -> str:
        """What speaks against compiling here, if anything does."""
        try:
            wrong = other_gradients(lambda: self._compiled(batch)[0], self._parameters)
        except TorchDynamoException as error:
            cause, *_ = str(getattr(error, "inner_exception", error)).strip().split("\n")
            return f"cannot be compiled here ({cause})"
        return wrong and f"compiled, its {wrong}"

    def _seconds(self, first: int) -> float:
        """Seconds of a step, as a rule, of the trial that began with this one."""
        marks = self._begun[first + _WARM : first + TRIED + 1]
        return statistics.median(b - a for a, b in pairwise(marks))

    def _settle(self, way: Loss, told: str = "") -> None:
        self._way, self._settled = way, True
        if told:
            self._tell(told)
