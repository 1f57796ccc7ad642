"""Edits under way: a bounded queue, and one thread that owns the device and steps all of them together (ip2p/model/stream.py).

A job that is cancelled leaves at its next step, or never starts. Each job runs to its end on the editor it began with, so
that promotion in the middle costs nobody a request.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import uuid4

import torch
from PIL import Image
from torch import Tensor

from ip2p.diffusion import Diffusion
from ip2p.model.edit import Remembered, working_size
from ip2p.model.guidance import EditOptions, EditRequest
from ip2p.model.stream import Editing, advance_all, begin_editing, pictures_of
from ip2p.pictures import from_pillow, on_white, to_pillow
from ip2p.serve import metrics

_FAILED = 8
"""Calls that fail without a picture in between, after which the device counts as lost."""
_STUCK = 600.0
"""Seconds that a step may take; the first ones may compile."""
FULL, MANY = "too many edits are waiting; come again later", "too many edits of this key are under way; wait for one"
"""Why an edit is not taken."""
T = TypeVar("T")
log = logging.getLogger("ip2p.serve")


class BusyError(Exception):
    """The queue is full; the client is to come again later."""


class CancelledError(Exception):
    """The job was given up before its end."""


@dataclass(eq=False)
class Served:
    """An editor that is served: its version and digest, its model, its sampling defaults, what it remembers of texts and pictures."""

    version: str
    digest: str
    editor: Diffusion
    defaults: EditOptions
    text_guidance: float
    image_guidance: float
    remembered: Remembered = field(default_factory=Remembered)


@dataclass(eq=False)
class Job:
    """One edit asked for, and how far it is. `preview_every` steps the picture as predicted so far is kept, if it is not 0."""

    served: Served | None
    picture: Image.Image
    request: EditRequest
    options: EditOptions
    mask: Image.Image | None = None
    preview_every: int = 0
    owner: str = ""
    """Who asked for it."""
    id: str = field(default_factory=lambda: uuid4().hex)
    step: int = 0
    preview: tuple[int, Image.Image] | None = None
    cancelled: bool = False
    result: Future[Image.Image] = field(default_factory=Future)
    """The edit at the editor's working size: who waits for it pastes it back, the engine has no time for that."""
    asked: float = field(default_factory=time.monotonic)

    lost: bool = False
    """Whether its edit was made but could not be stored."""

    def __post_init__(self) -> None:
        assert self.served is not None
        self.version, self.editor_digest = self.served.version, self.served.digest

    @property
    def editor(self) -> Served:
        """What it runs on, while it runs."""
        assert self.served is not None, "the job has ended"
        return self.served

    @property
    def state(self) -> str:
        """queued, running, done, cancelled or failed."""
        if self.lost:
            return "failed"
        if not self.result.done():
            return "running" if self.step else "queued"
        error = self.result.exception()
        return "done" if error is None else "cancelled" if isinstance(error, CancelledError) else "failed"

    def forget(self) -> None:
        """Let go of pictures and model, once nobody needs them."""
        self.picture, self.mask, self.preview, self.served = Image.new("RGB", (1, 1)), None, None, None


