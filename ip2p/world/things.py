"""How each kind of thing looks: one function a kind, drawn in the unit box of a `Pen`.

Silhouettes are made to differ at 24 pixels; the thing's colour covers most of it, so that it can be read.
"""

from __future__ import annotations

from collections.abc import Callable

from ip2p.world.pen import RGB, Pen, mix

PAINT: dict[str, RGB] = {
    "red": (216, 40, 44),
    "orange": (246, 138, 30),
    "yellow": (250, 212, 48),
    "green": (40, 150, 70),
    "blue": (40, 92, 214),
    "purple": (138, 62, 176),
    "white": (244, 244, 246),
}
AIRBORNE = frozenset({"balloon"})
_INK: RGB = (40, 38, 48)
_WOOD: RGB = (120, 78, 46)
_STONE: RGB = (120, 122, 132)
_WHITE: RGB = (248, 248, 248)


def draw_thing(pen: Pen, kind: str, colour: str) -> None:
    """Draw one thing of this kind and colour, standing on the pen's ground line."""
    base = PAINT[colour]
    _DRAW[kind](pen, base, mix(base, (0, 0, 0), 0.3), mix(base, (255, 255, 255), 0.4))


def _house(p: Pen, c: RGB, dark: RGB, light: RGB) -> None:
    p.rect(0.2, 0.7, 0.32, 0.95, _STONE)
    p.rect(-0.4, 0, 0.4, 0.55, c)
    p.poly([(-0.5, 0.52), (0, 0.95), (0.5, 0.52)], mix(dark, (90, 50, 40), 0.55))
    p.rect(-0.08, 0, 0.1, 0.32, _WOOD)
    p.lamp(-0.32, 0.22, -0.15, 0.42)
    p.lamp(0.17, 0.22, 0.33, 0.42)


def _tree(p: Pen, c: RGB, dark: RGB, light: RGB) -> None:
    p.rect(-0.07, 0, 0.07, 0.45, _WOOD)
    for x, y, r in ((-0.2, 0.5, 0.22), (0.2, 0.5, 0.22), (0, 0.56, 0.26)):
        p.oval(x, y, r, r, dark)
    for x, y, r in ((-0.18, 0.58, 0.2), (0.18, 0.58, 0.2), (0, 0.74, 0.25)):
        p.oval(x, y, r, r, c)
    p.oval(-0.08, 0.8, 0.1, 0.08, light)


def _car(p: Pen, c: RGB, dark: RGB, light: RGB) -> None:
    p.poly([(-0.32, 0.3), (-0.2, 0.55), (0.16, 0.55), (0.32, 0.3)], dark)
    p.poly([(-0.24, 0.32), (-0.16, 0.5), (-0.02, 0.5), (-0.02, 0.32)], (200, 230, 245))
    p.poly([(0.03, 0.32), (0.03, 0.5), (0.13, 0.5), (0.24, 0.32)], (200, 230, 245))
    p.rect(-0.5, 0.1, 0.5, 0.34, c, radius=0.08)
    p.rect(-0.5, 0.22, 0.5, 0.26, light)
    _wheels(p, (-0.28, 0.28), 0.13)


def _bus(p: Pen, c: RGB, dark: RGB, light: RGB) -> None:
    p.rect(-0.5, 0.1, 0.5, 0.74, c, radius=0.07)
    p.rect(-0.5, 0.1, 0.5, 0.22, dark)
    for x in (-0.42, -0.19, 0.04, 0.27):
        p.lamp(x, 0.42, x + 0.17, 0.64)
    p.rect(-0.5, 0.3, 0.5, 0.35, light)
    _wheels(p, (-0.27, 0.27), 0.12)


def _wheels(p: Pen, xs: tuple[float, ...], r: float) -> None:
    for x in xs:
        p.oval(x, r, r, r, _INK)
        p.oval(x, r, r * 0.45, r * 0.45, (190, 190, 196))


def _boat(p: Pen, c: RGB, dark: RGB, light: RGB) -> None:
    p.oval(0, 0.06, 0.5, 0.08, (70, 150, 205))
    p.rect(-0.02, 0.25, 0.03, 0.98, _WOOD)
    p.poly([(0.05, 0.34), (0.05, 0.95), (0.42, 0.34)], c)
    p.poly([(-0.04, 0.34), (-0.04, 0.84), (-0.32, 0.34)], light)
    p.poly([(-0.46, 0.28), (0.46, 0.28), (0.3, 0.06), (-0.3, 0.06)], c)
    p.rect(-0.46, 0.24, 0.46, 0.29, dark)


