"""Scene in, picture out: `render(scene, seed=…, size=…)` is a pure function, anti-aliased by drawing at twice the size.

Each feature draws its position from a stream named after itself and the seed, so an edited scene rendered with the same
seed keeps everything that the edit does not name: that picture is the *ground truth* of the edit.
"""

from __future__ import annotations

import random

from PIL import Image, ImageDraw

from ip2p.world.backdrop import draw_backdrop
from ip2p.world.pen import Pen
from ip2p.world.scenes import Scene, Thing, ordered
from ip2p.world.styles import apply_style, apply_weather
from ip2p.world.things import AIRBORNE, draw_thing

_OVERSAMPLE = 2
_LIGHT = {"day": (1.0, 1.0, 1.0), "sunset": (1.0, 0.82, 0.74), "night": (0.5, 0.55, 0.8)}
_THING_LIGHT = {"day": (1.0, 1.0, 1.0), "sunset": (1.0, 0.9, 0.84), "night": (0.72, 0.75, 0.9)}
_GLOOM = {"clear": 1.0, "rain": 0.9, "snow": 1.0, "fog": 1.0, "storm": 0.78}
_PLACE_X = {"left": 0.2, "middle": 0.5, "right": 0.8}
# Foot points and size of 1, 2 and 3 equal things, in units of the group's box.
_ARRANGEMENT: dict[int, tuple[tuple[tuple[float, float], ...], float]] = {
    1: (((0.0, 0.0),), 0.36),
    2: (((-0.085, 0.015), (0.085, -0.015)), 0.25),
    3: (((0.0, 0.125), (-0.09, -0.015), (0.09, -0.03)), 0.215),
}


def render(scene: Scene, *, seed: int, size: int = 96) -> Image.Image:
    """Draw the scene as a square RGB picture of `size` pixels (≥ 16); same scene and seed, same picture."""
    if size < 16:
        raise ValueError(f"size: {size} is too small to draw a scene, need at least 16")
    big = size * _OVERSAMPLE
    image = Image.new("RGB", (big, big))
    gloom = _GLOOM[scene.weather]
    r, g, b = _LIGHT[scene.time]
    pen = Pen(ImageDraw.Draw(image), 0, 0, big, light=(r * gloom, g * gloom, b * gloom), lit=scene.time == "night")
    layout = str(seed)
    draw_backdrop(pen, image, setting=scene.setting, season=scene.season, time=scene.time, weather=scene.weather, seed=layout)
    r, g, b = _THING_LIGHT[scene.time]
    for thing in ordered(scene.things):
        _draw_group(Pen(pen.draw, 0, 0, big, light=(r, g, b), lit=pen.lit), thing, big, layout)
    image = apply_weather(image, scene.weather, scene.time, layout)
    return apply_style(image.resize((size, size), Image.Resampling.BOX), scene.style)


def _draw_group(pen: Pen, thing: Thing, size: int, layout: str) -> None:
    """Draw the things of a group, back to front, with a soft shadow under those that stand on the ground."""
    rng = random.Random(f"{layout}/{thing.place}")
    x, y = _PLACE_X[thing.place] + rng.uniform(-0.025, 0.025), rng.uniform(0.08, 0.13)
    if thing.kind in AIRBORNE:
        y = rng.uniform(0.54, 0.6)
    feet, scale = _ARRANGEMENT[thing.count]
    for dx, dy in feet:
        box = pen.box((x + dx) * size, (1 - y - dy) * size, scale * size)
        if thing.kind not in AIRBORNE:
            _shadow(box)
        draw_thing(box, thing.kind, thing.colour)


def _shadow(pen: Pen) -> None:
    pen.draw.ellipse(
        [pen.x - 0.42 * pen.s, pen.y - 0.05 * pen.s, pen.x + 0.42 * pen.s, pen.y + 0.06 * pen.s],
        fill=pen.tint((70, 74, 70)),
    )
