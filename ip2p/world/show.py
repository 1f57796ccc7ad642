"""Pictures of the world to look at: that of a caption; a contact sheet of random scenes, then of one scene in every style, setting,
season, time and weather."""

from __future__ import annotations

import random
from dataclasses import replace

from PIL import Image

from ip2p.errors import DataError
from ip2p.pictures import grid
from ip2p.world.language import LanguageError, read_caption, write_caption
from ip2p.world.render import render
from ip2p.world.scenes import COLOURS, GLOBAL_VALUES, KINDS, Scene, Thing, sample_scene

_COLUMNS = 8


def contact_sheet(*, size: int, seed: int = 0) -> Image.Image:
    """The sheet, eight pictures a row of `size` pixels each."""
    rng = random.Random(seed)
    rows = [[render(sample_scene(rng), seed=i * _COLUMNS + j, size=size) for j in range(_COLUMNS)] for i in range(4)]
    base = Scene("lake", "summer", "day", "clear", "illustration", (Thing("house", "red", 1, "left"), Thing("duck", "yellow", 2, "right")))
    for name, values in GLOBAL_VALUES.items():
        rows.append([render(_with(base, name, value), seed=3, size=size) for value in values])
    for i in range(0, len(KINDS), _COLUMNS):
        things = [(Thing(k, rng.choice(COLOURS), 1, "left"), Thing(k2, rng.choice(COLOURS), 3, "right")) for k, k2 in _couples(i)]
        rows.append([render(replace(base, things=t), seed=3, size=size) for t in things])
    return grid(rows)


def drawn(caption: str, *, size: int) -> tuple[Image.Image, str]:
    """The picture of a caption, and the caption as it was understood. Raises `DataError` saying what is missing in it."""
    try:
        scene = read_caption(caption)
    except LanguageError as error:
        known = f"a thing is A COLOUR KIND and where: {write_caption(sample_scene(random.Random(0)), random.Random(0))}"
        raise DataError(f"{error}; {known}") from error
    return render(scene, seed=0, size=size), write_caption(scene, random.Random(0))


def _with(scene: Scene, name: str, value: str) -> Scene:
    return replace(scene, **{name: value})  # type: ignore[arg-type]


def _couples(first: int) -> list[tuple[str, str]]:
    return [(k, KINDS[(first + j + 5) % len(KINDS)]) for j, k in enumerate(KINDS[first : first + _COLUMNS])]
