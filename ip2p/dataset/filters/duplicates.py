"""Pairs whose two pictures look like an earlier pair's: both perceptual hashes are equal (ip2p/dataset/looks.py).

Two edits of one picture may be too small for the hashes to see: those of one triplet are compared by one instruction only.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ip2p.dataset.filters import Mask
from ip2p.params import FilterParams

_FRESH = 1 << 20
"""Hashes held in a set before they are merged into the sorted array: 8 bytes a pair in the long run."""


class DuplicatesFilter:
    """Remembers the pairs that got this far; drops those that look the same."""

    columns = ("hash_0", "hash_1", "triplet_id", "edit_prompt")

    def __init__(self, section: FilterParams) -> None:
        self._sorted: npt.NDArray[np.uint64] = np.zeros(0, dtype=np.uint64)
        self._fresh: set[int] = set()

    def misses(self, table: pa.Table, alive: Mask) -> list[tuple[str, Mask]]:
        """The rows whose hashes were seen, of those alive."""
        hashes = _mixed(table)
        places = np.searchsorted(self._sorted, hashes)
        known = np.zeros(len(hashes), dtype=bool)
        inside = places < len(self._sorted)
        known[inside] = self._sorted[places[inside]] == hashes[inside]
        here: dict[int, list[int]] = {}
        for i in np.flatnonzero(alive & ~known).tolist():
            rows = here.setdefault(int(hashes[i]), [])
            known[i] = int(hashes[i]) in self._fresh or (bool(rows) and _alike(table, i, rows))
            if not known[i]:
                rows.append(i)
        self._fresh.update(here)
        if len(self._fresh) >= _FRESH:
            self._sorted = np.union1d(self._sorted, np.fromiter(self._fresh, dtype=np.uint64))
            self._fresh.clear()
        return [("looks like an earlier pair", known)]


def _alike(table: pa.Table, row: int, others: list[int]) -> bool:
    """Whether a row of equal hashes is of another triplet than those, or by the same instruction as one of them."""
    texts = [(table["triplet_id"][i].as_py(), table["edit_prompt"][i].as_py()) for i in (row, *others)]
    return texts[0][0] != texts[1][0] or texts[0] in texts[1:]


def _mixed(table: pa.Table) -> npt.NDArray[np.uint64]:
    """Both hashes as one number (a wrapping multiply by the golden ratio keeps them apart)."""
    first, second = (np.asarray(table[n].to_numpy(zero_copy_only=False)).astype(np.int64).view(np.uint64) for n in ("hash_0", "hash_1"))
    with np.errstate(over="ignore"):
        mixed: npt.NDArray[np.uint64] = first * np.uint64(0x9E3779B97F4A7C15) + second
    return mixed
