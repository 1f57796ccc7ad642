"""Which captions an editor was trained on, it and what it started from: those are never held out to judge it.

A picture without a caption is known by its triplet.

Kept in the editor's folder as 64-bit marks (ip2p/marks.py): half a million captions, as the paper has, are 4 MB.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ip2p.errors import ModelError
from ip2p.marks import NONE as NO_MARKS
from ip2p.marks import Marks, among, mark_of
from ip2p.records import CAPTIONS
from ip2p.store import write_bytes


def known_by(caption: str, triplet_id: str) -> str:
    """What tells whether a source was trained on: its caption or, without one, its triplet."""
    return caption or triplet_id


@dataclass(frozen=True, eq=False)
class Seen(Container[str]):
    """A set of captions that can be asked for one and added to."""

    marks: Marks

    def __contains__(self, caption: object) -> bool:
        return among(mark_of(str(caption)), self.marks)

    def __len__(self) -> int:
        return len(self.marks)

    def with_captions(self, captions: Iterable[str]) -> Seen:
        """These and more; an empty caption says nothing of its picture and is left out."""
        return Seen(np.union1d(self.marks, np.array([mark_of(c) for c in captions if c], dtype=np.uint64)))

    def __or__(self, other: Seen) -> Seen:
        return Seen(np.union1d(self.marks, other.marks))

    def write(self, folder: Path) -> None:
        """Keep them in an editor's folder."""
        write_bytes(folder / CAPTIONS, save({"marks": self.marks}))


NONE = Seen(NO_MARKS)


def read_seen(folder: Path) -> Seen:
    """Those of an editor's folder; none where none are recorded, as of a teacher. Raises `ModelError` if the file is broken."""
    path = folder / CAPTIONS
    if not path.is_file():
        return NONE
    try:
        return Seen(load_file(path)["marks"])
    except (OSError, KeyError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); it should hold the captions that the editor was trained on") from error
