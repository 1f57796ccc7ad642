"""The jobs of our own door: followed to their end, whether their clients are there or not."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict

from ip2p.serve import metrics
from ip2p.serve.desk import Desk
from ip2p.serve.intake import RefusedError
from ip2p.serve.jobs import Job

_REMEMBERED = 512
"""Jobs whose progress can still be asked for."""
log = logging.getLogger("ip2p.serve")


class Board:
    """Jobs asked for through this door that are under way, and the latest that failed; those that are done are in the history."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, job: Job, desk: Desk) -> None:
        """Follow a job to its end and remember its edit, whether its client is there or not."""
        self._jobs[job.id] = job
        while len(self._jobs) > _REMEMBERED:
            self._jobs.popitem(last=False)
        task = asyncio.create_task(self._finish(job, desk))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def job(self, id: str) -> Job | None:
        """A job by its id."""
        return self._jobs.get(id)

    async def settled(self, seconds: float) -> None:
        """Wait until all edits that were made are remembered, but not for ever."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)

    async def stored(self, job: Job) -> None:
        """Wait until a job's edit is remembered; who stops waiting does not stop that."""
        if tasks := [t for t in self._tasks if t.get_name() == job.id]:
            await asyncio.wait(tasks)

    async def _finish(self, job: Job, desk: Desk) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.set_name(job.id)
        try:
            picture = await desk.ended(job)
            await desk.stored(job, picture, "api")
            self._jobs.pop(job.id, None)
        except RefusedError:
            pass
        except Exception:
            log.exception("edit not stored", extra={"job": job.id})
            metrics.UNSTORED.inc()
            job.lost = True
        job.forget()
