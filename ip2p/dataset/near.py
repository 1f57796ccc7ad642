"""Texts that say nearly the same: MinHash finds candidates, exact Jaccard similarity of word 3-grams decides."""

from __future__ import annotations

import re
from typing import Any

_PERMUTATIONS = 64
_WORDS = 3


class NearDuplicates:
    """Remembers texts; `is_new` is False for one whose 3-grams are at least `threshold` similar to an earlier one's."""

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHashLSH

        self.threshold = threshold
        self._grams: list[frozenset[str]] = []
        # candidates are sought at a lower threshold, for MinHash only estimates
        self._index = MinHashLSH(threshold=max(0.1, threshold - 0.2), num_perm=_PERMUTATIONS)

    def is_new(self, text: str) -> bool:
        """Whether no earlier text is near this one; if so it is remembered."""
        grams = _grams(text)
        sketch = _sketch(grams)
        for number in self._index.query(sketch):
            other = self._grams[number]
            if len(grams & other) >= self.threshold * len(grams | other):
                return False
        self._index.insert(len(self._grams), sketch)
        self._grams.append(grams)
        return True


def _grams(text: str) -> frozenset[str]:
    words = re.findall(r"\w+", text.lower())
    return frozenset(" ".join(words[i : i + _WORDS]) for i in range(max(1, len(words) - _WORDS + 1)))


def _sketch(grams: frozenset[str]) -> Any:
    from datasketch import MinHash

    sketch = MinHash(num_perm=_PERMUTATIONS)
    sketch.update_batch([g.encode() for g in grams])
    return sketch
