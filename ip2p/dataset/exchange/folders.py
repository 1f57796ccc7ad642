"""Plain folders: `{split}/{pair}_0.png`, `{split}/{pair}_1.png`, and all texts in `metadata.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from ip2p.dataset.exchange.example import Example, from_row, read_file, safe_name
from ip2p.errors import DataError
from ip2p.records import SPLITS

_TEXTS = ("original_prompt", "edit_prompt", "edited_prompt", "edit_type", "triplet_id", "pair_id", "split", "seed")


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
            row = {n: getattr(e, n) for n in _TEXTS} | {"original_image": names[0], "edited_image": names[1]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def read(path: Path) -> Iterator[Example]:
    """Examples in the order of `metadata.jsonl`. Raises `DataError` naming line or file."""
    index = path / "metadata.jsonl"
    if not index.is_file():
        raise DataError(f"{index}: missing; each line names original_image, edited_image and the texts")
    with index.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            where = f"{index}:{number}"
            try:
                row = json.loads(line)
                names = [safe_name(str(row[n]), where) for n in ("original_image", "edited_image")]
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise DataError(f"{where}: not a row with original_image and edited_image") from error
            first, second = ({"bytes": read_file(path / n, path)} for n in names)
            row = {n: row.get(n) for n in _TEXTS} | {"original_image": first, "edited_image": second}
            if row["split"] not in (None, *SPLITS):
                raise DataError(f"{where}: split {row['split']!r} is none of {', '.join(SPLITS)}")
            yield from_row(row, where)
