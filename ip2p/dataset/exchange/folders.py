"""Plain folders: `{split}/{pair}_0.png`, `{split}/{pair}_1.png`, and all texts in `metadata.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from ip2p.dataset.captions import read_jsonl
from ip2p.dataset.exchange.example import FACTS, Example, from_row, picture_file, safe_name
from ip2p.errors import DataError

_LINE = '{"original_image": "a_0.png", "edited_image": "a_1.png", "original_prompt": "…", "edit_prompt": "…", "edited_prompt": "…"}'


def write(examples: Iterable[Example], out: Path) -> int:
    """Write examples; returns their number."""
    out.mkdir(parents=True)
    count = 0
    with (out / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for e in examples:
            (out / e.split).mkdir(exist_ok=True)
            names = [f"{e.split}/{e.pair_id}_{n}.png" for n in (0, 1)]
            for name, data in zip(names, (e.original_image, e.edited_image), strict=True):
                (out / name).write_bytes(data)
            row = {n: getattr(e, n) for n in FACTS} | {"original_image": names[0], "edited_image": names[1]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def read(path: Path) -> Iterator[Example]:
    """Examples in the order of `metadata.jsonl`. Raises `DataError` naming line or file."""
    index = path / "metadata.jsonl"
    for number, row in read_jsonl(index, _LINE):
        where = f"{index}:{number}"
        if not all(isinstance(row.get(n), str) for n in ("original_image", "edited_image")):
            raise DataError(f"{where}: not a row with original_image and edited_image; write {_LINE}")
        first, second = (picture_file(path / safe_name(row[n], where), path) for n in ("original_image", "edited_image"))
        yield from_row({n: row.get(n) for n in FACTS} | {"original_image": first, "edited_image": second}, where)
