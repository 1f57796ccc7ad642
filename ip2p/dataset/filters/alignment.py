"""Pairs whose images are shifted or zoomed against each other, which no CLIP score sees (ip2p/dataset/alignment.py)."""

from __future__ import annotations

import pyarrow as pa

from ip2p.dataset.filters import Mask, column
from ip2p.params import FilterParams


class AlignmentFilter:
    """Drops pairs with more shift or zoom than allowed, or more change outside the edited region."""

    columns = ("shift", "zoom", "outside")

    def __init__(self, section: FilterParams) -> None:
        self.section = section

    def misses(self, table: pa.Table, alive: Mask) -> list[tuple[str, Mask]]:
        """A mask for each of the three."""
        return [
            ("images shifted", ~(column(table, "shift") <= self.section.shift)),
            ("images zoomed", ~(abs(column(table, "zoom") - 1) <= self.section.zoom)),
            ("too much changed elsewhere", ~(column(table, "outside") <= self.section.outside)),
        ]
