"""A version of the dataset, read straight from the bucket that `dvc push` filled: nothing is pulled, what was read is cached in bounds.

dvc.lock (in git) names the version. The bucket holds each file under its MD5, and of each folder a list of names and MD5s. Whole
shards are read in ranges into the cache and checked against their MD5; of a shard that is not in the cache, single columns
are read in ranges, and nothing else of it. Any fsspec URL will do; keys for S3 come from the environment.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from botocore.exceptions import BotoCoreError, NoCredentialsError, PartialCredentialsError  # type: ignore[import-untyped]

from ip2p.errors import DataError, first_line
from ip2p.params import StorageParams

_RANGE = 8 * 2**20
"""Bytes asked for at once."""
_TRIES = 8
_REMEDY = "`dvc push` it; where DVC takes all to be there, delete the folder's list (`files/md5/….dir`) in the bucket first"
_PAUSE = 0.2
"""Seconds before the second try; doubled for each further one, up to ten seconds."""
_STALE = 3600
"""Seconds after which a part of a file is nobody's any more."""
T = TypeVar("T")


@dataclass(frozen=True)
class Bucket:
    """Where a DVC remote lies, and the cache of what was read of it."""

    url: str
    endpoint: str | None
    cache: Path
    limit: int

    def file(self, name: str, md5: str) -> RemoteFile:
        """A file of a version by its MD5."""
        return RemoteFile(name, md5, self)

    def address(self, md5: str) -> str:
        """Where DVC keeps what has this MD5."""
        return f"{self.url.rstrip('/')}/files/md5/{md5[:2]}/{md5[2:]}"


@dataclass(frozen=True)
class RemoteFile:
    """A file in the bucket; `name` is the one it has in its folder."""

    name: str
    md5: str
    bucket: Bucket

    def read_table(self, columns: list[str] | None) -> pa.Table:
        """A shard's rows. Raises `DataError` if the bucket has it not, or it is not what its MD5 says."""
        if columns is None or self._cached.exists():
            with self.open() as file:
                return pq.read_table(file, columns=columns)
        return _again(lambda: self._columns(columns), self.name)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The whole file, through the cache."""
        while True:
            self._fetch()
            with suppress(FileNotFoundError), self._cached.open("rb") as file:  # another process may have made room since
                yield file
                return

    @property
    def _cached(self) -> Path:
        return self.bucket.cache / self.md5

    def _columns(self, columns: list[str]) -> pa.Table:
        with _filesystem(self.bucket).open(self.bucket.address(self.md5), "rb", cache_type="none") as file:
            return pq.read_table(file, columns=columns)

    def _fetch(self) -> None:
        """Bring the file into the cache, or mark it as used."""
        with suppress(FileNotFoundError):
            os.utime(self._cached)
            return
        self.bucket.cache.mkdir(parents=True, exist_ok=True)
        part = self._cached.with_name(f".{self.md5}.{os.getpid()}-{threading.get_ident()}.part")
        try:
            found = self._download(part)
            if found != self.md5.removesuffix(".dir"):
                raise DataError(f"{self.name}: what {self.bucket.url} holds for it is broken (MD5 {found}); {_REMEDY}")
            part.replace(self._cached)
        finally:
            part.unlink(missing_ok=True)
        _make_room(self.bucket, self._cached)

    def _download(self, part: Path) -> str:
        """Write the file to `part`, range by range; its MD5."""
        files, address, total = _filesystem(self.bucket), self.bucket.address(self.md5), hashlib.md5(usedforsecurity=False)
        size = int(_again(lambda: files.size(address), self.name))
        with part.open("wb") as out:
            for first in range(0, size, _RANGE):
                end = min(size, first + _RANGE)
                data = _again(partial(_read_range, files, address, first, end), self.name)
                total.update(data)
                out.write(data)
            out.flush()
            os.fsync(out.fileno())
        return total.hexdigest()


@dataclass(frozen=True)
class RemoteFolder:
    """A folder of a version: its files, and the digest that its validation recorded."""

    name: str
    files: tuple[RemoteFile, ...]
    digest: str

    def glob(self, pattern: str) -> Iterator[RemoteFile]:
        """Its own files (not those of folders in it) of this pattern."""
        return (f for f in self.files if "/" not in f.name and fnmatch(f.name, pattern))

    def __str__(self) -> str:
        return self.name


def open_validated(section: StorageParams, *, lock: Path, dataset: Path, marker: Path, cache: Path) -> tuple[RemoteFolder, Path]:
    """The validated dataset that dvc.lock names, in the bucket; and the marker of its validation, brought here.

    Raises `DataError` if dvc.lock lacks it, or says that it changed since it was validated.
    """
    bucket = Bucket(str(section.remote), section.endpoint, cache, int(section.cache_gb * 1e9))
    try:
        stages: dict[str, Any] = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"]
    except FileNotFoundError as error:
        raise DataError(f"{lock}: no such file; it names the version of the data, and git has it") from error
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise DataError(f"{lock}: not a lock file of DVC; take it from git again") from error
    made, checked = _md5(stages, "outs", dataset, lock), _md5(stages, "deps", dataset, lock, stage="validate")
    if made != checked:
        raise DataError(f"{lock}: {dataset} changed since it was validated; run `dvc repro validate` and push")
    mark = bucket.file(marker.name, _md5(stages, "outs", marker, lock))
    with mark.open() as file:
        digest = json.load(file)["dataset"]
    with bucket.file(str(dataset), made).open() as file:
        files = tuple(bucket.file(f["relpath"], f["md5"]) for f in json.load(file))
    return RemoteFolder(f"{bucket.url} ({dataset})", files, digest), cache / mark.md5


def _md5(stages: dict[str, Any], kind: str, path: Path, lock: Path, *, stage: str | None = None) -> str:
    for name, told in stages.items():
        for entry in told.get(kind, []):
            if entry["path"] == str(path) and stage in (None, name):
                return str(entry["md5"])
    raise DataError(f"{lock}: names no {path}; run the stage that makes it (`dvc repro`), push, and commit dvc.lock")


@cache
def _filesystem(bucket: Bucket) -> Any:
    """The bucket's file system, once a process."""
    options: dict[str, Any] = {}
    if bucket.url.startswith("s3://"):
        options = {"endpoint_url": bucket.endpoint, "config_kwargs": {"connect_timeout": 10, "read_timeout": 60}}
    try:
        return fsspec.core.url_to_fs(bucket.url, **options)[0]
    except (ImportError, ValueError) as error:  # no such kind, or its package is not here
        raise DataError(f"storage.remote: {bucket.url} cannot be read here ({first_line(error)}); s3://bucket/folder can") from error


