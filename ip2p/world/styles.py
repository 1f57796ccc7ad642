"""Drawing styles and weather in the air: what happens to a picture after its shapes are drawn.

Pictures are uint8 arrays `image_HW3` in RGB. Nothing here draws more noise than it needs: paper grain and halftone dots
are soft, because an autoencoder spends its capacity on whatever varies.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Picture = npt.NDArray[np.uint8]
Plane = npt.NDArray[np.float32]


def apply_weather(image: Image.Image, weather: str, time: str, seed: str) -> Image.Image:
    """Rain, snow or fog over the finished scene; clear and storm leave the air as it is."""
    rng, size = random.Random(f"{seed}/air"), image.width
    draw = ImageDraw.Draw(image)
    if weather == "rain":
        for _ in range(46):
            x, y, k = rng.random() * 1.1, rng.random(), rng.uniform(0.07, 0.11)
            draw.line([(x * size, y * size), ((x - k * 0.3) * size, (y + k) * size)], fill=(206, 220, 236), width=max(1, size // 150))
    elif weather == "snow":
        for _ in range(56):
            x, y, r = rng.random() * size, rng.random() * size, rng.uniform(0.008, 0.016) * size
            draw.ellipse([x - r, y - r, x + r, y + r], fill=(255, 255, 255))
    elif weather == "fog":
        colour = {"day": (226, 230, 234), "sunset": (236, 206, 190), "night": (74, 82, 104)}[time]
        return Image.composite(Image.new("RGB", image.size, colour), image, _fog_mask(size))
    return image


def apply_style(image: Image.Image, style: str) -> Image.Image:
    """Redraw a finished illustration in a style; any size."""
    return image if style == "illustration" else _STYLE[style](image)


@lru_cache(maxsize=8)
def _fog_mask(size: int) -> Image.Image:
    y = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    mask = 0.42 + 0.34 * np.exp(-(((y - 0.42) / 0.2) ** 2))
    return Image.fromarray(np.broadcast_to((mask * 255).astype(np.uint8), (size, size)).copy())


def _edges(image: Image.Image, blur: float) -> Plane:
    """Edge strength, 0..1, summed over colour channels so that equally bright neighbours part too."""
    x = np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32) / 255
    gx = np.abs(np.roll(x, -1, 1) - np.roll(x, 1, 1)).sum(2)
    gy = np.abs(np.roll(x, -1, 0) - np.roll(x, 1, 0)).sum(2)
    gx[:, [0, -1]] = 0
    gy[[0, -1]] = 0
    strength: Plane = np.sqrt(gx * gx + gy * gy).astype(np.float32)
    return strength


def _grey(image: Image.Image) -> Plane:
    grey: Plane = (np.asarray(image.convert("L"), dtype=np.float32) / 255).astype(np.float32)
    return grey


def _picture(x: npt.NDArray[np.floating]) -> Image.Image:
    return Image.fromarray((np.clip(x, 0, 1) * 255).round().astype(np.uint8))


def _sketch(image: Image.Image) -> Image.Image:
    ink = np.clip(_edges(image, image.width / 260) * 0.9 - 0.06, 0, 0.66)
    shade = 0.5 + 0.48 * _grey(image)
    tone = np.clip(shade - ink, 0, 1)[..., None]
    return _picture(tone * np.array([1.0, 0.995, 0.975], dtype=np.float32))


def _watercolour(image: Image.Image) -> Image.Image:
    size = image.width
    soft = np.asarray(image.filter(ImageFilter.ModeFilter(5)).filter(ImageFilter.GaussianBlur(size / 110)), dtype=np.float32) / 255
    washed = 1 - (1 - soft) * 0.62
    rim = np.clip(_edges(image, size / 90) - 0.15, 0, 0.35)[..., None] * 0.45
    paper = np.array([0.99, 0.975, 0.94], dtype=np.float32)
    return _picture(paper * (1 - _vignette(size)) + np.clip(washed - rim, 0, 1) * _vignette(size))


@lru_cache(maxsize=8)
def _vignette(size: int) -> Plane:
    """1 inside, 0 at a soft wavy margin: the unpainted rim of a watercolour."""
    t = np.linspace(0, 1, size, dtype=np.float32)
    wave = 0.012 * np.sin(t * 21) + 0.01 * np.sin(t * 37 + 1)
    edge_x = np.minimum(t[None, :] + wave[:, None], 1 - t[None, :] + wave[:, None])
    edge_y = np.minimum(t[:, None] + wave[None, :], 1 - t[:, None] + wave[None, :])
    mask: Plane = np.clip((np.minimum(edge_x, edge_y) - 0.03) / 0.04, 0, 1)[..., None].astype(np.float32)
    return mask


def _sepia(image: Image.Image) -> Image.Image:
    t = np.linspace(-1, 1, image.width, dtype=np.float32)
    falloff = 1 - 0.28 * np.clip(t[:, None] ** 2 + t[None, :] ** 2, 0, 2) / 1.4
    tone = (0.12 + 0.86 * _grey(image)) * falloff
    return _picture(tone[..., None] * np.array([1.0, 0.84, 0.62], dtype=np.float32))


def _pixels(image: Image.Image) -> Image.Image:
    small = image.resize((32, 32), Image.Resampling.BOX)
    x = np.asarray(small, dtype=np.float32)
    x = np.clip((x - 128) * 1.12 + 128, 0, 255)
    flat = Image.fromarray((np.round(x / 28) * 28).clip(0, 255).astype(np.uint8))
    return flat.resize(image.size, Image.Resampling.NEAREST)


def _neon(image: Image.Image) -> Image.Image:
    size = image.width
    x = np.asarray(image.filter(ImageFilter.GaussianBlur(size / 200)), dtype=np.float32) / 255
    top, low = x.max(2, keepdims=True), x.min(2, keepdims=True)
    vivid = 0.25 + 0.75 * (x - low) / np.maximum(top - low, 0.12)
    vivid[(top - low)[..., 0] < 0.08] = (0.75, 0.85, 1.0)
    glow = np.clip(_edges(image, size / 150) * 2.2 - 0.08, 0, 1)[..., None]
    lit = vivid * glow
    halo = np.asarray(_picture(lit).filter(ImageFilter.GaussianBlur(size / 40)), dtype=np.float32) / 255
    return _picture(np.array([0.05, 0.02, 0.12], dtype=np.float32) + 0.26 * x + lit * 0.9 + halo * 0.7)


def _pop(image: Image.Image) -> Image.Image:
    x = np.asarray(image.filter(ImageFilter.ModeFilter(3)), dtype=np.float32) / 255
    grey = x.mean(2, keepdims=True)
    bold = np.clip(grey + (x - grey) * 2.1, 0, 1)
    bold = np.round(bold * 3) / 3
    ink = np.clip(_edges(image, image.width / 240) * 2.4 - 0.25, 0, 1)[..., None]
    return _picture(bold * (1 - ink))


def _blueprint(image: Image.Image) -> Image.Image:
    line = np.clip(_edges(image, image.width / 260) * 1.0 - 0.06, 0, 0.85)[..., None]
    size = image.width
    grid = np.zeros((size, size, 1), dtype=np.float32)
    step = max(2, size // 6)
    width = max(1, size // 96)
    for k in range(step // 2, size, step):
        grid[k : k + width] = 0.12
        grid[:, k : k + width] = 0.12
    base = np.array([0.08, 0.26, 0.58], dtype=np.float32) * (0.45 + 0.95 * _grey(image)[..., None])
    ink = np.maximum(line, grid)
    return _picture(base * (1 - ink) + np.array([0.9, 0.95, 1.0], dtype=np.float32) * ink)


_STYLE: dict[str, Callable[[Image.Image], Image.Image]] = {
    "pencil sketch": _sketch,
    "watercolour": _watercolour,
    "sepia photograph": _sepia,
    "pixel art": _pixels,
    "neon": _neon,
    "pop art": _pop,
    "blueprint": _blueprint,
}