def _balloon(p: Pen, c: RGB, dark: RGB, light: RGB) -> None:
    p.line([(-0.24, 0.42), (-0.09, 0.16)], _INK, 0.02)
    p.line([(0.24, 0.42), (0.09, 0.16)], _INK, 0.02)
    p.poly([(-0.31, 0.5), (0.31, 0.5), (0.1, 0.24), (-0.1, 0.24)], dark)
    p.oval(0, 0.64, 0.36, 0.36, c)
    p.oval(0, 0.64, 0.15, 0.36, light)
    p.rect(-0.11, 0, 0.11, 0.16, _WOOD, radius=0.02)


def _tent(p: Pen, c: RGB, dark: RGB, light: RGB) -> None:
    p.poly([(-0.5, 0), (0.0, 0.72), (0.5, 0)], c)
    p.poly([(0.5, 0), (0.0, 0.72), (0.18, 0)], light)
    p.poly([(-0.2, 0), (-0.02, 0.5), (0.1, 0)], _INK)
    p.line([(0, 0.7), (0, 0.86)], _WOOD, 0.035)
    p.poly([(0, 0.86), (0.16, 0.8), (0, 0.75)], dark)


def _cat(p: Pen, c: RGB, dark: RGB, light: RGB) -> None:
    p.line([(0.2, 0.1), (0.42, 0.12), (0.44, 0.4), (0.36, 0.5)], dark, 0.09)
    p.oval(0, 0.24, 0.27, 0.26, c)
    p.oval(0, 0.18, 0.13, 0.16, light)
    p.poly([(-0.27, 0.62), (-0.25, 0.96), (-0.04, 0.8)], dark)
    p.poly([(0.27, 0.62), (0.25, 0.96), (0.04, 0.8)], dark)
    p.oval(0, 0.62, 0.28, 0.23, c)
    for x in (-0.11, 0.11):
        p.oval(x, 0.65, 0.055, 0.065, _INK)
        p.oval(x, 0.66, 0.02, 0.03, _WHITE)
    p.poly([(-0.04, 0.56), (0.04, 0.56), (0, 0.51)], (236, 130, 140))


def _dog(p: Pen, c: RGB, dark: RGB, light: RGB) -> None:
    p.line([(-0.34, 0.44), (-0.48, 0.66)], dark, 0.08)
    for x in (-0.33, -0.18, 0.1, 0.22):
        p.rect(x, 0, x + 0.1, 0.3, dark)
    p.rect(-0.4, 0.24, 0.32, 0.5, c, radius=0.12)
    p.oval(0.28, 0.66, 0.19, 0.18, c)
    p.rect(0.3, 0.52, 0.52, 0.66, light, radius=0.06)
    p.oval(0.5, 0.64, 0.045, 0.04, _INK)
    p.oval(0.14, 0.6, 0.08, 0.18, dark)
    p.oval(0.32, 0.72, 0.035, 0.04, _INK)


def _duck(p: Pen, c: RGB, dark: RGB, light: RGB) -> None:
    p.poly([(-0.5, 0.46), (-0.2, 0.34), (-0.3, 0.16)], dark)
    p.oval(-0.04, 0.24, 0.38, 0.22, c)
    p.oval(-0.1, 0.27, 0.2, 0.11, dark)
    p.oval(0.22, 0.56, 0.2, 0.2, c)
    p.poly([(0.38, 0.6), (0.58, 0.52), (0.38, 0.46)], (246, 150, 30))
    p.oval(0.27, 0.62, 0.04, 0.045, _INK)


def _lighthouse(p: Pen, c: RGB, dark: RGB, light: RGB) -> None:
    p.oval(0, 0.03, 0.34, 0.07, _STONE)
    p.poly([(-0.21, 0.02), (-0.13, 0.78), (0.13, 0.78), (0.21, 0.02)], c)
    p.poly([(-0.185, 0.26), (-0.16, 0.44), (0.16, 0.44), (0.185, 0.26)], _WHITE)
    p.poly([(-0.146, 0.62), (-0.13, 0.78), (0.13, 0.78), (0.146, 0.62)], _WHITE)
    p.rect(-0.2, 0.76, 0.2, 0.81, _INK)
    p.lamp(-0.11, 0.81, 0.11, 0.95, by_day=(255, 240, 170))
    p.poly([(-0.17, 0.94), (0, 1.08), (0.17, 0.94)], c)


