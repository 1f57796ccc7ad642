"""The only place that writes data: atomic files, Parquet shards that carry their fingerprint, digests.

A shard is a pure function of its fingerprint. It is written under a temporary name, flushed and renamed, so what can be
read is whole; a rerun skips shards that carry the right fingerprint and makes the others anew.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import pyarrow.parquet as pq

from ip2p.errors import DataError, UserError
from ip2p.remote import RemoteFile, RemoteFolder

Folder = Path | RemoteFolder
Shard = Path | RemoteFile
_FINGERPRINT, _NOTE = b"ip2p.fingerprint", b"ip2p.note"
_MOST_A_GROUP = 2**30
"""Bytes of a row group."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def fingerprint(*parts: Any) -> str:
    """A short digest of JSON-able values, for shards and ids."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is either there whole or not at all. Raises `UserError` if the disk takes no more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno not in _FULL:
            raise
        raise UserError(f"{path}: cannot be written ({error.strerror}); make room and run again, what was made is kept") from error
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises `DataError` naming it if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; run the stage that makes it (`dvc repro`)") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON ({error.msg})") from error


def write_shard(path: Path, table: pa.Table, mark: str, *, note: Any = None) -> None:
    """Write a shard, atomically."""
    write_bytes(path, shard_bytes(table, mark, note=note))


def shard_bytes(table: pa.Table, mark: str, *, note: Any = None) -> bytes:
    """A Parquet shard carrying fingerprint `mark` and a JSON `note`; the same bytes each time."""
    carried = {_FINGERPRINT: mark.encode(), _NOTE: json.dumps(note, sort_keys=True).encode()}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **carried})
    sink = pa.BufferOutputStream()
    write_parquet(table, sink)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def write_parquet(table: pa.Table, out: Path | pa.BufferOutputStream) -> None:
    """Write a table in one row group, unless it is more than readers of nested columns take at once, which is 2 GiB a column."""
    rows = None if table.nbytes <= _MOST_A_GROUP else max(1, len(table) * _MOST_A_GROUP // table.nbytes)
    pq.write_table(table, out, compression="zstd", row_group_size=rows)


def shard_mark(path: Path) -> str | None:
    """The fingerprint a shard carries; None if there is no readable shard."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return None
    mark = metadata.get(_FINGERPRINT)
    return mark.decode() if mark else None


def shard_note(path: Path) -> Any:
    """The note a shard carries, or None. Raises `DataError` if it is truncated."""
    return json.loads((read_schema(path).metadata or {}).get(_NOTE, b"null"))


def read_schema(path: Path) -> pa.Schema:
    """A shard's columns and metadata. Raises `DataError` if it is truncated."""
    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it and run its stage again") from error


@overload
def shards(folder: Path, prefix: str = "") -> list[Path]: ...
@overload
def shards(folder: Folder, prefix: str = "") -> list[Shard]: ...
def shards(folder: Folder, prefix: str = "") -> Any:
    """Shards of a folder, in order. Raises `DataError` if there are none."""
    found = sorted(folder.glob(f"{prefix}*.parquet"), key=lambda shard: shard.name)
    if not found:
        raise DataError(f"{folder}: no Parquet shards; run the stage that makes them (`dvc repro`)")
    return found


def read_shards(folder: Folder, prefix: str = "", *, columns: list[str] | None = None) -> pa.Table:
    """All rows of a folder's shards. Raises `DataError` naming a truncated shard."""
    return pa.concat_tables([read_shard(path, columns=columns) for path in shards(folder, prefix)])


def first_rows(folder: Folder, prefix: str, count: int) -> list[dict[str, Any]]:
    """The first rows of a folder's shards, reading no shard beyond them."""
    rows: list[dict[str, Any]] = []
    for path in shards(folder, prefix):
        rows += read_shard(path).slice(0, count - len(rows)).to_pylist()
        if len(rows) == count:
            break
    return rows


def read_shard(path: Shard, *, columns: list[str] | None = None) -> pa.Table:
    """The rows of a shard. Raises `DataError` if it is truncated."""
    if isinstance(path, RemoteFile):
        return path.read_table(columns)
    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it and run its stage again") from error


def assemble(out: Path, parts: Iterable[Path]) -> None:
    """Make folder `out` hold exactly these files (hard links where the disk allows)."""
    staging = staging_of(out)
    for part in parts:
        try:
            os.link(part, staging / part.name)
        except OSError:
            shutil.copy2(part, staging / part.name)
    replace_folder(staging, out)


def staging_of(out: Path) -> Path:
    """An empty folder beside `out`, to be filled and then put in its place by `replace_folder`."""
    staging = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    return staging


def replace_folder(staging: Path, out: Path) -> None:
    """Put a finished folder in the place of `out`. A kill meanwhile leaves the old one, none or the new one, never a part."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.exists():
        out.replace(old)
    staging.replace(out)
    shutil.rmtree(old, ignore_errors=True)


def share(*files: Path) -> None:
    """Give files that safetensors wrote, for their owner alone, the mode of any other new file."""
    os.umask(mask := os.umask(0))
    for file in files:
        file.chmod(0o666 & ~mask)


def code_mark(*names: str) -> str:
    """A digest of source files of the package (paths within ip2p), for fingerprints: changed code makes data anew."""
    root = Path(__file__).parent
    return fingerprint([hashlib.sha256((root / name).read_bytes()).hexdigest() for name in names])


def digest(folder: Folder | Shard) -> str:
    """SHA-256 over names and bytes of a file or of all files in a folder; of a folder in a bucket the one recorded for it.

    Raises `DataError` if there is none.
    """
    if isinstance(folder, RemoteFolder):
        return folder.digest
    if isinstance(folder, RemoteFile):
        return hashlib.sha256(f"{folder.name} {folder.md5}".encode()).hexdigest()
    if not folder.exists():
        raise DataError(f"{folder}: no such file or folder; run the stage that makes it (`dvc repro`)")
    total = hashlib.sha256()
    files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file())
    for path in files:
        known = path.stat()
        total.update(path.name.encode())
        total.update(_sha256(path, known.st_size, known.st_mtime_ns, known.st_ino))
    return total.hexdigest()


@lru_cache(maxsize=65_536)
def _sha256(path: Path, *_identity: int) -> bytes:
    """The digest of a file's bytes, taken once in a process for as long as the file stays what it is."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
