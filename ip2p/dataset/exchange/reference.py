"""InstructPix2Pix's own layout, as its authors give their data out: a folder an edit, JPEGs named by seed, `seeds.json` over all.

`prompt.json` spells the caption both ways; ours also holds split, edit type and the triplet, so that splits stay by triplet.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ip2p.dataset.exchange.example import Example, from_row, picture_file, read_file, safe_name
from ip2p.errors import DataError
from ip2p.pictures import to_jpeg


def write(examples: Iterable[Example], out: Path) -> int:
    """Write examples; those of one triplet by one instruction share a folder. Returns their number."""
    out.mkdir(parents=True)
    folders: dict[tuple[str, ...], str] = {}
    seeds: dict[str, dict[int, None]] = {}
    count = 0
    for e in examples:
        edit = (e.triplet_id, e.original_prompt, e.edit_prompt, e.edited_prompt)
        name = folders.setdefault(edit, f"{len(folders):07d}")
        folder = out / name
        if name not in seeds:
            folder.mkdir()
            prompt = {"caption": e.original_prompt, "input": e.original_prompt, "edit": e.edit_prompt, "output": e.edited_prompt}
            own = {"edit_type": e.edit_type, "split": e.split, "triplet_id": e.triplet_id}
            (folder / "prompt.json").write_text(json.dumps(prompt | own, ensure_ascii=False), encoding="utf-8")
        own_seeds = seeds.setdefault(name, {})
        seed = next(s for s in itertools.count(e.seed) if s not in own_seeds)  # pairs that came without seeds all have 0
        own_seeds[seed] = None
        for n, image in enumerate((e.original_image, e.edited_image)):
            (folder / f"{seed}_{n}.jpg").write_bytes(to_jpeg(image, where=e.pair_id))
        with (folder / "metadata.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"seed": seed, "pair_id": e.pair_id}) + "\n")
        count += 1
    listed = [(name, [str(s) for s in own_seeds]) for name, own_seeds in sorted(seeds.items())]
    (out / "seeds.json").write_text(json.dumps(listed), encoding="utf-8")
    return count


def read(path: Path) -> Iterator[Example]:
    """Examples in the order of `seeds.json`. Raises `DataError` naming the first bad file."""
    try:
        listed = json.loads(read_file(path / "seeds.json", path))
        entries = [(str(name), [str(s) for s in seeds]) for name, seeds in listed]
    except (json.JSONDecodeError, ValueError, TypeError) as error:
        raise DataError(f"{path / 'seeds.json'}: not a list of [name, [seed, …]]") from error
    for name, seeds in entries:
        folder = path / safe_name(name, str(path / "seeds.json"))
        prompt = _prompt(folder / "prompt.json", path)
        for seed in seeds:
            if not seed.isdecimal():
                raise DataError(f"{path / 'seeds.json'}: {seed!r} of {name} is no seed")
            images = {f"{n}_image": picture_file(folder / f"{seed}_{i}.jpg", path) for i, n in enumerate(("original", "edited"))}
            yield from_row(prompt | images | {"seed": seed}, str(folder / "prompt.json"))


def _prompt(path: Path, root: Path) -> dict[str, Any]:
    try:
        row = json.loads(read_file(path, root))
        texts = {"original_prompt": row.get("caption", row.get("input")), "edit_prompt": row["edit"], "edited_prompt": row.get("output")}
    except (ValueError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not a prompt; it needs caption (or input), edit and output") from error
    return texts | {k: row.get(k) for k in ("edit_type", "split", "triplet_id")}
