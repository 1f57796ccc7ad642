"""Scenes of the illustrated world: what a picture shows, as a frozen record.

A `Scene` is the ground truth of a picture: setting, season, time of day, weather, style and one to three groups of
things. `sample_scene` draws one; `ip2p.world.render` draws its picture; `ip2p.world.language` writes its caption.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

SETTINGS = ("beach", "field", "desert", "mountains", "forest", "city", "lake", "farm")
SEASONS = ("spring", "summer", "autumn", "winter")
TIMES = ("day", "sunset", "night")
WEATHERS = ("clear", "rain", "snow", "fog", "storm")
STYLES = (
    "illustration",
    "pencil sketch",
    "watercolour",
    "sepia photograph",
    "pixel art",
    "neon",
    "pop art",
    "blueprint",
)
COLOURLESS_STYLES = frozenset({"pencil sketch", "sepia photograph", "blueprint"})
KINDS = (
    "house",
    "tree",
    "car",
    "bus",
    "boat",
    "balloon",
    "tent",
    "cat",
    "dog",
    "duck",
    "lighthouse",
    "castle",
    "rocket",
    "umbrella",
    "flower",
    "mushroom",
)
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white")
PLACES = ("left", "middle", "right")
MAX_COUNT = 3
MAX_GROUPS = 3

GLOBAL_VALUES: dict[str, tuple[str, ...]] = {
    "setting": SETTINGS,
    "season": SEASONS,
    "time": TIMES,
    "weather": WEATHERS,
    "style": STYLES,
}


@dataclass(frozen=True, slots=True)
class Thing:
    """One group of equal things: `count` (1–3) of a `kind` in one `colour` at one `place`."""

    kind: str
    colour: str
    count: int
    place: str

    def __post_init__(self) -> None:
        _require("kind", self.kind, KINDS)
        _require("colour", self.colour, COLOURS)
        _require("place", self.place, PLACES)
        if not 1 <= self.count <= MAX_COUNT:
            raise ValueError(f"thing.count: {self.count} is not within 1..{MAX_COUNT}")


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows. Groups differ in kind and in place, so that language can name each without ambiguity."""

    setting: str
    season: str
    time: str
    weather: str
    style: str
    things: tuple[Thing, ...]

    def __post_init__(self) -> None:
        for name, values in GLOBAL_VALUES.items():
            _require(name, getattr(self, name), values)
        if not 1 <= len(self.things) <= MAX_GROUPS:
            raise ValueError(f"scene.things: {len(self.things)} groups, need 1..{MAX_GROUPS}")
        if len({t.kind for t in self.things}) < len(self.things) or len({t.place for t in self.things}) < len(self.things):
            raise ValueError("scene.things: two groups share a kind or a place")

    def thing(self, kind: str) -> Thing | None:
        """The group of this kind, if the scene has one."""
        return next((t for t in self.things if t.kind == kind), None)


def ordered(things: tuple[Thing, ...]) -> tuple[Thing, ...]:
    """Groups from left to right: the one order in which scenes are compared and described."""
    return tuple(sorted(things, key=lambda t: PLACES.index(t.place)))


def sample_thing(rng: random.Random, *, kinds: tuple[str, ...] = KINDS, place: str | None = None) -> Thing:
    """A random group; three in five are single things."""
    return Thing(
        kind=rng.choice(kinds),
        colour=rng.choice(COLOURS),
        count=rng.choice((1, 1, 1, 2, 3)),
        place=place or rng.choice(PLACES),
    )


def sample_scene(rng: random.Random) -> Scene:
    """A random scene: plain illustrations, clear weather and daylight are more common than the rest, as in captions."""
    groups = rng.choice((1, 1, 1, 2, 2, 3) if rng.random() < 0.5 else (1, 2))
    kinds, places = rng.sample(KINDS, groups), rng.sample(PLACES, groups)
    things = tuple(sample_thing(rng, kinds=(k,), place=p) for k, p in zip(kinds, places, strict=True))
    return Scene(
        setting=rng.choice(SETTINGS),
        season=rng.choice(SEASONS),
        time=rng.choice(("day", *TIMES)),
        weather=rng.choice(("clear", "clear", *WEATHERS)),
        style=rng.choice(("illustration",) * 4 + STYLES),
        things=ordered(things),
    )


def _require(name: str, value: str, values: tuple[str, ...]) -> None:
    if value not in values:
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(values)}")