def _again(work: Callable[[], T], name: str) -> T:
    """Do it, and again what the network spoilt. Raises `DataError` when it stays so, at once if the file is not there."""
    for attempt in range(_TRIES):
        try:
            return work()
        except (FileNotFoundError, PermissionError) as error:
            raise DataError(f"{name}: the bucket has it not, or gives it to nobody with these keys ({error}); {_REMEDY}") from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise DataError(f"{name}: no keys for the bucket ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from error
        except (OSError, pa.ArrowInvalid, BotoCoreError) as error:
            if attempt == _TRIES - 1:
                raise DataError(f"{name}: cannot be read from the bucket, {_TRIES} times ({error}); try again later") from error
            time.sleep(min(10.0, _PAUSE * 2**attempt) * (0.5 + random.random()))
    raise AssertionError("the last try returns or raises")


def _read_range(files: Any, address: str, first: int, end: int) -> bytes:
    data: bytes = files.cat_file(address, start=first, end=end)
    if len(data) != end - first:
        raise OSError(f"{len(data)} of {end - first} bytes came")
    return data


def _make_room(bucket: Bucket, fresh: Path) -> None:
    """Delete what was used longest ago until the cache keeps its limit; the fresh file stays."""
    known = []
    for path in bucket.cache.iterdir():
        with suppress(FileNotFoundError):  # another process makes room too
            told = path.stat()
            if path.suffix == ".part" and time.time() - told.st_mtime > _STALE:
                path.unlink()
            elif path.suffix != ".part":
                known.append((told.st_mtime, told.st_size, path))
    total = sum(size for _, size, _ in known)
    for _, size, path in sorted(known):
        if total <= bucket.limit:
            return
        if path != fresh:
            path.unlink(missing_ok=True)
            total -= size
