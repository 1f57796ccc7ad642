"""A pen for the renderer: unit coordinates in, supersampled Pillow drawing out, every colour seen in the scene's light.

A thing is drawn in its own box: x from -0.5 to 0.5, y from 0 (ground) to 1 (top). `Pen.box` says where that box lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import ImageDraw

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Pen:
    """Draws in a box whose foot is at (`x`, `y`) pixels and whose side is `s` pixels; `light` multiplies each channel."""

    draw: ImageDraw.ImageDraw
    x: float
    y: float
    s: float
    light: tuple[float, float, float] = (1.0, 1.0, 1.0)
    lit: bool = False

    def box(self, x: float, y: float, s: float) -> Pen:
        """The same pen over another box."""
        return replace(self, x=x, y=y, s=s)

    def tint(self, colour: RGB) -> RGB:
        """The colour as this scene's light shows it."""
        r, g, b = (min(255, round(c * k)) for c, k in zip(colour, self.light, strict=True))
        return r, g, b

    def poly(self, points: Sequence[tuple[float, float]], colour: RGB) -> None:
        """A filled polygon."""
        self.draw.polygon([self._at(p) for p in points], fill=self.tint(colour))

    def rect(self, x0: float, y0: float, x1: float, y1: float, colour: RGB, *, radius: float = 0.0) -> None:
        """A filled rectangle, `radius` in units of the box."""
        box = self._span(x0, y0, x1, y1)
        self.draw.rounded_rectangle(box, radius=radius * self.s, fill=self.tint(colour))

    def oval(self, x: float, y: float, rx: float, ry: float, colour: RGB) -> None:
        """A filled ellipse around (x, y)."""
        self.draw.ellipse(self._span(x - rx, y - ry, x + rx, y + ry), fill=self.tint(colour))

    def pie(self, x: float, y: float, rx: float, ry: float, start: float, end: float, colour: RGB) -> None:
        """A filled slice of an ellipse; degrees clockwise from three o'clock."""
        self.draw.pieslice(self._span(x - rx, y - ry, x + rx, y + ry), start, end, fill=self.tint(colour))

    def line(self, points: Sequence[tuple[float, float]], colour: RGB, width: float) -> None:
        """A stroke, `width` in units of the box."""
        self.draw.line([self._at(p) for p in points], fill=self.tint(colour), width=max(1, round(width * self.s)), joint="curve")

    def lamp(self, x0: float, y0: float, x1: float, y1: float, *, by_day: RGB = (190, 225, 245)) -> None:
        """A window: glass by day, lit at night whatever the light outside."""
        if self.lit:
            self.draw.rectangle(self._span(x0, y0, x1, y1), fill=(255, 224, 120))
        else:
            self.rect(x0, y0, x1, y1, by_day)

    def _at(self, p: tuple[float, float]) -> tuple[float, float]:
        return self.x + p[0] * self.s, self.y - p[1] * self.s

    def _span(self, x0: float, y0: float, x1: float, y1: float) -> tuple[float, float, float, float]:
        left, top = self._at((x0, y1))
        right, bottom = self._at((x1, y0))
        return left, top, max(left, right), max(top, bottom)


def mix(a: RGB, b: RGB, t: float) -> RGB:
    """Colour between `a` (t=0) and `b` (t=1)."""
    r, g, b_ = (round(p + (q - p) * t) for p, q in zip(a, b, strict=True))
    return r, g, b_
