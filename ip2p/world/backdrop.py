"""Everything behind the things: sky, sun and moon, clouds, and the eight settings in four seasons.

A backdrop is a function of (setting, season, time, weather, layout seed); what an edit does not name stays where it was,
because every feature draws its place from its own seeded stream.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from PIL import Image

from ip2p.world.pen import RGB, Pen, mix

HORIZON = 0.56
_SKY: dict[str, tuple[RGB, RGB]] = {
    "day": ((74, 152, 226), (190, 226, 248)),
    "sunset": ((88, 58, 130), (255, 164, 92)),
    "night": ((8, 12, 40), (40, 54, 104)),
}
_GREY_SKY: dict[str, tuple[RGB, RGB]] = {
    "day": ((132, 148, 168), (198, 208, 216)),
    "sunset": ((98, 76, 104), (222, 158, 128)),
    "night": ((20, 24, 42), (52, 60, 84)),
}
_STORM_SKY: dict[str, tuple[RGB, RGB]] = {
    "day": ((58, 64, 84), (124, 132, 146)),
    "sunset": ((52, 36, 62), (158, 92, 84)),
    "night": ((8, 9, 20), (36, 38, 58)),
}
_GRASS: dict[str, RGB] = {
    "spring": (148, 208, 96),
    "summer": (62, 152, 64),
    "autumn": (204, 146, 52),
    "winter": (236, 242, 250),
}
_SAND: dict[str, RGB] = {
    "spring": (228, 218, 140),
    "summer": (250, 214, 130),
    "autumn": (212, 156, 88),
    "winter": (240, 242, 248),
}
_LEAF: dict[str, RGB] = {
    "spring": (250, 164, 196),
    "summer": (36, 118, 56),
    "autumn": (222, 98, 30),
    "winter": (214, 226, 238),
}
_TRUNK: RGB = (104, 72, 50)
_WATER: RGB = (44, 128, 196)


def draw_backdrop(pen: Pen, image: Image.Image, *, setting: str, season: str, time: str, weather: str, seed: str) -> None:
    """Paint sky, lights, clouds and setting over the whole (square) image."""
    _sky(image, time, weather)
    sky = pen.box(0.0, pen.s, pen.s)
    _lights(sky, time, weather, random.Random(f"{seed}/lights"))
    if weather != "fog":
        _clouds(sky, time, weather, random.Random(f"{seed}/clouds"))
    _SETTING[setting](sky, season, random.Random(f"{seed}/{setting}"))
    _ground_cover(sky, setting, season, random.Random(f"{seed}/cover"))


def _sky(image: Image.Image, time: str, weather: str) -> None:
    table = _SKY if weather == "clear" else _STORM_SKY if weather == "storm" else _GREY_SKY
    top, low = (np.array(c, dtype=np.float32) for c in table[time])
    size = image.width
    t = np.clip(np.arange(size, dtype=np.float32) / (HORIZON * size), 0, 1)[:, None]
    rows = (top + (low - top) * t).round().astype(np.uint8)
    image.paste(Image.fromarray(np.broadcast_to(rows[:, None, :], (size, size, 3)).copy()))


def _lights(p: Pen, time: str, weather: str, rng: random.Random) -> None:
    x, y = rng.uniform(0.12, 0.88), rng.uniform(0.84, 0.9)
    stars = [(rng.random(), rng.uniform(HORIZON, 1.0), rng.uniform(0.004, 0.009)) for _ in range(26)]
    p = Pen(p.draw, p.x, p.y, p.s)
    if weather in ("rain", "storm", "fog"):
        return
    if time == "day":
        p.oval(x, y, 0.085, 0.085, (255, 240, 170))
        p.oval(x, y, 0.068, 0.068, (255, 222, 70))
    elif time == "sunset":
        p.oval(x, 0.5, 0.15, 0.15, (255, 190, 100))
        p.oval(x, 0.5, 0.115, 0.115, (255, 224, 130))
    else:
        if weather == "clear":
            for sx, sy, r in stars:
                p.oval(sx, sy, r, r, (232, 236, 255))
        p.oval(x, y, 0.07, 0.07, (246, 242, 214))
        p.oval(x + 0.032, y + 0.02, 0.058, 0.058, mix(_SKY["night"][0], (20, 26, 60), 0.5))


def _clouds(p: Pen, time: str, weather: str, rng: random.Random) -> None:
    colour: RGB = {"day": (255, 255, 255), "sunset": (255, 196, 168), "night": (70, 80, 120)}[time]
    spots = [(rng.uniform(0.05, 0.95), rng.uniform(0.74, 0.92), rng.uniform(0.75, 1.15)) for _ in range(4)]
    count = 2
    if weather in ("rain", "snow"):
        colour, count = mix(colour, (116, 124, 142) if time != "night" else (40, 46, 66), 0.75), 4
    if weather == "storm":
        colour, count = ((46, 48, 62) if time != "night" else (26, 28, 42)), 4
    p = Pen(p.draw, p.x, p.y, p.s)
    for x, y, k in spots[:count]:
        for dx, dy, r in ((-0.1, 0.0, 0.045), (-0.04, 0.025, 0.06), (0.04, 0.02, 0.065), (0.11, 0.0, 0.045)):
            p.oval(x + dx * k, y + dy * k, r * k, r * k, colour)
        p.rect(x - 0.12 * k, y - 0.045 * k, x + 0.13 * k, y + 0.01 * k, colour, radius=0.025)
    if weather == "storm":
        x = spots[0][0] * 0.8 + 0.1
        bolt = [(0.02, 0.8), (-0.05, 0.68), (0.0, 0.68), (-0.045, 0.54), (0.065, 0.71), (0.015, 0.71), (0.06, 0.8)]
        p.poly([(x + bx, by) for bx, by in bolt], (255, 240, 120))


def _hills(p: Pen, colour: RGB, y: float, height: float, rng: random.Random, waves: float = 1.4) -> None:
    phase, k = rng.uniform(0, 6.28), rng.uniform(0.85, 1.15) * waves * 6.28
    xs = np.linspace(0, 1, 33)
    ys = y + height * 0.5 * (np.sin(xs * k + phase) + 1)
    p.poly([(0, 0), *((float(a), float(b)) for a, b in zip(xs, ys, strict=True)), (1, 0)], colour)


def _trees(p: Pen, season: str, spots: list[tuple[float, float, float]]) -> None:
    leaf = _LEAF[season]
    for x, y, s in spots:
        p.rect(x - 0.012 * s * 6, y, x + 0.012 * s * 6, y + s * 0.5, _TRUNK)
        p.oval(x, y + s * 0.62, s * 0.36, s * 0.4, mix(leaf, (0, 0, 0), 0.14))
        p.oval(x - s * 0.06, y + s * 0.7, s * 0.26, s * 0.28, leaf)


def _along(rng: random.Random, count: int, y: tuple[float, float], s: tuple[float, float]) -> list[tuple[float, float, float]]:
    return [((i + rng.uniform(0.25, 0.75)) / count, rng.uniform(*y), rng.uniform(*s)) for i in range(count)]


def _beach(p: Pen, season: str, rng: random.Random) -> None:
    p.rect(0, 0, 1, 0.48, _WATER)
    for i, x in enumerate((rng.uniform(0, 0.3), rng.uniform(0.35, 0.6), rng.uniform(0.65, 0.85))):
        p.rect(x, 0.42 - 0.035 * i, x + 0.16, 0.432 - 0.035 * i, (150, 205, 232))
    _hills(p, mix(_SAND[season], (255, 255, 255), 0.45), 0.275, 0.045, rng, 0.8)
    _hills(p, _SAND[season], 0.255, 0.045, rng, 0.8)
    side = rng.choice((0.06, 0.94))
    p.line([(side, 0.26), (side + 0.015, 0.44), (0.5 + (side - 0.5) * 0.86, 0.6)], _TRUNK, 0.026)
    top = (0.5 + (side - 0.5) * 0.86, 0.6)
    for dx, dy in ((-0.15, 0.0), (-0.1, 0.08), (0.1, 0.08), (0.15, 0.0), (0.0, 0.11)):
        p.poly([(top[0], top[1] + 0.025), (top[0] + dx, top[1] + dy - 0.02), (top[0], top[1] - 0.025)], _LEAF[season])


def _field(p: Pen, season: str, rng: random.Random) -> None:
    grass = _GRASS[season]
    _hills(p, mix(grass, (90, 120, 140), 0.35), 0.44, 0.1, rng, 0.9)
    _trees(p, season, _along(rng, 3, (0.46, 0.48), (0.1, 0.15)))
    _hills(p, grass, 0.34, 0.08, rng, 0.7)


def _desert(p: Pen, season: str, rng: random.Random) -> None:
    sand = _SAND[season]
    _hills(p, mix(sand, (180, 90, 60), 0.35), 0.42, 0.13, rng, 1.1)
    _hills(p, sand, 0.32, 0.09, rng, 0.8)
    for x, y, s in _along(rng, 2, (0.32, 0.36), (0.16, 0.24)):
        p.rect(x - 0.016, y, x + 0.016, y + s, (58, 132, 74), radius=0.016)
        p.rect(x - 0.065, y + s * 0.45, x - 0.04, y + s * 0.8, (58, 132, 74), radius=0.012)
        p.rect(x - 0.065, y + s * 0.42, x, y + s * 0.52, (58, 132, 74), radius=0.012)
        p.oval(x, y + s, 0.024, 0.02, _LEAF[season])


def _mountains(p: Pen, season: str, rng: random.Random) -> None:
    for x, h, w in ((rng.uniform(0.05, 0.2), 0.78, 0.3), (rng.uniform(0.75, 0.95), 0.74, 0.3), (rng.uniform(0.42, 0.58), 0.86, 0.34)):
        p.poly([(x - w, 0.36), (x, h), (x + w, 0.36)], (104, 108, 130))
        p.poly([(x, h), (x + w, 0.36), (x + w * 0.2, 0.36)], (82, 86, 108))
        cap = 0.42 if season == "winter" else 0.24
        p.poly(
            [(x - w * cap, h - (h - 0.36) * cap), (x, h), (x + w * cap, h - (h - 0.36) * cap), (x, h - (h - 0.36) * cap * 0.7)],
            (250, 250, 255),
        )
    _trees(p, season, _along(rng, 4, (0.33, 0.37), (0.1, 0.14)))
    _hills(p, _GRASS[season], 0.31, 0.06, rng, 0.7)


def _forest(p: Pen, season: str, rng: random.Random) -> None:
    p.rect(0, 0, 1, 0.46, mix(_GRASS[season], (40, 60, 40), 0.25))
    leaf = _LEAF[season]
    for row, (y, s, shade) in enumerate(((0.4, 0.4, 0.34), (0.34, 0.46, 0.08))):
        for i in range(5):
            x = (i + 0.5 * row + rng.uniform(0.1, 0.5)) / 5
            p.rect(x - 0.018, y - 0.04, x + 0.018, y + 0.16, _TRUNK)
            colour = mix(leaf, (24, 30, 40), shade)
            for lift, w in ((0.0, 0.15), (0.12, 0.12), (0.24, 0.085)):
                p.poly([(x - w, y + lift + 0.08), (x, y + lift + s * 0.55), (x + w, y + lift + 0.08)], colour)
    _hills(p, _GRASS[season], 0.27, 0.04, rng)


def _city(p: Pen, season: str, rng: random.Random) -> None:
    x = -0.02
    while x < 1:
        w, h = rng.uniform(0.13, 0.2), rng.uniform(0.56, 0.86)
        p.rect(x, 0.3, x + w - 0.01, h, rng.choice(((150, 112, 108), (124, 128, 150), (178, 148, 120), (104, 116, 140))))
        for i in range(2):
            for j in range(int((h - 0.4) / 0.09)):
                wx, wy = x + w * (0.16 + 0.4 * i), h - 0.075 - 0.09 * j
                p.lamp(wx, wy, wx + w * 0.26, wy + 0.045, by_day=(206, 222, 232))
        if season == "winter":
            p.rect(x - 0.004, h - 0.006, x + w - 0.006, h + 0.022, (248, 250, 255))
        x += w
    p.rect(0, 0.27, 1, 0.35, _GRASS[season])
    _trees(p, season, _along(rng, 4, (0.31, 0.33), (0.14, 0.19)))
    p.rect(0, 0, 1, 0.28, mix((112, 114, 124), _GRASS[season], 0.12))
    p.rect(0, 0.05, 1, 0.0, (112, 114, 124))
    for i in range(5):
        p.rect(0.02 + i * 0.21, 0.035, 0.13 + i * 0.21, 0.06, (240, 236, 200))


def _lake(p: Pen, season: str, rng: random.Random) -> None:
    _hills(p, mix(_GRASS[season], (70, 110, 130), 0.4), 0.46, 0.1, rng, 0.8)
    _trees(p, season, _along(rng, 5, (0.44, 0.47), (0.13, 0.19)))
    p.rect(0, 0, 1, 0.46, _GRASS[season])
    p.oval(0.5, 0.33, 0.62, 0.12, _WATER)
    for x, y in ((rng.uniform(0.1, 0.3), 0.38), (rng.uniform(0.5, 0.8), 0.35), (rng.uniform(0.2, 0.6), 0.3)):
        p.rect(x, y, x + 0.14, y + 0.012, (160, 212, 236))
    _hills(p, _GRASS[season], 0.22, 0.04, rng, 0.6)


def _farm(p: Pen, season: str, rng: random.Random) -> None:
    grass = _GRASS[season]
    _hills(p, mix(grass, (90, 120, 140), 0.3), 0.46, 0.06, rng, 0.8)
    x = rng.choice((0.16, 0.84)) + rng.uniform(-0.04, 0.04)
    p.rect(x - 0.13, 0.38, x + 0.13, 0.58, (158, 58, 50))
    p.poly([(x - 0.16, 0.57), (x - 0.09, 0.67), (x + 0.09, 0.67), (x + 0.16, 0.57)], (92, 62, 60))
    p.line([(x - 0.05, 0.39), (x + 0.05, 0.5)], (240, 230, 220), 0.014)
    p.line([(x + 0.05, 0.39), (x - 0.05, 0.5)], (240, 230, 220), 0.014)
    _trees(p, season, [(1 - x + rng.uniform(-0.08, 0.08), 0.44, 0.2)])
    p.rect(0, 0, 1, 0.44, grass)
    for i in range(9):
        foot, top = -0.4 + i * 0.225, 0.2 + i * 0.075
        p.poly([(foot, 0), (foot + 0.09, 0), (top + 0.012, 0.43), (top - 0.012, 0.43)], mix(grass, (112, 78, 46), 0.42))


_SETTING: dict[str, Callable[[Pen, str, random.Random], None]] = {
    "beach": _beach,
    "field": _field,
    "desert": _desert,
    "mountains": _mountains,
    "forest": _forest,
    "city": _city,
    "lake": _lake,
    "farm": _farm,
}


def _ground_cover(p: Pen, setting: str, season: str, rng: random.Random) -> None:
    """Blossoms in spring, fallen leaves in autumn, drifts in winter: a seasonal sign near the viewer in every setting."""
    spots = [(rng.random(), rng.uniform(0.015, 0.2)) for _ in range(12)]
    if season == "summer":
        return
    for i, (x, y) in enumerate(spots):
        if season == "spring":
            p.oval(x, y, 0.013, 0.011, ((250, 170, 205), (255, 250, 240))[i % 2])
        elif season == "autumn":
            p.oval(x, y, 0.02, 0.011, ((190, 78, 28), (150, 84, 36))[i % 2])
        elif i < 6:
            p.oval(x, y * 0.6, 0.11, 0.016, (255, 255, 255) if setting != "city" else (226, 232, 242))
