"""Pairs of which an image classifier (`models.safety`) finds either picture unsafe."""

from __future__ import annotations

import pyarrow as pa

from ip2p.dataset.filters import Mask, column
from ip2p.errors import DataError
from ip2p.params import FilterParams


class UnsafeFilter:
    """Drops pairs rated above the limit. Raises `DataError` if a pair was never rated."""

    columns = ("unsafe",)

    def __init__(self, section: FilterParams) -> None:
        self.section = section

    def misses(self, table: pa.Table, alive: Mask) -> list[tuple[str, Mask]]:
        """One mask."""
        if table["unsafe"].null_count:
            raise DataError("filter.chain: `unsafe` needs ratings; set models.safety and make the pairs again, or take it out")
        return [("an image is unsafe", ~(column(table, "unsafe") <= self.section.unsafe))]