def _castle(p: Pen, c: RGB, dark: RGB, light: RGB) -> None:
    for x in (-0.42, 0.42):
        p.rect(x - 0.12, 0, x + 0.12, 0.66, dark)
        p.poly([(x - 0.16, 0.64), (x, 0.94), (x + 0.16, 0.64)], mix(c, _INK, 0.5))
    p.rect(-0.34, 0, 0.34, 0.46, c)
    for x in (-0.3, -0.12, 0.06, 0.24):
        p.rect(x - 0.02, 0.44, x + 0.08, 0.55, c)
    p.pie(0, 0.22, 0.12, 0.12, 180, 360, _INK)
    p.rect(-0.12, 0, 0.12, 0.22, _INK)
    p.lamp(-0.46, 0.36, -0.38, 0.5, by_day=_INK)
    p.lamp(0.38, 0.36, 0.46, 0.5, by_day=_INK)


def _rocket(p: Pen, c: RGB, dark: RGB, light: RGB) -> None:
    p.poly([(-0.08, 0.12), (0, -0.04), (0.08, 0.12)], (250, 170, 50))
    p.poly([(-0.14, 0.42), (-0.36, 0.06), (-0.12, 0.14)], dark)
    p.poly([(0.14, 0.42), (0.36, 0.06), (0.12, 0.14)], dark)
    p.oval(0, 0.46, 0.2, 0.38, c)
    p.rect(-0.13, 0.1, 0.13, 0.3, c)
    p.poly([(-0.17, 0.68), (0, 1.02), (0.17, 0.68)], dark)
    p.oval(0, 0.54, 0.1, 0.1, _WHITE)
    p.oval(0, 0.54, 0.065, 0.065, (110, 190, 230))


def _umbrella(p: Pen, c: RGB, dark: RGB, light: RGB) -> None:
    p.line([(0, 0), (0, 0.6)], _INK, 0.05)
    p.pie(0, 0.48, 0.5, 0.42, 180, 360, c)
    p.pie(0, 0.48, 0.3, 0.42, 180, 360, light)
    p.pie(0, 0.48, 0.12, 0.42, 180, 360, c)
    p.rect(-0.02, 0.88, 0.02, 0.96, _INK)


def _flower(p: Pen, c: RGB, dark: RGB, light: RGB) -> None:
    p.line([(0, 0), (0, 0.55)], (50, 130, 60), 0.06)
    p.oval(-0.15, 0.16, 0.15, 0.07, (60, 150, 70))
    p.oval(0.15, 0.22, 0.15, 0.07, (60, 150, 70))
    for x, y in ((0.0, 0.23), (0.22, 0.09), (0.15, -0.17), (-0.15, -0.17), (-0.22, 0.09)):
        p.oval(x, 0.66 + y, 0.15, 0.15, c)
    p.oval(0, 0.66, 0.13, 0.13, (250, 200, 60) if c != PAINT["yellow"] else (150, 90, 40))


def _mushroom(p: Pen, c: RGB, dark: RGB, light: RGB) -> None:
    p.rect(-0.13, 0, 0.13, 0.42, (240, 228, 206), radius=0.07)
    p.pie(0, 0.38, 0.44, 0.46, 180, 360, c)
    p.oval(0, 0.38, 0.44, 0.07, dark)
    dot = _WHITE if c != PAINT["white"] else (220, 120, 120)
    for x, y, r in ((-0.2, 0.54, 0.07), (0.04, 0.66, 0.08), (0.24, 0.52, 0.06)):
        p.oval(x, y, r, r, dot)


_DRAW: dict[str, Callable[[Pen, RGB, RGB, RGB], None]] = {
    "house": _house,
    "tree": _tree,
    "car": _car,
    "bus": _bus,
    "boat": _boat,
    "balloon": _balloon,
    "tent": _tent,
    "cat": _cat,
    "dog": _dog,
    "duck": _duck,
    "lighthouse": _lighthouse,
    "castle": _castle,
    "rocket": _rocket,
    "umbrella": _umbrella,
    "flower": _flower,
    "mushroom": _mushroom,
}
