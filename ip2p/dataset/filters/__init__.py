"""The chain of filters, one file each: a filter decides, the chain counts. Filters read scores, never images.

A filter is a class made from `FilterParams` whose `misses(table, alive)` gives, for a table of scored pairs, the rows that
miss (a mask) and why; `alive` marks the rows that no earlier filter has dropped.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Mask = npt.NDArray[np.bool_]


class Filter(Protocol):
    """One link of the chain."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What it reads."""
        ...

    def misses(self, table: pa.Table, alive: Mask) -> list[tuple[str, Mask]]:
        """Reasons and the rows they hold for, most telling first."""
        ...


def column(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    """A column of numbers; nulls are NaN, which no threshold passes."""
    return np.asarray(table[name].to_numpy(zero_copy_only=False), dtype=np.float64)
