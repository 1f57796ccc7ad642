"""Pairs whose two pictures look like an earlier pair's: both perceptual hashes are equal (ip2p/dataset/looks.py).

Two edits of one picture may be too small for the hashes to see: those of one triplet are compared by one instruction only.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ip2p.dataset.filters import Mask
from ip2p.marks import NONE, among, mark_of
from ip2p.params import FilterParams

_FRESH = 1 << 20
"""Marks held in a set before they are merged into the sorted array: 8 bytes each in the long run."""


class _Growing:
    """A growing set of 64-bit marks."""

    def __init__(self) -> None:
        self._sorted = NONE
        self._fresh: set[int] = set()

    def __contains__(self, mark: int) -> bool:
        return mark in self._fresh or among(mark, self._sorted)

    def add(self, mark: int) -> None:
        self._fresh.add(mark)
        if len(self._fresh) >= _FRESH:
            self._sorted = np.union1d(self._sorted, np.fromiter(self._fresh, dtype=np.uint64))
            self._fresh.clear()


class DuplicatesFilter:
    """Remembers the pairs that got this far; drops those that look the same."""

    columns = ("hash_0", "hash_1", "triplet_id", "edit_prompt")

    def __init__(self, section: FilterParams) -> None:
        self._looks, self._triplets, self._edits = _Growing(), _Growing(), _Growing()

    def misses(self, table: pa.Table, alive: Mask) -> list[tuple[str, Mask]]:
        """The rows that look like an earlier one of another triplet, or of the same instruction, of those alive."""
        looks, triplets, instructions = _mixed(table).tolist(), table["triplet_id"].to_pylist(), table["edit_prompt"].to_pylist()
        known = np.zeros(len(looks), dtype=bool)
        for i in np.flatnonzero(alive).tolist():
            triplet = mark_of(f"{looks[i]}/{triplets[i]}")
            edit = mark_of(f"{triplet}/{instructions[i]}")
            known[i] = looks[i] in self._looks and (triplet not in self._triplets or edit in self._edits)
            if not known[i]:
                self._looks.add(looks[i])
                self._triplets.add(triplet)
                self._edits.add(edit)
        return [("looks like an earlier pair", known)]


def _mixed(table: pa.Table) -> npt.NDArray[np.uint64]:
    """Both hashes as one number (a wrapping multiply by the golden ratio keeps them apart)."""
    first, second = (np.asarray(table[n].to_numpy(zero_copy_only=False)).astype(np.int64).view(np.uint64) for n in ("hash_0", "hash_1"))
    with np.errstate(over="ignore"):
        mixed: npt.NDArray[np.uint64] = first * np.uint64(0x9E3779B97F4A7C15) + second
    return mixed
