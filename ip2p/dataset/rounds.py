"""Which samples are made next: all of them, or only while they are worth it. Pure: progress in, samples out.

`adaptive`: a triplet stops when enough of its pairs pass, or when passing is hopeless. What is decided depends on a unit's
own results alone, so any number of workers decides the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from ip2p.params import PairsParams

_AHEAD = 2
"""Samples in flight for each pair that is still missing (adaptive)."""


@dataclass
class Progress:
    """A triplet's samples so far."""

    triplet: int
    tried: int = 0
    passed: int = 0


def open_triplets(progress: list[Progress], section: PairsParams, keep: int) -> list[Progress]:
    """Triplets for which more samples are to be made."""
    return [p for p in progress if p.tried < section.samples and not _settled(p, section, keep)]


def next_samples(progress: list[Progress], section: PairsParams, keep: int, batch: int) -> list[tuple[int, int]]:
    """Up to `batch` samples as (triplet, sample number), least tried triplets first; empty when all is settled."""
    chosen: list[tuple[int, int]] = []
    ahead = dict.fromkeys((p.triplet for p in progress), 0)
    wanting = open_triplets(progress, section, keep)
    while len(chosen) < batch:
        able = [p for p in wanting if ahead[p.triplet] < _most(p, section, keep)]
        if not able:
            break
        p = min(able, key=lambda p: (p.tried + ahead[p.triplet], p.triplet))
        chosen.append((p.triplet, p.tried + ahead[p.triplet]))
        ahead[p.triplet] += 1
    return chosen


def _settled(p: Progress, section: PairsParams, keep: int) -> bool:
    if section.strategy == "best_of_n":
        return False
    return p.passed >= keep or (p.passed == 0 and p.tried >= section.patience)


def _most(p: Progress, section: PairsParams, keep: int) -> int:
    """Most samples in flight for a triplet."""
    left = section.samples - p.tried
    if section.strategy == "best_of_n":
        return left
    until_hopeless = section.patience - p.tried if p.passed == 0 else left
    return min(left, until_hopeless, _AHEAD * (keep - p.passed))