class Engine:
    """Runs jobs on the device; `submit` from any thread."""

    def __init__(self, *, batch: int, queue: int) -> None:
        self._batch, self._queue = batch, queue
        self._waiting: deque[Job] = deque()
        self._running: list[tuple[Job, Editing]] = []
        self._change = threading.Condition()
        self._closed = False
        self._failed, self._stepped = 0, time.monotonic()
        """Calls that failed since a picture came, and when the last step of all began."""
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def full(self) -> bool:
        """Whether another job would be refused."""
        return self._closed or len(self._waiting) >= self._queue

    @property
    def load(self) -> tuple[int, int]:
        """Jobs that wait, jobs under way."""
        return len(self._waiting), len(self._running)

    @property
    def steps(self) -> list[tuple[int, int]]:
        """Of each job under way the steps done and those in all."""
        return [(job.step, job.options.steps) for job, _ in self._running]

    @property
    def alive(self) -> bool:
        """Whether the thread that owns the device is there, and edits come of it: after some faults no call to a GPU succeeds any more."""
        stuck = bool(self._running or self._waiting) and time.monotonic() - self._stepped > _STUCK
        return self._thread.is_alive() and self._failed < _FAILED and not stuck

    def submit(self, *jobs: Job, most: int | None = None) -> None:
        """Queue jobs of one owner, all or none. Raises `BusyError` if there is no room, or none for `most` jobs of that owner."""
        with self._change:
            if self._closed or len(self._waiting) + len(jobs) > self._queue:
                raise BusyError(FULL)
            here = [*self._waiting, *(job for job, _ in self._running)]
            if most is not None and len(jobs) + sum(job.owner == jobs[0].owner for job in here) > most:
                raise BusyError(MANY)
            if not self._running and not self._waiting:
                self._stepped = time.monotonic()
            self._waiting.extend(jobs)
            self._change.notify()

    def cancel(self, job: Job) -> None:
        """Give a job up: at its next step, or at once if it waits."""
        with self._change:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
                _fail(job, CancelledError())

    def drain(self, seconds: float) -> bool:
        """Take no more jobs and wait for those that are here; whether all ended in time."""
        with self._change:
            self._closed = True
            self._change.notify()
        self._thread.join(timeout=seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._change:
                while not self._waiting and not self._running and not self._closed:
                    self._change.wait()
                if self._closed and not self._waiting and not self._running:
                    return
                admitted = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._batch - len(self._running)))]
            self._stepped = time.monotonic()
            self._running += [(job, editing) for job in admitted if (editing := self._guarded([job], _begin, job)) is not None]
            self._step()

    def _step(self) -> None:
        """One step of all jobs under way, those of one editor and one size together; then hand out what has ended."""
        groups: dict[tuple[int, tuple[int, ...]], list[tuple[Job, Editing]]] = {}
        for job, editing in self._running:
            if job.cancelled:
                _fail(job, CancelledError())
            else:
                groups.setdefault((id(job.served), editing.shape), []).append((job, editing))
        for group in groups.values():
            jobs = [job for job, _ in group]
            metrics.ROWS.observe(len(group))
            self._guarded(jobs, advance_all, jobs[0].editor.editor, [e for _, e in group])
            for job in jobs:
                job.step += not job.result.done()
            shown = [x for x in group if not x[0].result.done() and (x[1].ended or _wants_preview(x[0]))]
            pictures = self._guarded([j for j, _ in shown], pictures_of, jobs[0].editor.editor, [e for _, e in shown]) if shown else None
            if pictures is not None:
                self._failed = 0
                for (job, editing), x in zip(shown, pictures, strict=True):
                    self._guarded([job], _hand_out, job, editing, x)
        self._running = [x for x in self._running if not x[0].result.done()]

    def _guarded(self, jobs: list[Job], work: Callable[..., T], *arguments: object) -> T | None:
        """What `work` gives; if it fails, its jobs fail, and no others."""
        try:
            return work(*arguments)
        except Exception as error:
            self._failed += 1
            log.exception("edit failed", extra={"jobs": [j.id for j in jobs]})
            told = RuntimeError(type(error).__name__)  # without the traceback, whose frames would hold tensors
        for job in jobs:
            _fail(job, told)
        if torch.cuda.is_available():
            with suppress(RuntimeError):
                torch.cuda.empty_cache()
        return None


def _begin(job: Job) -> Editing:
    served = job.editor
    size = working_size(served.editor, job.picture.size)
    image = from_pillow(on_white(job.picture).resize(size, Image.Resampling.LANCZOS))
    return begin_editing(served.editor, image, job.request, job.options, served.remembered)


def _wants_preview(job: Job) -> bool:
    return bool(job.preview_every) and job.step % job.preview_every == 0


def _hand_out(job: Job, editing: Editing, image_CHW: Tensor) -> None:
    picture = to_pillow(image_CHW)
    if not editing.ended:
        job.preview = (job.step, picture)
        return
    metrics.EDITS.labels(job.version).inc()
    metrics.SECONDS.observe(time.monotonic() - job.asked)
    job.result.set_result(picture)


def _fail(job: Job, error: BaseException) -> None:
    if not job.result.done():
        job.result.set_exception(error)
