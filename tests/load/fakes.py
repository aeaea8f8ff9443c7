"""What a sender sends with, without a network: answers take virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import anyio

from runner.load.draws import Constant
from runner.load.engine import Answer
from runner.load.samples import RequestSample
from runner.load.synthetic import Synthetic


class Waits:
    """A pacer of the virtual loop."""

    async def until(self, moment_s):
        await anyio.sleep_until(moment_s)


class Server:
    """Answers after `takes(number)` seconds; notes who was sent when.

    With `lead_s` it does as an engine: a request goes out at its moment, or never where that comes after a stop.
    """

    def __init__(
        self, takes: Callable[[int], float] = lambda number: 1.0, *, fails=frozenset(), fault="server_error"
    ) -> None:
        self.takes = takes
        self.fails = fails
        self.fault = fault
        self.pacer = Waits()
        self.sent: list[tuple[float, str]] = []
        self.scheduled: list[float | None] = []
        self.levels: list[dict] = []
        self.most = 0
        self.now = 0
        self.grace_s = 1e9
        self.lead_s = 0.0
        self.waiting = 0
        self.clock_at_end = 0.0
        self._asked = anyio.Event()

    def clock(self):
        return asyncio.get_running_loop().time()

    @property
    def is_stopped(self):
        return self._asked.is_set()

    async def stopped(self):
        await self._asked.wait()

    def stop(self):
        self._asked.set()

    async def send(self, request, level, zero_s):
        if self.lead_s and request.scheduled is not None:
            await anyio.sleep_until(zero_s + request.scheduled)
            if self.is_stopped:
                return None
        number = len(self.sent)
        sent = self.clock() - zero_s
        self.sent.append((round(sent, 3), request.job.id))
        self.scheduled.append(request.scheduled)
        self.levels.append(level)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await anyio.sleep(self.takes(number))
        finally:
            self.now -= 1
        end, ok = self.clock() - zero_s, number not in self.fails
        sample = RequestSample(
            request.scheduled,
            sent,
            sent,
            first_content=end,
            last_content=end,
            end=end,
            chunks=1,
            ok=ok,
            fault=None if ok else self.fault,
        )
        return Answer(sample, f"answer {number}" if request.wants_text and ok else None)


def supply():
    """Prompts of one word."""
    return Synthetic(Constant(8), Constant(1))
