"""Scored pairs → a reason for each row, by the filters in the order of the parameters, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ip2p.dataset.filters import Filter
from ip2p.dataset.filters.alignment import AlignmentFilter
from ip2p.dataset.filters.clip import ClipFilter
from ip2p.dataset.filters.degenerate import DegenerateFilter
from ip2p.dataset.filters.duplicates import DuplicatesFilter
from ip2p.dataset.filters.embedding import EmbeddingFilter
from ip2p.dataset.filters.unsafe import UnsafeFilter
from ip2p.params import FilterParams

KEPT = "kept"
FILTERS: dict[str, Callable[[FilterParams], Filter]] = {
    "clip": ClipFilter,
    "alignment": AlignmentFilter,
    "degenerate": DegenerateFilter,
    "duplicates": DuplicatesFilter,
    "embedding": EmbeddingFilter,
    "unsafe": UnsafeFilter,
}
_OWN = ("pair_id", "triplet_id", "edit_type", "edit_prompt", "sim_direction")


@dataclass(frozen=True)
class Verdicts:
    """Of each row: its reason (`KEPT` if it stays), and its rank within its triplet by direction (-1 if dropped by a filter)."""

    reasons: npt.NDArray[np.object_]
    ranks: npt.NDArray[np.int64]

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        """The rows that stay."""
        mask: npt.NDArray[np.bool_] = self.reasons == KEPT
        return mask


class Chain:
    """Filters with what they remember; feed it the shards of a dataset in order. A triplet's pairs lie in one shard."""

    def __init__(self, section: FilterParams) -> None:
        self.section = section
        self.links: list[Filter] = [FILTERS[name](section) for name in section.chain]
        self.columns = list(dict.fromkeys((*_OWN, *(c for link in self.links for c in link.columns))))

    def decide(self, table: pa.Table) -> Verdicts:
        """A verdict for every row of a shard's scores."""
        reasons = np.full(len(table), KEPT, dtype=object)
        alive = np.ones(len(table), dtype=bool)
        for link in self.links:
            for reason, mask in link.misses(table, alive):
                reasons[alive & mask] = reason
                alive &= ~mask
        return self.rank(table, reasons)

    def rank(self, table: pa.Table, reasons: npt.NDArray[np.object_]) -> Verdicts:
        """Verdicts of rows that are kept or beyond the best, ranked anew; all others keep their reason."""
        beyond = f"beyond the best {self.section.keep} of its triplet"
        alive = (reasons == KEPT) | (reasons == beyond)
        ranks = _ranks(table, alive)
        reasons = reasons.copy()
        reasons[alive] = np.where(ranks[alive] >= self.section.keep, beyond, KEPT)
        return Verdicts(reasons, ranks)


def _ranks(table: pa.Table, alive: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Place of each row among its triplet's of the same instruction, best direction first, ties by pair id; -1 for rows not alive.

    Imported pairs may share a picture, which makes them one triplet's, and ask for different edits of it.
    """
    ranks = np.full(len(table), -1, dtype=np.int64)
    rows = np.flatnonzero(alive)
    if not len(rows):
        return ranks
    some = table.select(list(_OWN)).take(pa.array(rows)).append_column("row", pa.array(rows))
    some = some.append_column("edit", pc.binary_join_element_wise(some["triplet_id"], some["edit_prompt"], "\n"))
    ordered = some.sort_by([("edit", "ascending"), ("sim_direction", "descending"), ("pair_id", "ascending")])
    codes = ordered["edit"].combine_chunks().dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    ranks[ordered["row"].to_numpy()] = np.arange(len(rows)) - np.repeat(starts, np.diff(np.append(starts, len(rows))))
    return ranks
