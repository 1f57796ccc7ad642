"""64-bit marks of texts: a large set of texts as a sorted array, 8 bytes each, in which two share a mark by rare chance.

Of half a million texts any two do with a chance of one in a hundred million.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Marks = NDArray[np.uint64]
"""Sorted, none twice (`numpy.union1d` keeps them so)."""
NONE: Marks = np.zeros(0, dtype=np.uint64)


def mark_of(text: str) -> int:
    """The mark of a text."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def among(mark: int, marks: Marks) -> bool:
    """Whether a mark is one of these."""
    at = int(np.searchsorted(marks, np.uint64(mark)))
    return at < len(marks) and int(marks[at]) == mark
