"""Pairs that CLIP sees as an earlier triplet's pair: codes of both images' embeddings differ in a few bits at most.

A code is 64 signs of projections (ip2p/clip.py); two embeddings at angle θ differ in about 64 θ/π of them. Codes within
`near_bits` bits agree wholly in at least one of `near_bits` + 1 bands, so each band is a sorted index to look in.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ip2p.dataset.filters import Mask
from ip2p.params import FilterParams

Words = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
_AT_ONCE = 1 << 22
"""Candidates compared at once (about 100 MB)."""


class EmbeddingFilter:
    """Remembers the pairs that got this far; drops those near one of another triplet."""

    columns = ("hash_clip", "triplet_id")

    def __init__(self, section: FilterParams) -> None:
        self._most = section.near_bits
        self._edges = np.linspace(0, 64, self._most + 2).round().astype(np.uint64)
        empty = np.zeros(0, dtype=np.uint64)
        self._index: list[tuple[Words, Words]] = [(empty, empty) for _ in range(self._most + 1)]

    def misses(self, table: pa.Table, alive: Mask) -> list[tuple[str, Mask]]:
        """The rows that are near an earlier one, of those alive."""
        rows = np.flatnonzero(alive)
        some = table.take(pa.array(rows))
        codes = np.asarray(some["hash_clip"].to_numpy(zero_copy_only=False)).astype(np.int64).view(np.uint64)
        triplets = np.fromiter((hash_of(t) for t in some["triplet_id"].to_pylist()), dtype=np.uint64, count=len(some))
        near = np.zeros(len(codes), dtype=bool)
        within: set[tuple[int, int]] = set()
        for band in range(self._most + 1):
            query = self._turned(codes, band)
            near |= _any_near(self._index[band], query, triplets, self._width(band), self._most)
            within |= _near_within(query, triplets, self._width(band), self._most)
        for earlier, later in sorted(within, key=lambda pair: pair[1]):
            near[later] |= not near[earlier]
        self._remember(codes[~near], triplets[~near])
        mask = np.zeros(len(table), dtype=bool)
        mask[rows[near]] = True
        return [("nearly an earlier triplet's pair", mask)]

    def _width(self, band: int) -> int:
        return int(self._edges[band + 1] - self._edges[band])

    def _turned(self, codes: Words, band: int) -> Words:
        """Codes rotated so that a band's bits are the highest: sorting them sorts by the band."""
        by = np.uint64(self._edges[band] % 64)
        return codes if by == 0 else (codes << by) | (codes >> (np.uint64(64) - by))

    def _remember(self, codes: Words, triplets: Words) -> None:
        for band, (known, owners) in enumerate(self._index):
            fresh = self._turned(codes, band)
            order = np.argsort(fresh, kind="stable")
            places = np.searchsorted(known, fresh[order])
            self._index[band] = np.insert(known, places, fresh[order]), np.insert(owners, places, triplets[order])


def hash_of(text: str) -> int:
    """64 bits of a text, the same in every process."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _ranges(known: Words, query: Words, width: int) -> tuple[Places, Places]:
    """For each query the begin and end of the known codes that share its highest `width` bits."""
    low = np.uint64(2 ** (64 - width) - 1)
    return np.searchsorted(known, query & ~low, side="left"), np.searchsorted(known, query | low, side="right")


def _candidates(known: Words, query: Words, width: int) -> Iterator[tuple[Places, Places]]:
    """Every (query, known code) that share their highest `width` bits, as two arrays of places; some at a time."""
    begins, ends = _ranges(known, query, width)
    parts = np.cumsum(ends - begins) // _AT_ONCE
    for part in np.unique(parts):
        some = np.flatnonzero(parts == part)
        counts = ends[some] - begins[some]
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        queries = np.repeat(some, counts)
        yield queries, begins[queries] + offsets


def _any_near(index: tuple[Words, Words], query: Words, triplets: Words, width: int, most: int) -> Mask:
    known, owners = index
    found = np.zeros(len(query), dtype=bool)
    for queries, places in _candidates(known, query, width):
        hits = (np.bitwise_count(known[places] ^ query[queries]) <= most) & (owners[places] != triplets[queries])
        found[queries[hits]] = True
    return found


def _near_within(query: Words, triplets: Words, width: int, most: int) -> set[tuple[int, int]]:
    """Pairs (earlier, later) of rows of one shard that are near each other."""
    order = np.argsort(query, kind="stable")
    found: set[tuple[int, int]] = set()
    for queries, places in _candidates(query[order], query, width):
        others = order[places]
        hits = (others < queries) & (np.bitwise_count(query[others] ^ query[queries]) <= most) & (triplets[others] != triplets[queries])
        found.update(zip(others[hits].tolist(), queries[hits].tolist(), strict=True))
    return found
