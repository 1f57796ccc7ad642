"""What all doors share: an edit asked for becomes jobs, the jobs' pictures are waited for, and what was made is remembered."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import re
import secrets
import time
import unicodedata
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from ip2p.errors import ModelError
from ip2p.model.edit import marks_nothing, paste_back
from ip2p.model.guidance import MAX_SCALE, MAX_SEED, EditRequest
from ip2p.params import Params
from ip2p.sampler import Solver
from ip2p.serve import metrics
from ip2p.serve.champion import Champion, LoadingError
from ip2p.serve.history import EditRow, History, open_history
from ip2p.serve.intake import CHARGE, PLACES, RefusedError, to_png
from ip2p.serve.jobs import BusyError, CancelledError, Engine, Job

_LOOK = 0.05
"""Seconds between two looks at a job's progress or at whether its client is still there."""
_HANDS = 4
"""Pictures that are decoded, pasted or encoded at once."""
_PATIENCE = 12.0
"""Seconds that storing an edit may take; who asked for it gets it then, stored or not."""
MAX_INSTRUCTION = 32_000
"""Characters; OpenAI's limit."""
MAX_AT_ONCE, OUTPUT_SIDES = 10, (16, 4096)
"""Pictures of one request, and pixels of a side that a client may name for what comes back."""
T = TypeVar("T")
Encode = Callable[[Image.Image, EditRow], str]
"""An edit as its client gets it."""
log = logging.getLogger("ip2p.serve")


@dataclass(frozen=True)
class Ask:
    """An edit as a client asks for it; what is None is the version's own."""

    picture: Image.Image
    instruction: str
    mask: Image.Image | None = None
    text_guidance: float | None = None
    image_guidance: float | None = None
    steps: int | None = None
    seed: int | None = None
    solver: Solver | None = None
    version: str | None = None
    previews: int = 0
    """Pictures on the way that are wanted."""


