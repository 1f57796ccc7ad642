"""The paper's filter (§3.1.2): four CLIP similarities against thresholds, which may differ by edit type."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ip2p.dataset.filters import Mask, column
from ip2p.dataset.thresholds import MISSES
from ip2p.params import FilterParams
from ip2p.records import BY_CAPTION


class ClipFilter:
    """Drops a pair unlike its captions, too different, a copy, or changed in another way than asked.

    Of a pair without captions (imported so: its scores by them are null) only what its images say is asked.
    """

    columns = ("edit_type", "sim_0", "sim_1", "sim_image", "sim_direction")

    def __init__(self, section: FilterParams) -> None:
        self.section = section

    def misses(self, table: pa.Table, alive: Mask) -> list[tuple[str, Mask]]:
        """One mask a threshold, in the paper's order; a score that is NaN misses."""
        found = [(MISSES[score], ~(spare >= 0) & ~_unasked(table, score)) for score, spare in self.spare(table).items()]
        found.insert(3, (MISSES["copy"], column(table, "sim_image") > self._limits(table, "copy_limit")))
        return found

    def spare(self, table: pa.Table) -> dict[str, npt.NDArray[np.float64]]:
        """By how much each row's scores exceed their thresholds; NaN where a score is no number."""
        least = {"sim_0": "caption", "sim_1": "caption", "sim_image": "image", "sim_direction": "direction"}
        return {score: column(table, score) - self._limits(table, name) for score, name in least.items()}

    def _limits(self, table: pa.Table, name: str) -> np.ndarray | float:
        """The threshold of each row: its edit type's own, else the common one."""
        own = {t: getattr(x, name) for t, x in self.section.by_type.items() if getattr(x, name) is not None}
        common = float(getattr(self.section, name))
        if not own:
            return common
        types = table["edit_type"].combine_chunks()
        index = pc.index_in(types, value_set=pa.array(list(own))).fill_null(len(own)).to_numpy(zero_copy_only=False)
        limits: np.ndarray = np.array([*own.values(), common], dtype=np.float64)[index]
        return limits


def _unasked(table: pa.Table, score: str) -> Mask:
    """The rows that have no such score because they have no captions."""
    unasked: Mask = table[score].is_null().to_numpy() & (score in BY_CAPTION)
    return unasked
