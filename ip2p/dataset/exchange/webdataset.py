"""WebDataset layout: tar files of `{pair}.0.png`, `{pair}.1.png` and `{pair}.json`, read and written as a stream.

Nothing is unpacked to disk. A tar with links, devices, names that climb out, or members that are too large is refused.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from ip2p.dataset.exchange.example import FACTS, MAX_BYTES, Example, from_row, safe_name, split_named
from ip2p.errors import DataError

_ROWS = 1000


def write(examples: Iterable[Example], out: Path) -> int:
    """Write `{split}-NNNNN.tar`, at most 1,000 examples each; returns the number of examples."""
    out.mkdir(parents=True)
    counts: dict[str, int] = {}
    tars: dict[str, tarfile.TarFile] = {}
    try:
        for e in examples:
            number = counts.get(e.split, 0)
            counts[e.split] = number + 1
            if number % _ROWS == 0:
                if e.split in tars:
                    tars[e.split].close()
                tars[e.split] = tarfile.open(out / f"{e.split}-{number // _ROWS:05d}.tar", "w")  # noqa: SIM115
            facts = json.dumps({n: getattr(e, n) for n in FACTS}, ensure_ascii=False).encode()
            for ending, data in (("0.png", e.original_image), ("1.png", e.edited_image), ("json", facts)):
                member = tarfile.TarInfo(f"{e.pair_id}.{ending}")
                member.size = len(data)
                tars[e.split].addfile(member, io.BytesIO(data))
    finally:
        for tar in tars.values():
            tar.close()
    return sum(counts.values())


def read(path: Path) -> Iterator[Example]:
    """Examples of every tar below `path`. Raises `DataError` naming what is refused."""
    files = sorted(path.rglob("*.tar"))
    if not files:
        raise DataError(f"{path}: no tar files; give the folder of a WebDataset")
    for file in files:
        try:
            yield from _examples(file, split_named(file.relative_to(path)))
        except (tarfile.TarError, EOFError) as error:
            raise DataError(f"{file}: cannot be read as tar ({error})") from error


def _examples(file: Path, split: str | None) -> Iterator[Example]:
    parts: dict[str, dict[str, bytes]] = {}
    with tarfile.open(file, "r:") as tar:
        for member in tar:
            name = safe_name(member.name, str(file))
            if member.isdir() or name.name.startswith("."):  # such as macOS adds
                continue
            if not member.isreg() or member.issparse() or member.size > MAX_BYTES:
                raise DataError(f"{file}: {member.name!r} is no regular file of at most {MAX_BYTES // 2**20} MiB; the archive is refused")
            stem, _, ending = name.name.partition(".")
            key, stream = str(name.with_name(stem)), tar.extractfile(member)
            parts.setdefault(key, {})[ending] = stream.read() if stream else b""
            if len(parts[key]) == 3:
                yield _example(parts.pop(key), f"{file}: {key}", split)
            if len(parts) > _ROWS or sum(len(x) for held in parts.values() for x in held.values()) > 4 * MAX_BYTES:
                raise DataError(f"{file}: {len(parts)} incomplete examples; members of one example must lie side by side")
        _require_end(file, tar.offset)
    if parts:
        raise DataError(f"{file}: {next(iter(parts))} is incomplete; an example is KEY.0.png, KEY.1.png and KEY.json")


def _require_end(file: Path, offset: int) -> None:
    """Raise `DataError` unless an archive ends where its reader stopped: at a header that is broken, reading ends without a word."""
    with file.open("rb") as raw:
        raw.seek(offset)
        end = raw.read(tarfile.BLOCKSIZE)
        if not end or any(end):
            raise DataError(f"{file}: damaged or cut short at byte {offset}; get it anew")
        while rest := raw.read(2**20):
            if any(rest):
                raise DataError(f"{file}: goes on after its end at byte {offset}; joined archives are not read, give each as a file")


def _example(parts: dict[str, bytes], where: str, split: str | None) -> Example:
    try:
        facts = json.loads(parts["json"])
        row = {n: facts.get(n) for n in FACTS} | {"original_image": parts["0.png"], "edited_image": parts["1.png"]}
    except (KeyError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{where}: an example is KEY.0.png, KEY.1.png and KEY.json, which holds an object") from error
    return from_row(row | {"split": row["split"] or split}, where)
