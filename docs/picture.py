"""The README's picture: held-out edits of the shipped editor, the first of each edit type, not chosen by hand.

`python docs/picture.py` after `python docs/embedded.py`.
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ip2p.records import SHOWN
from ip2p.store import read_json

EVALUATION, OUT = Path("reports/embedded/shipped"), Path("docs/img/edits.png")
SIDE, GAP, TEXT, COLUMNS = 120, 4, 26, 2


def main() -> None:
    """Write the picture."""
    examples = read_json(EVALUATION / "examples.json")
    firsts = {e["edit_type"]: (i, e) for i, e in reversed(list(enumerate(examples)))}
    chosen = sorted(firsts.values(), key=lambda x: x[0])[:10]
    width, height = len(SHOWN) * (SIDE + GAP) + 3 * GAP, SIDE + TEXT
    sheet = Image.new("RGB", (COLUMNS * width, -(-len(chosen) // COLUMNS) * height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for place, (number, example) in enumerate(chosen):
        x, y = place % COLUMNS * width, place // COLUMNS * height
        draw.text((x, y + 4), example["instruction"], fill="black", font=font)
        for column, name in enumerate(SHOWN):
            image = Image.open(EVALUATION / "examples" / f"{number:02d}-{name}.png").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(image, (x + column * (SIDE + GAP), y + TEXT))
    OUT.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(OUT)


if __name__ == "__main__":
    main()
