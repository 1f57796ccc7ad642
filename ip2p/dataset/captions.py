"""Caption files → captions: JSONL, CSV, TSV, Parquet or a Hugging Face dataset; cleaned, repeated ones dropped and counted.

A source is written `FILE[:COLUMN]` or `hf:NAME[:SPLIT[:COLUMN]]`. Without a column the first of `caption`, `input`,
`text`, `TEXT`, `prompt` and `original_prompt` that a row has is taken. Of captions of one picture (`url`) the first is.
"""

from __future__ import annotations

import csv
import html
import json
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ip2p.errors import DataError, first_line
from ip2p.records import Caption

COLUMNS = ("caption", "input", "text", "TEXT", "prompt", "original_prompt")
SHORTEST, LONGEST = 3, 400
"""Characters of a usable caption; CLIP reads 77 tokens, about 300 characters."""
_URLS = ("url", "URL")
"""Columns that say which picture a caption is of, as LAION's do; captions of one picture differ in little."""
_ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_SPACE, _TAG = re.compile(r"\s+"), re.compile(r"<[^<>]{1,200}>")
_LINK = re.compile(r"https?://|www\.", re.IGNORECASE)

Row = tuple[str, dict[str, Any]]
"""Where a row stands (`file:line`) and its fields."""


def read_captions(source: str, *, most: int | None = None) -> tuple[list[Caption], dict[str, int]]:
    """Clean, distinct captions of a source, the first `most`, and how many were dropped, by reason. Raises `DataError` naming a bad row."""
    rows, column = _open(source)
    captions: dict[str, Caption] = {}
    pictures: set[int] = set()
    dropped: Counter[str] = Counter()
    for where, row in rows:
        text = clean(_text(row, column, where))
        reason = _unusable(text)
        if reason is None and (key := repetition_key(text)) in captions:
            reason = "caption repeated"
        picture = next((hash(row[n]) for n in _URLS if isinstance(row.get(n), str) and row[n]), None)
        if reason is None and picture in pictures:
            reason = "picture repeated"
        if reason is None:
            captions[key] = Caption(text, where)
            pictures |= set() if picture is None else {picture}
        else:
            dropped[reason] += 1
        if len(captions) == most:
            break
    if not captions:
        raise DataError(f'{source}: holds no captions; write one JSON object with a `caption` a line, such as {{"caption": "a red boat"}}')
    return list(captions.values()), dict(dropped)


def every_caption(source: str) -> Iterator[str]:
    """All captions of a source, cleaned: repeated ones, those of one picture and those that are of no use to train on, too."""
    rows, column = _open(source)
    return (clean(_text(row, column, where)) for where, row in rows)


def clean(text: str) -> str:
    """A caption as one line of plain text: entities resolved, tags and invisible characters gone, spaces single."""
    text = _TAG.sub(" ", html.unescape(text))
    visible = "".join(c for c in unicodedata.normalize("NFC", text) if c.isspace() or unicodedata.category(c)[0] != "C")
    return _SPACE.sub(" ", visible).strip()


def repetition_key(text: str) -> str:
    """What two captions share that say the same: letters and digits in lower case."""
    return " ".join(re.findall(r"\w+", text.lower()))


def _unusable(text: str) -> str | None:
    if len(text) < SHORTEST:
        return "caption too short"
    if len(text) > LONGEST:
        return "caption too long"
    return "caption holds a link" if _LINK.search(text) else None


def _open(source: str) -> tuple[Iterator[Row], str | None]:
    if source.startswith("hf:"):
        name, split, column = (source.removeprefix("hf:").split(":") + ["", ""])[:3]
        return _hub(name, split or "train"), column or None
    file, _, column = source.partition(":")
    path = Path(file)
    if path.suffix not in _ENDINGS:
        raise DataError(f"{source}: cannot tell what this holds; give a file ending in {', '.join(_ENDINGS)}, or hf:NAME")
    if not path.is_file():
        raise DataError(f"{path}: no such caption file; mend triplets.captions")
    readers = {".csv": _table, ".tsv": _table, ".parquet": _parquet}
    return readers.get(path.suffix, _lines)(path), column or None


def read_jsonl(path: Path, example: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line numbers and objects of a JSONL file from outside. Raises `DataError` naming a bad line and showing `example`."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a JSONL file with lines such as {example}")
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            where = f"{path}:{number}"
            try:
                row = json.loads(raw.decode("utf-8-sig")) if raw.strip() else None
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from error
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: not valid JSON ({getattr(error, 'msg', error)}); write {example}") from error
            if row is not None and not isinstance(row, dict):
                raise DataError(f"{where}: holds no object; write {example}")
            if row is not None:
                yield number, row


def _lines(path: Path) -> Iterator[Row]:
    yield from ((f"{path}:{number}", row) for number, row in read_jsonl(path, '{"caption": "…"}'))


def _table(path: Path) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**20))
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        try:
            for row in reader:
                yield f"{path}:{reader.line_num}", row
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"{path}:{reader.line_num + 1}: cannot be read ({error}); save it as UTF-8 CSV") from error


def _parquet(path: Path) -> Iterator[Row]:
    try:
        file = pq.ParquetFile(path)
        names = [n for n in file.schema_arrow.names if _is_text(file.schema_arrow.field(n).type)]
        number = 0
        for batch in file.iter_batches(batch_size=4096, columns=names):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", row
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error})") from error


def _is_text(type: pa.DataType) -> bool:
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type))


def _hub(name: str, split: str) -> Iterator[Row]:
    """Rows of a Hugging Face dataset (a Hub name, or a local folder), streamed."""
    from datasets import load_dataset

    try:
        rows = load_dataset(name, split=split, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:  # the latter: of a dataset that is a script
        raise DataError(f"hf:{name}: split {split!r} cannot be loaded: {first_line(error)}") from error
    number = 0
    try:
        for number, row in enumerate(rows, 1):
            yield f"hf:{name}:{number}", row
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"hf:{name}: reading stopped after row {number}: {first_line(error)}; run again") from error


def _text(row: dict[str, Any], column: str | None, where: str) -> str:
    names = [column] if column else [n for n in COLUMNS if n in row]
    text = row.get(names[0]) if names else None
    if names and names[0] in row and not text and where.startswith("hf:"):  # a cell that nobody here can fill: too short, and counted so
        return ""
    if not isinstance(text, str) or not text.strip():
        raise DataError(f'{where}: no `{column or "caption"}`; write {{"caption": "…"}}, or name the column as FILE:COLUMN')
    return text
