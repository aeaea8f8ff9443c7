"""Jobs on their way from the reader to the workers, a batch at a time.

A worker that has ended a job takes the next one without giving up the loop; the reader fetches a batch when the one
before is nearly taken. For one event loop. anyio's memory stream does the same for one item at a time, and costs ten
times as much.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterable
from typing import Final

from runner.jobs import Job
from runner.limits import SOURCE_BATCH_JOBS
from runner.wakeup import Wakeup

LOW: Final = SOURCE_BATCH_JOBS // 4
"""So many jobs are left for the workers while the next batch is fetched."""


class Handover:
    """What has been read and is in nobody's hands yet."""

    def __init__(self) -> None:
        self._ready: deque[Job] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._taken = Wakeup()
        self._due = 0  # rung when so many are left
        self._closed = False

    @property
    def wanting(self) -> int:
        """Jobs that no idle worker is there for."""
        return max(0, len(self._ready) - len(self._idle))

    def put(self, jobs: Iterable[Job]) -> None:
        """Hands over a batch."""
        self._ready.extend(jobs)
        for _ in range(min(len(self._ready), len(self._idle))):
            self._wake_one()

    async def down_to(self, left: int) -> None:
        """Returns when no more than so many are left to take. For one reader."""
        self._due = left
        while len(self._ready) > left:
            self._taken.forget()
            await self._taken.wait(math.inf)

    async def take(self) -> Job | None:
        """The next job; None when there are no more."""
        while not self._ready:
            if self._closed:
                return None
            waiter = asyncio.get_running_loop().create_future()
            self._idle.append(waiter)
            await waiter
        job = self._ready.popleft()
        if len(self._ready) == self._due:
            self._taken.ring()
        return job

    def close(self) -> None:
        """No more are coming; those that are there may be taken."""
        self._closed = True
        while self._idle:
            self._wake_one()

    def _wake_one(self) -> None:
        waiter = self._idle.popleft()
        if not waiter.done():  # or cancelled, with the whole run
            waiter.set_result(None)
