"""Sheets of pictures with words to them, for people who look: panels of a title and pictures side by side, in rows."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_GAP, _APART, _LINE, _SIZE = 4, 16, 20, 13

Panel = tuple[str, Sequence[Image.Image]]
"""A title, and pictures of one size."""


def sheet(rows: Sequence[Sequence[Panel]], *, heads: Sequence[str] = ()) -> Image.Image:
    """Rows of panels, all of as many pictures; `heads` name the pictures of a panel, once over each column of panels."""
    font = ImageFont.load_default(_SIZE)
    side_x, side_y = rows[0][0][1][0].size
    width = len(rows[0][0][1]) * (side_x + _GAP) - _GAP
    top, height = (_LINE if heads else 0), _LINE + side_y
    columns = max(map(len, rows))
    page = Image.new("RGB", (columns * (width + _APART) + _APART, top + len(rows) * (height + _GAP) + _APART), "white")
    draw = ImageDraw.Draw(page)
    for column in range(columns):
        for number, head in enumerate(heads):
            draw.text((_APART + column * (width + _APART) + number * (side_x + _GAP), 4), head, fill="#868e96", font=font)
    for y, row in enumerate(rows):
        for x, (title, images) in enumerate(row):
            left, upper = _APART + x * (width + _APART), top + y * (height + _GAP)
            draw.text((left, upper + 3), _fitting(title, width, font), fill="black", font=font)
            for number, image in enumerate(images):
                page.paste(image, (left + number * (side_x + _GAP), upper + _LINE))
    return page


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, cut where it would be wider."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"
