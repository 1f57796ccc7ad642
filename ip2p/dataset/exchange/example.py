"""One example on its way in or out, and what every layout checks of what it reads."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ip2p.errors import DataError
from ip2p.records import SPLITS, UNKNOWN, triplet_of
from ip2p.store import fingerprint, read_shard, shards

MAX_BYTES = 64 * 2**20
"""Largest picture or text file that is read from outside."""
_LONGEST_TYPE = 128
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_TEXTS = ("original_prompt", "edit_prompt", "edited_prompt")
_NAMES = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}
"""What the Hub calls splits."""
FACTS = (*_TEXTS, "edit_type", "triplet_id", "pair_id", "split", "seed")
"""All of an example but its pictures."""


@dataclass(frozen=True, slots=True)
class Example:
    """An image pair with its texts; images as encoded files. `triplet_id` keeps a triplet in one split. People's edits lack captions.

    `mask` is transparent where the edit belongs; few layouts have one, and only evaluation looks at it.
    """

    original_prompt: str
    original_image: bytes
    edit_prompt: str
    edited_prompt: str
    edited_image: bytes
    edit_type: str = UNKNOWN
    triplet_id: str = ""
    pair_id: str = ""
    split: str = "train"
    seed: int = 0
    mask: bytes | None = None
    where: str = field(default="", compare=False)
    """Where it was read, for messages."""

    def identified(self, of_picture: dict[str, str] | None = None) -> Example:
        """The example with ids by content where it came without: all edits of a caption, or without captions of a picture, are
        one triplet's and so lie in one split. `of_picture` keeps the triplet of each picture: another caption of it is the same triplet's.
        """
        pictures = [hashlib.sha256(x).hexdigest() for x in (self.original_image, self.edited_image)]
        triplet = self.triplet_id or triplet_of(self.original_prompt or pictures[0])
        pair = self.pair_id or fingerprint("pair", triplet, self.edit_prompt, self.seed, pictures)
        if of_picture is not None and not self.triplet_id:
            triplet = of_picture.setdefault(pictures[0], triplet)
        return replace(self, triplet_id=triplet, pair_id=pair)

    @property
    def content(self) -> tuple[object, ...]:
        """All that a shard keeps of it, pictures by their digests: what tells whether it is the same as before."""
        pictures = (hashlib.sha256(x).hexdigest() for x in (self.original_image, self.edited_image))
        return (*(getattr(self, name) for name in FACTS), *pictures)


def read_dataset(folder: Path, *, splits: Sequence[str] = SPLITS) -> Iterator[Example]:
    """Examples of our own dataset folder, split by split, one shard in memory at a time."""
    for split in splits:
        if any(folder.glob(f"{split}-*.parquet")):
            for path in shards(folder, f"{split}-"):
                yield from (from_row(row, str(path)) for row in read_shard(path).to_pylist())


def from_row(row: dict[str, Any], where: str) -> Example:
    """An example of a row with the reference's columns; captions may be absent. Raises `DataError` naming what is missing."""
    texts = {n: "" if row.get(n) is None and n != "edit_prompt" else row.get(n) for n in _TEXTS}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise DataError(f"{where}: no text in `{name}`; an example needs {', '.join(_TEXTS)} and both images")
        _require_whole(text, name, where)
    images: dict[str, bytes] = {}
    for name in ("original_image", "edited_image"):
        data = picture_in(row.get(name))
        if data is None:
            if name not in row or _held(row[name]):
                raise DataError(f"{where}: no picture of at most {MAX_BYTES // 2**20} MiB in `{name}`")
            data = b""  # broken like any other that cannot be decoded
        images[name] = data
    for name in ("pair_id", "triplet_id"):
        if row.get(name) is not None and not _ID.fullmatch(str(row[name])):
            raise DataError(f"{where}: {name} {str(row[name])[:40]!r} is refused; letters, digits, - and _ only, at most 128")
    if row.get("split") not in (None, *SPLITS):
        raise DataError(f"{where}: split {row['split']!r} is none of {', '.join(SPLITS)}")
    if row.get("edit_type") is not None:
        _require_whole(kind := str(row["edit_type"]), "edit_type", where)
        if len(kind) > _LONGEST_TYPE:
            raise DataError(f"{where}: edit_type {kind[:40]!r}… has {len(kind)} characters; give at most {_LONGEST_TYPE}")
    known: dict[str, Any] = {n: str(row[n]) for n in ("edit_type", "triplet_id", "pair_id", "split") if row.get(n) is not None}
    try:
        seed = int(row.get("seed") or 0)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: seed {str(row['seed'])[:40]!r} is no whole number") from error
    if not -(2**63) <= seed < 2**63:
        raise DataError(f"{where}: seed {str(seed)[:40]} is out of range, give one below 2^63")
    return Example(**known | texts | images, seed=seed, where=where)


