"""The embedded writer: the illustrated world's grammar, which also knows the truth of what it writes."""

from __future__ import annotations

import random
from collections.abc import Container, Iterator, Mapping
from types import MappingProxyType

from ip2p.errors import DataError
from ip2p.records import Caption, Triplet
from ip2p.world.edits import EDIT_TYPES, apply_edit, sample_edit
from ip2p.world.language import LanguageError, read_caption, write_caption, write_instruction
from ip2p.world.scenes import sample_scene

_TRIES = 200
_ROUNDS = 5


def world_caption(rng: random.Random) -> Caption:
    """A caption of a random scene."""
    return Caption(write_caption(sample_scene(rng), rng), "world")


def world_triplet(caption: Caption, edit_type: str, rng: random.Random) -> Triplet | None:
    """A triplet of this type, or None if the caption allows none. Raises `DataError` if it is not in the world's language."""
    try:
        scene = read_caption(caption.text)
    except LanguageError as error:
        raise DataError(f"{caption.source}: {error}; or choose another writer") from error
    edit = sample_edit(scene, rng, type=edit_type)
    if edit is None:
        return None
    return Triplet(caption, write_instruction(edit, scene, rng), write_caption(apply_edit(scene, edit), rng), edit_type, "world")


def write_triplets(
    *,
    count: int,
    stream: str,
    captions: list[Caption] | None = None,
    avoid: Container[str] = frozenset(),
    edit_types: tuple[str, ...] = EDIT_TYPES,
    weights: Mapping[str, float] = MappingProxyType({}),
) -> Iterator[Triplet]:
    """`count` distinct triplets, balanced over edit types by their weights; `avoid` holds captions (texts) not to use.

    Given captions are used in turn, each for the least used edit type that it allows; there may be fewer triplets than
    asked for when a whole round of captions allows nothing new.
    """
    seen: set[str] = set()
    used = dict.fromkeys(edit_types, 0)
    attempt = idle = 0
    while len(seen) < count and idle < (_ROUNDS * len(captions) if captions else _TRIES):
        rng = random.Random(f"{stream}/{attempt}")
        caption = captions[attempt % len(captions)] if captions else world_caption(rng)
        wanted = sorted(used, key=lambda t: used[t] / weights.get(t, 1))
        triplet = None if caption.text in avoid else _first(caption, wanted if captions else wanted[:1], rng, seen)
        attempt, idle = attempt + 1, idle + 1
        if triplet is not None:
            seen.add(triplet.id)
            used[triplet.edit_type] += 1
            idle = 0
            yield triplet


def _first(caption: Caption, edit_types: list[str], rng: random.Random, seen: set[str]) -> Triplet | None:
    """The first new triplet that the caption allows, in this order of edit types."""
    for edit_type in edit_types:
        triplet = world_triplet(caption, edit_type, rng)
        if triplet is not None and triplet.id not in seen:
            return triplet
    return None
