"""Every paid reply on disk before it is used: an append-only JSONL file, so that no crash pays twice.

A line is one event: an attempt that is about to be sent, its reply, that it was lost (it may have been charged) or
freed (it was not), a batch, a moderation verdict, or the format that an endpoint speaks. The last line may be torn by a
crash; it is cut off when the journal is opened. Attempts under way at a crash count as charged from then on. One run at a
time holds the journal.
"""

from __future__ import annotations

import fcntl
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


@dataclass(frozen=True, slots=True)
class Sent:
    """A batch of requests. `id` is the endpoint's name for it, empty until it answers; `most` US dollars a request at most.

    `endpoint` is the address it was sent to, where alone its id means anything; empty in journals of before that was kept.
    """

    mark: str
    id: str
    requests: tuple[str, ...]
    most: float
    endpoint: str = ""


class Journal:
    """Replies by request id. US dollars: `spent` is all that was or may have been charged, `committed` what batches under way may cost."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.replies: dict[str, Paid] = {}
        self.batches: dict[str, Sent] = {}
        """Batches not yet collected, by mark."""
        self.ended = 0
        """Batches collected or given up."""
        self.flags: dict[str, bool] = {}
        self.formats: dict[str, str] = {}
        self.lost = 0
        self.spent = 0.0
        self.awaited: dict[str, float] = {}
        """What each request of a batch under way may cost, as long as there is no reply."""
        self.committed = 0.0
        """All of that."""
        self._under_way: dict[str, float] = {}
        self._file: BufferedWriter | None = None

    def __enter__(self) -> Journal:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError as error:
            self._file.close()
            raise DataError(f"{self.path}: another run is writing it; wait until it has ended, or end it") from error
        except DataError:
            self._file.close()
            raise
        for id, cost in list(self._under_way.items()):
            self.lose(id, cost)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def pay(self, paid: Paid) -> None:
        """Keep a reply; on disk when this returns. A reply that is held already is not counted again."""
        if paid.id not in self.replies:
            self._append({"reply": asdict(paid)})

    def ask(self, id: str, cost: float) -> None:
        """Keep that an attempt is about to be sent that costs at most this, in case nobody is left to see its answer."""
        self._append({"asked": {"id": id, "cost": cost}}, sync=False)

    def free(self, id: str) -> None:
        """Keep that an attempt was not charged."""
        self._append({"freed": {"id": id}}, sync=False)

    def lose(self, id: str, cost: float) -> None:
        """Keep that an attempt was sent and no answer came: it may have cost this much."""
        self._append({"lost": {"id": id, "cost": cost}})

    def send(self, batch: Sent) -> None:
        """Keep a batch of the Batch API: before it is sent, and again with the id it was given."""
        self._append({"batch": asdict(batch)})

    def end(self, batch: Sent) -> None:
        """Keep that a batch has nothing more to give."""
        self._append({"batch ended": {"mark": batch.mark}})

    def told_spending(self) -> str:
        """What was spent and what may be yet, as a person reads it."""
        return f"${self.spent:.4f} spent" + (f", at most ${self.committed:.4f} in batches under way" if self.committed else "")

    def flag(self, key: str, flagged: bool) -> None:
        """Keep a moderation verdict."""
        self._append({"flag": {"key": key, "flagged": flagged}})

    def settle(self, endpoint: str, format: str) -> None:
        """Keep which format an endpoint turned out to speak."""
        self._append({"format": {"endpoint": endpoint, "format": format}})

    def _append(self, event: dict[str, Any], *, sync: bool = True) -> None:
        if self._file is None:
            raise RuntimeError("the journal is closed")
        self._file.write(json.dumps(event).encode() + b"\n")  # escaped, so that half an emoji cannot break it
        self._file.flush()
        if sync:
            os.fsync(self._file.fileno())
        self._apply(event)

    def _apply(self, event: dict[str, Any]) -> None:
        if "reply" in event:
            paid = Paid(**event["reply"])
            self.replies[paid.id] = paid
            self.spent += paid.cost
            self._under_way.pop(paid.id, None)
            self._await_no_longer(paid.id)
        elif "asked" in event:
            self._under_way[event["asked"]["id"]] = event["asked"]["cost"]
        elif "freed" in event:
            self._under_way.pop(event["freed"]["id"], None)
        elif "lost" in event:
            self.lost += 1
            self.spent += event["lost"]["cost"]
            self._under_way.pop(event["lost"]["id"], None)
            self._await_no_longer(event["lost"]["id"])
        elif "batch" in event:
            batch = Sent(**event["batch"])
            self.batches[batch.mark] = batch
            for id in batch.requests:
                if id not in self.replies and id not in self.awaited:
                    self.awaited[id] = batch.most
                    self.committed += batch.most
        elif "batch ended" in event:
            self.ended += 1
            ended = self.batches.pop(event["batch ended"]["mark"], None)
            for id in ended.requests if ended else ():
                self._await_no_longer(id)
        elif "flag" in event:
            self.flags[event["flag"]["key"]] = event["flag"]["flagged"]
        elif "format" in event:
            self.formats[event["format"]["endpoint"]] = event["format"]["format"]

    def _await_no_longer(self, id: str) -> None:
        self.committed = max(0.0, self.committed - self.awaited.pop(id, 0.0)) if self.awaited else 0.0

    def _read(self) -> None:
        whole = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    break  # torn by a crash
                try:
                    self._apply(json.loads(line))
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                    raise DataError(f"{self.path}:{number}: not a journal line; restore the file, or move it away to pay anew") from error
                whole += len(line)
        if whole < self.path.stat().st_size:
            os.truncate(self.path, whole)