class Desk:
    """The engine, the champion and the history behind all doors."""

    def __init__(self, params: Params, *, work: Path = Path("work/serve/versions")) -> None:
        section = params.serve
        self.params = params
        self.engine = Engine(batch=section.batch, queue=section.queue)
        self.champion = Champion(params, work=work)
        self.history: History = open_history(section)
        self._hands = ThreadPoolExecutor(_HANDS, "hands")
        self._clerk = ThreadPoolExecutor(1, "clerk")
        """Stores edits, one at a time, so that no picture is forgotten between its writing and its row's."""

    async def jobs(self, ask: Ask, count: int = 1, *, size: tuple[int, int] | None = None) -> list[Job]:
        """Jobs for an edit, seeds counting up, of which pictures of `size` (none: the picture's) come back.

        Raises `RefusedError` for what cannot be done.
        """
        ask = replace(ask, instruction=re.sub(r"\r\n?", "\n", ask.instruction))  # as forms send the ends of lines
        _check(ask, self.params.serve.max_steps)
        if count > self.params.serve.queue:
            raise RefusedError(400, f"{count} pictures at once; at most {self.params.serve.queue} are made", field="n")
        pixels, most = max(math.prod(x) for x in (ask.picture.size, size or (1, 1))), 4 * self.params.serve.max_pixels
        if count > 1 and count * pixels > most:
            raise RefusedError(400, f"{count} pictures of {pixels:,} pixels; of one request at most {most:,} pixels are made", field="n")
        served = self.champion.served
        if served is None and self.params.serve.editor is not None:
            raise RefusedError(503, "the editor that is to be served is not loaded; the server's log says why")
        if served is None:
            raise RefusedError(503, "no editor is loaded yet; a champion is registered by `make run` or `ip2p register`")
        if ask.version is not None and ask.version != served.version:
            try:
                served = await run_in_threadpool(self.champion.version, ask.version)
            except LoadingError as error:
                raise RefusedError(503, str(error)) from error
            except ModelError as error:
                raise RefusedError(404, str(error), field="version", code="model_not_found") from error
        usual = served.defaults
        options = replace(usual, steps=ask.steps or usual.steps, solver=ask.solver or usual.solver)
        scales = (_or(ask.text_guidance, served.text_guidance), _or(ask.image_guidance, served.image_guidance))
        first = secrets.randbelow(2**31) if ask.seed is None else ask.seed
        every = -(-options.steps // (ask.previews + 1)) if ask.previews else 0
        requests = [EditRequest(ask.instruction, *scales, (first + i) % (MAX_SEED + 1)) for i in range(count)]
        return [Job(served, ask.picture, r, options, ask.mask, every) for r in requests]

    def submit(self, jobs: Sequence[Job], request: Request) -> None:
        """Queue the jobs of a request and spend its client's edits on them. Raises `RefusedError` (429) if there is no room."""
        owner, most = request.scope[PLACES]
        if len(jobs) > most:
            raise RefusedError(400, f"{len(jobs)} pictures at once; of one key at most {most} are made", field="n")
        for job in jobs:
            job.owner = owner
        try:
            self.engine.submit(*jobs, most=most)
        except BusyError as error:
            raise RefusedError(429, str(error), code="rate_limit_exceeded") from error
        request.scope[CHARGE](len(jobs) - 1)

    async def pictures(self, jobs: Sequence[Job], request: Request, *, door: str, encode: Encode) -> list[tuple[EditRow, str]]:
        """Run jobs to their end, remember them and encode them, one after the other; they are given up if the client goes away."""
        self.submit(jobs, request)
        gone = asyncio.create_task(self._cancel_when_gone(jobs, request))
        try:
            for job in jobs:
                await self._waited(job)
        finally:
            gone.cancel()
            for job in jobs:
                self.engine.cancel(job)
        made = []
        for job in jobs:  # one at its full size at a time
            picture = await self.ended(job)
            row = await self.kept(job, picture, door)
            made.append((row, await self.by_hand(encode, picture, row)))
        return made

    async def kept(self, job: Job, picture: Image.Image, door: str) -> EditRow:
        """Remember a finished edit for a client who gets it now: where it cannot be stored, the log and the metrics say so."""
        try:
            return await self.stored(job, picture, door)
        except Exception:
            log.exception("edit not stored", extra={"job": job.id})
            metrics.UNSTORED.inc()
            return _row(job, picture, door)

    async def ended(self, job: Job) -> Image.Image:
        """The edit of a job, at its picture's size. Raises `RefusedError` if it was given up or failed."""
        return await self.by_hand(paste_back, job.picture, await self._waited(job), job.mask)

    async def _waited(self, job: Job) -> Image.Image:
        """The edit of a job, at the editor's working size. Raises `RefusedError` if it was given up or failed."""
        ended = asyncio.wrap_future(job.result)
        ended.add_done_callback(lambda future: future.cancelled() or future.exception())  # looked at, also if nobody waits any more
        await asyncio.wait({ended})
        error = ended.exception()  # never raised: with its traceback it would hold the job, which holds it
        if isinstance(error, CancelledError):
            raise RefusedError(499, "the edit was given up")
        if error is not None:
            raise RefusedError(500, "the edit failed; the server's log says why")
        return ended.result()

    async def by_hand(self, work: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Decode, paste or encode a picture in a thread, a few at a time: each holds several copies of it."""
        return await asyncio.get_running_loop().run_in_executor(self._hands, partial(work, *arguments, **named))

    async def progress(self, job: Job) -> AsyncIterator[tuple[int, Image.Image | None]]:
        """Steps done, with the picture as predicted so far (at the working size) where there is a new one; ends with the job."""
        told, shown = -1, 0
        while not job.result.done():
            fresh = job.preview if job.preview and job.preview[0] > shown else None
            if fresh or job.step != told:
                told, shown = job.step, fresh[0] if fresh else shown
                yield told, fresh[1] if fresh else None
            await asyncio.sleep(_LOOK)

    async def stored(self, job: Job, picture: Image.Image, door: str) -> EditRow:
        """Store a finished edit. Raises what the database raises, and `TimeoutError` if that says nothing."""
        source, made = [await self.by_hand(to_png, x) for x in (job.picture, picture)]
        mask = await self.by_hand(to_png, job.mask) if job.mask else None
        row = _row(job, picture, door)
        store = partial(self.history.store, row, source=source, mask=mask, picture=made)
        async with asyncio.timeout(_PATIENCE):
            await asyncio.get_running_loop().run_in_executor(self._clerk, store)
        return row

    async def _cancel_when_gone(self, jobs: Sequence[Job], request: Request) -> None:
        while not await request.is_disconnected():
            await asyncio.sleep(_LOOK)
        for job in jobs:
            self.engine.cancel(job)

    async def close(self, seconds: float) -> None:
        """Let what is under way end, within bounds."""
        self.champion.stop()
        with suppress(asyncio.CancelledError):
            await run_in_threadpool(self.engine.drain, seconds)


def _row(job: Job, picture: Image.Image, door: str) -> EditRow:
    """What is remembered of an edit, but its pictures."""
    options, request = job.options, job.request
    return EditRow(
        id=job.id,
        created=time.time(),
        door=door,
        version=job.version,
        editor=job.editor_digest,
        instruction=request.instruction,
        text_guidance=request.text_guidance,
        image_guidance=request.image_guidance,
        steps=options.steps,
        solver=options.solver,
        guidance_from=options.interval[0],
        guidance_until=options.interval[1],
        guidance_every=options.every,
        seed=request.seed,
        width=picture.width,
        height=picture.height,
    )


def parameters_of(row: EditRow, name: str) -> str:
    """What makes an edit again, as JSON: kept in its PNG."""
    told = ("instruction", "text_guidance", "image_guidance", "steps", "solver", "seed", "version", "editor")
    return json.dumps({"model": name, **{n: getattr(row, n) for n in told}}, ensure_ascii=False)


def server_event(kind: str, told: Mapping[str, Any]) -> str:
    """A server-sent event."""
    return f"event: {kind}\ndata: {json.dumps(told)}\n\n"


def voter_of(key: str | None, address: str) -> str:
    """Who votes: a digest of the key, or of the address."""
    return hashlib.sha256(f"ip2p voter {key or address}".encode()).hexdigest()[:16]


def _check(ask: Ask, max_steps: int) -> None:
    if not ask.instruction.strip() or len(ask.instruction) > MAX_INSTRUCTION:
        raise RefusedError(400, f"instruction: give 1 to {MAX_INSTRUCTION:,} characters", field="instruction")
    if any(unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" for c in ask.instruction):
        raise RefusedError(400, "instruction: holds characters that are no text", field="instruction")
    if ask.steps is not None and not 2 <= ask.steps <= max_steps:
        raise RefusedError(400, f"steps: {ask.steps} is out of range, give 2 to {max_steps}", field="steps")
    if ask.seed is not None and not 0 <= ask.seed <= MAX_SEED:
        raise RefusedError(400, f"seed: out of range, give 0 to {MAX_SEED:,}", field="seed")
    for name in ("text_guidance", "image_guidance"):
        value = getattr(ask, name)
        if value is not None and not 0 <= value <= MAX_SCALE:
            raise RefusedError(400, f"{name}: give 0 to {MAX_SCALE:g}", field=name)
    if ask.mask is not None and ask.mask.size != ask.picture.size:
        raise RefusedError(400, f"mask: is {ask.mask.size}, the picture {ask.picture.size}; make them equal", field="mask")
    if ask.mask is not None and marks_nothing(ask.mask):
        raise RefusedError(400, "mask: marks nothing, so nothing would be edited", field="mask")


def _or(value: float | None, usual: float) -> float:
    return usual if value is None else value
