"""Pictures that are none: flat ones, and burnt ones that are mostly pure black or white."""

from __future__ import annotations

import pyarrow as pa

from ip2p.dataset.filters import Mask, column
from ip2p.params import FilterParams


class DegenerateFilter:
    """Drops pairs of which either image is flat or burnt (ip2p/dataset/looks.py)."""

    columns = ("contrast", "burnt")

    def __init__(self, section: FilterParams) -> None:
        self.section = section

    def misses(self, table: pa.Table, alive: Mask) -> list[tuple[str, Mask]]:
        """A mask for each fault."""
        return [
            ("an image is flat", ~(column(table, "contrast") >= self.section.contrast)),
            ("an image is burnt", ~(column(table, "burnt") <= self.section.burnt)),
        ]
