"""Edits that nothing was trained on: of the world, whose truth is known, of the dataset's test split, or of a benchmark (`benchmarks`).

Pictures are kept as encoded files and decoded a batch at a time, so that 5,000 of them fit anywhere.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ip2p.dataset.exchange.example import Example, read_dataset
from ip2p.dataset.llm.client import key_of
from ip2p.dataset.read import read_triplets
from ip2p.dataset.world_writer import write_triplets
from ip2p.errors import DataError, ModelError
from ip2p.model.seen import NONE, Seen, read_seen
from ip2p.models import editor_folder, editor_named
from ip2p.params import EvaluateParams, Params
from ip2p.pictures import from_bytes, open_picture, resized, to_png
from ip2p.store import code_mark, fingerprint
from ip2p.world.truth import truth_of

HALF = 128
"""Alpha below which a pixel of a mask is where the edit belongs."""


@dataclass(frozen=True, slots=True)
class HeldEdit:
    """One edit to be made: pictures as encoded files, the target where there is one. Captions may be empty.

    `mask`, where a benchmark has one, is transparent where the edit belongs.
    """

    id: str
    instruction: str
    caption: str
    edited_caption: str
    edit_type: str
    source: bytes
    target: bytes | None = None
    mask: bytes | None = None

    @property
    def mark(self) -> str:
        """What identifies the edit: its texts and pictures."""
        pictures = [hashlib.sha256(x or b"").hexdigest() for x in (self.source, self.target, *([self.mask] if self.mask else []))]
        return fingerprint(self.id, self.instruction, self.caption, self.edited_caption, self.edit_type, pictures)

    @property
    def directed(self) -> bool:
        """Whether its captions say which way it should go: some benchmarks have none, or the same twice."""
        return bool(self.caption and self.edited_caption) and self.caption != self.edited_caption

    def is_in(self, seen: Seen) -> bool:
        """Whether an editor was trained on this source, by its caption or, as of pairs that came without, by its id."""
        return any(name in seen for name in (self.caption, self.id) if name)

    @property
    def seed(self) -> int:
        """The seed of its noise, the same for every system."""
        return random.Random(f"evaluate/{self.id}").getrandbits(31)


@dataclass(frozen=True)
class HeldOut:
    """Held-out edits of one origin. `known`: the targets are the only right answers, so that success can be read."""

    name: str
    edits: tuple[HeldEdit, ...]
    size: int
    known: bool = False

    @property
    def captioned(self) -> bool:
        """Whether captions say what each edited picture should show."""
        return all(e.edited_caption for e in self.edits)

    @property
    def directed(self) -> bool:
        """Whether captions say which way each edit should go."""
        return all(e.directed for e in self.edits)

    @property
    def targeted(self) -> bool:
        """Whether each edit has a target picture."""
        return all(e.target is not None for e in self.edits)

    @property
    def by_target(self) -> bool:
        """Whether target pictures say which way the edits should go, for want of captions that do."""
        return self.targeted and not self.directed

    @property
    def masked(self) -> bool:
        """Whether each edit has a mask of where it belongs."""
        return all(e.mask is not None for e in self.edits)

    @cached_property
    def mark(self) -> str:
        """What tells whether two evaluations are of the same edits: every text and picture."""
        return fingerprint("held-out", self.name, [e.mark for e in self.edits], self.size, code_mark("world/truth.py"))

    def sources(self, some: slice) -> Tensor:
        """Source pictures `images_BCHW` in [0, 1], of the editor's size."""
        return torch.stack([self._picture(e.source, e.id) for e in self.edits[some]])

    def targets(self, some: slice) -> Tensor:
        """Target pictures of edits that have them, as `sources`."""
        return torch.stack([self._picture(e.target, e.id) for e in self.edits[some] if e.target is not None])

    def beyond(self, some: slice) -> Tensor:
        """Where edits that have masks do not belong, `BHW`: pixels of which no part is half transparent or more."""
        masks = [open_picture(e.mask, where=e.id, alpha=True).getchannel("A") for e in self.edits[some] if e.mask is not None]
        edited = [torch.from_numpy(np.asarray(m) < HALF).float()[None, None] for m in masks]
        return torch.cat([F.adaptive_avg_pool2d(x, self.size) for x in edited])[:, 0] == 0

    def _picture(self, data: bytes, where: str) -> Tensor:
        return resized(from_bytes(data, where=where), self.size)


def held_out(params: Params, *, triplets: Path, dataset: Path, size: int, seen: Seen = NONE) -> HeldOut:
    """The edits that the parameters name, none of a caption that was `seen` in training. Raises `DataError` if there are none."""
    section = params.evaluate
    if section.held_out == "world":
        return of_world(count=section.count, stream=f"{params.seed}/evaluate", triplets=triplets, size=size, seen=seen)
    tests = (e for e in map(held, read_dataset(dataset, splits=("test",))) if not e.is_in(seen))
    edits = tuple(islice(_once(tests), section.count))
    if not edits:
        raise DataError(
            f"{dataset}: has no test split of captions that the editor has not seen; raise filter.splits, or set evaluate.held_out to world"
        )
    return HeldOut("test split", edits, size)


def of_world(*, count: int, stream: str, triplets: Path, size: int, seen: Seen = NONE) -> HeldOut:
    """Edits of scenes whose captions are neither among the triplets nor `seen` in training, rendered, with their truth."""
    used = seen.with_captions(t.caption.text for t in read_triplets(triplets))
    edits = []
    for t in write_triplets(count=count, stream=stream, avoid=used):
        truth = truth_of(t.caption.text, t.instruction, seed=random.Random(f"evaluate/{t.id}").getrandbits(31), size=size)
        before, after = to_png(truth.source_CHW), to_png(truth.target_CHW)
        edits.append(HeldEdit(t.id, t.instruction, t.caption.text, t.edited_caption, t.edit_type, before, after))
    return HeldOut("world", tuple(edits), size, known=True)


def seen_in(editor: Path, section: EvaluateParams) -> Seen:
    """The captions that the editor or the one that it is compared with was trained on."""
    seen = read_seen(editor)
    previous = section.previous and editor_folder(editor_named(section.previous))
    return seen | read_seen(previous) if previous else seen


def require_rest(params: Params) -> None:
    """Raise for what is wanted only after hours of sampling, and is not there; benchmarks are read apart."""
    section = params.evaluate
    if section.previous is not None:
        named = editor_named(section.previous)
        if isinstance(named, Path) and not (named / "unet").is_dir():
            raise ModelError(f"evaluate.previous: {named} is no editor's folder; give one, a Hub id, or `world`")
    if section.judge is not None:
        key_of(section.judge)


def held(e: Example) -> HeldEdit:
    """An example whose edit is to be made."""
    e = e.identified()
    texts = (e.edit_prompt, e.original_prompt, e.edited_prompt, e.edit_type)
    return HeldEdit(e.triplet_id, *texts, e.original_image, e.edited_image, e.mask)


def _once(edits: Iterator[HeldEdit]) -> Iterator[HeldEdit]:
    """The first pair of each triplet by each instruction."""
    seen: set[tuple[str, str]] = set()
    for edit in edits:
        if (edit.id, edit.instruction) not in seen:
            seen.add((edit.id, edit.instruction))
            yield edit
