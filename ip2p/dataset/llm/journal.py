"""Every paid reply on disk before it is used: an append-only JSONL file, so that no crash pays twice.

A line is one event: a reply, an attempt whose answer was lost (it may have been charged), a batch that was sent, a
moderation verdict, or the format that an endpoint speaks. The last line may be torn by a crash; it is cut off when the
journal is opened.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from io import BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import Any

from ip2p.errors import DataError


@dataclass(frozen=True, slots=True)
class Paid:
    """A reply as it came: text (empty if refused), why it ended, tokens billed and what they cost in US dollars."""

    id: str
    text: str
    finish: str
    model: str
    tokens_in: int
    tokens_out: int
    cost: float


class Journal:
    """Replies by request id; `spent` is all that was or may have been charged, in US dollars."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.replies: dict[str, Paid] = {}
        self.batches: dict[str, str] = {}
        self.flags: dict[str, bool] = {}
        self.formats: dict[str, str] = {}
        self.lost = 0
        self.spent = 0.0
        self._file: BufferedWriter | None = None

    def __enter__(self) -> Journal:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._read()
        self._file = self.path.open("ab")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def pay(self, paid: Paid) -> None:
        """Keep a reply; on disk when this returns. A reply that is held already is not counted again."""
        if paid.id not in self.replies:
            self._append({"reply": asdict(paid)})

    def lose(self, id: str, cost: float) -> None:
        """Keep that an attempt was sent and no answer came: it may have cost this much."""
        self._append({"lost": {"id": id, "cost": cost}})

    def send(self, mark: str, batch: str) -> None:
        """Keep which batch of the Batch API carries the requests of this mark."""
        self._append({"batch": {"mark": mark, "batch": batch}})

    def flag(self, key: str, flagged: bool) -> None:
        """Keep a moderation verdict."""
        self._append({"flag": {"key": key, "flagged": flagged}})

    def settle(self, endpoint: str, format: str) -> None:
        """Keep which format an endpoint turned out to speak."""
        self._append({"format": {"endpoint": endpoint, "format": format}})

    def _append(self, event: dict[str, Any]) -> None:
        if self._file is None:
            raise RuntimeError("the journal is closed")
        self._file.write(json.dumps(event).encode() + b"\n")  # escaped, so that half an emoji cannot break it
        self._file.flush()
        os.fsync(self._file.fileno())
        self._apply(event)

    def _apply(self, event: dict[str, Any]) -> None:
        if "reply" in event:
            paid = Paid(**event["reply"])
            self.replies[paid.id] = paid
            self.spent += paid.cost
        elif "lost" in event:
            self.lost += 1
            self.spent += event["lost"]["cost"]
        elif "batch" in event:
            self.batches[event["batch"]["mark"]] = event["batch"]["batch"]
        elif "flag" in event:
            self.flags[event["flag"]["key"]] = event["flag"]["flagged"]
        elif "format" in event:
            self.formats[event["format"]["endpoint"]] = event["format"]["format"]

    def _read(self) -> None:
        if not self.path.exists():
            return
        whole = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # torn by a crash
                try:
                    self._apply(json.loads(line))
                except (json.JSONDecodeError, TypeError, KeyError) as error:
                    raise DataError(f"{self.path}:{number}: not a journal line; restore the file, or move it away to pay anew") from error
                whole += len(line)
        if whole < self.path.stat().st_size:
            os.truncate(self.path, whole)
