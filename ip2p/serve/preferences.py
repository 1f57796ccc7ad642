"""Votes → preference dataset: what the next model learns from (HIVE, Diffusion-DPO). Pick-a-Pic's columns, then ours.

A choice between two edits is one pair. Thumbs on edits of one picture and instruction give as many as edits were liked, or disliked if
those are more: each beside one of the others, so that a picture that many try weighs by its votes and not by their square. All votes as
they came lie beside, in `votes.parquet`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from ip2p.errors import DataError
from ip2p.params import Params
from ip2p.serve.history import EditRow, History, VoteRow, open_history
from ip2p.store import fingerprint, replace_folder, staging_of, write_json, write_shard

_FACTS = ("id", "version", "seed", "text_guidance", "image_guidance", "steps", "solver")
_TYPES = {"seed": pa.int64(), "text_guidance": pa.float64(), "image_guidance": pa.float64(), "steps": pa.int64()}
PREFERENCES = pa.schema(
    [
        ("jpg_0", pa.binary()),
        ("jpg_1", pa.binary()),
        ("label_0", pa.float64()),
        ("label_1", pa.float64()),
        ("caption", pa.string()),
        ("source", pa.binary()),
        ("mask", pa.binary()),
        ("origin", pa.string()),
        *((f"{name}_{side}", _TYPES.get(name, pa.string())) for side in (0, 1) for name in _FACTS),
    ]
)
VOTES = pa.schema(
    [
        *((n, pa.string()) for n in ("id", "kind", "edit", "other", "reason", "comment", "voter")),
        ("created", pa.float64()),
        ("value", pa.int64()),
    ]
)
_SHARD, _SHARD_BYTES = 200, 2**26
"""Most pairs a file, and bytes of pictures after which one is full: each is held in memory."""


def export(params: Params, out: Path) -> tuple[int, int]:
    """Write the dataset; the folder's `dataset.json` names its version. Returns the number of pairs and of votes.

    Raises `DataError` if the folder holds anything but an earlier export.
    """
    _require_own(out)
    history = open_history(params.serve)
    votes = history.votes()
    staging = staging_of(out)
    mark = fingerprint("preferences", [v.id for v in votes])
    write_shard(staging / "votes.parquet", pa.Table.from_pylist([_vote(v) for v in votes], schema=VOTES), mark)
    rows: list[dict[str, Any]] = []
    count = shard = size = 0
    for row in _pairs(history, votes):
        rows.append(row)
        count, size = count + 1, size + sum(len(x) for x in row.values() if isinstance(x, bytes))
        if len(rows) == _SHARD or size > _SHARD_BYTES:
            write_shard(staging / f"train-{shard:05d}.parquet", pa.Table.from_pylist(rows, schema=PREFERENCES), mark)
            rows, shard, size = [], shard + 1, 0
    write_shard(staging / f"train-{shard:05d}.parquet", pa.Table.from_pylist(rows, schema=PREFERENCES), mark)
    write_json(staging / "dataset.json", {"version": mark, "pairs": count, "votes": len(votes)})
    replace_folder(staging, out)
    return count, len(votes)


def _require_own(out: Path) -> None:
    empty = not out.exists() or (out.is_dir() and not any(out.iterdir()))
    if not empty and not (out.is_dir() and (out / "votes.parquet").is_file() and (out / "dataset.json").is_file()):
        raise DataError(f"{out}: holds something that is no export of feedback; name a new folder")


def _pairs(history: History, votes: list[VoteRow]) -> Iterator[dict[str, Any]]:
    known = {v.edit: history.edit(v.edit) for v in votes} | {v.other: history.edit(v.other) for v in votes if v.other}
    for vote in votes:
        if vote.kind == "pair":
            first, second = known[vote.edit], known[vote.other or ""]
            if first is not None and second is not None:
                yield _pair(history, first, second, (vote.value + 1) / 2, "choice")
    liked: dict[tuple[str, str, str | None], dict[int, dict[str, EditRow]]] = defaultdict(lambda: {1: {}, -1: {}})
    for vote in votes:
        edit = known[vote.edit]
        if vote.kind == "thumb" and edit is not None:
            liked[edit.source, edit.instruction, edit.mask][vote.value][edit.id] = edit
    for both in liked.values():
        better, worse = ([both[value][id] for id in sorted(both[value].keys() - both[-value].keys())] for value in (1, -1))
        for i in range(max(len(better), len(worse)) if better and worse else 0):
            yield _pair(history, better[i % len(better)], worse[i % len(worse)], 1.0, "thumbs")


def _pair(history: History, first: EditRow, second: EditRow, label: float, origin: str) -> dict[str, Any]:
    """A pair; `label_0` is 1 if the first is better, 0.5 if neither is."""

    def picture(name: str | None) -> bytes | None:
        if name is None:
            return None
        try:
            return history.picture_path(name).read_bytes()
        except OSError as error:
            told = "serve.pictures must be the folder that the service keeps its pictures in (a shared volume, if it runs elsewhere)"
            raise DataError(f"{history.picture_path(name)}: a picture that was voted on is not here ({error.strerror}); {told}") from error

    row: dict[str, Any] = {"jpg_0": picture(first.picture), "jpg_1": picture(second.picture), "label_0": label, "label_1": 1 - label}
    row |= {"caption": first.instruction, "source": picture(first.source), "mask": picture(first.mask), "origin": origin}
    return row | {f"{n}_{side}": getattr(edit, n) for side, edit in enumerate((first, second)) for n in _FACTS}


def _vote(vote: VoteRow) -> dict[str, Any]:
    return {n: getattr(vote, n) for n in VOTES.names}