def _require_whole(text: str, name: str, where: str) -> None:
    if half := next((c for c in text if "\ud800" <= c <= "\udfff"), None):
        raise DataError(f"{where}: `{name}` holds half a character (U+{ord(half):X})")


def picture_in(cell: object) -> bytes | None:
    """The encoded picture of a cell, which is bytes or a struct that holds them; none if that is no file of at most `MAX_BYTES`."""
    data = _held(cell)
    return data if isinstance(data, bytes) and 0 < len(data) <= MAX_BYTES else None


def _held(cell: object) -> object:
    return cell.get("bytes") if isinstance(cell, dict) else cell


def split_named(file: Path) -> str | None:
    """The split that a word of a file's name tells, or else its folder's name within the dataset, as on the Hugging Face Hub."""
    words = [*re.split(r"[^a-z]+", file.name.lower()), file.parent.name.lower()]
    return next((split for word in words for split, names in _NAMES.items() if word in names), None)


def for_testing(named: Mapping[Path, str | None], path: Path) -> list[Path]:
    """Of files, or folders, with the splits that their names tell: those for testing, else for validation, else those that tell nothing.

    Raises `DataError` if all are for training.
    """
    for split in ("test", "validation", None):
        if some := [file for file, own in named.items() if own == split]:
            return some
    raise DataError(f"{path}: is all for training; an editor is not measured on that")


def parquet_rows(path: Path, *, held_out: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of every Parquet file below a folder, and where each stands; a few in memory at a time.

    A row without a split has that of its file's name, if the name tells one. With `held_out` only what is for testing is read.
    Raises `DataError` if there is none.
    """
    named = {file: split_named(file.relative_to(path)) for file in sorted(path.rglob("*.parquet"))}
    if not named:
        raise DataError(f"{path}: no Parquet files; give the folder of a dataset")
    for file in for_testing(named, path) if held_out else named:
        number = 0
        try:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=64):
                for cells in batch.to_pylist():
                    number += 1
                    row = cells | {"split": cells.get("split") or named[file]}
                    if not (held_out and row["split"] == "train"):
                        yield f"{file}: row {number}", row
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{file}: cannot be read as Parquet ({error})") from error


def by_split(examples: Iterable[Example], rows: int) -> Iterator[tuple[str, list[Example]]]:
    """Examples gathered by split, `rows` at a time; the rest at the end."""
    held: dict[str, list[Example]] = {}
    for example in examples:
        some = held.setdefault(example.split, [])
        some.append(example)
        if len(some) == rows:
            yield example.split, held.pop(example.split)
    yield from held.items()


def safe_name(name: str, where: str) -> PurePosixPath:
    """A member's path. Raises `DataError` if it is absolute or climbs out."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name or "\x00" in name:
        raise DataError(f"{where}: the name {name!r} leaves its folder; the archive is refused")
    return path


def read_object(path: Path, root: Path) -> dict[str, Any]:
    """The JSON object that a file below `root` holds. Raises `DataError` if it is none."""
    try:
        found = json.loads(read_file(path, root))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: not a JSON object")
    return found


def _is_missing(path: Path) -> bool:
    return not path.exists() and not path.is_symlink()


def picture_file(path: Path, root: Path) -> bytes:
    """A picture's file as `read_file`; nothing of one that is missing, which counts as broken: it costs no import."""
    return b"" if _is_missing(path) else read_file(path, root)


def read_file(path: Path, root: Path) -> bytes:
    """A regular file below `root`, bounded. Raises `DataError` for links, devices, and files that are too large."""
    if _is_missing(path):
        raise DataError(f"{path}: missing; bring it, or take out what names it")
    if path.is_symlink() or not path.is_file() or not path.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{path}: not a regular file inside {root}")
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path}: larger than {MAX_BYTES // 2**20} MiB")
    return path.read_bytes()
