"""Sends events when they are due, from the event loop's own timers.

Every deadline is counted from the request and never from the moment when the one before was really sent: a late chunk
doesn't delay the next, so that 100 tokens/s stay 100 tokens/s. A chunk costs no task switch, and what is due at the
same moment goes out in one write, each event still an HTTP chunk of its own: a load test asks for tens of thousands of
them a second, and the system call is most of what one costs.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from aiohttp.abc import AbstractStreamWriter

from runner.limits import SIMULATOR_WRITE_BYTES
from runner.simulator.sse import Event, Kind

_TABLE: Final = 1_024
_BATCH: Final = 64
"""Events in one turn of the loop when they need no waiting: others want their turn too."""


class Pace(NamedTuple):
    """How fast an answer comes."""

    first_s: float
    """From the request to the first content."""
    gap_s: float
    """Mean gap between two content events; 0 is no waiting."""
    factors: tuple[float, ...] = (1.0,)
    """What the gaps are multiplied with, in turn."""
    offset: int = 0


@lru_cache(maxsize=64)
def factors(jitter: float, seed: int) -> tuple[float, ...]:
    """Log-normal factors with sigma `jitter` and mean 1."""
    if jitter == 0:
        return (1.0,)
    rng = random.Random(seed)
    drawn = [math.exp(rng.gauss(0, jitter)) for _ in range(_TABLE)]
    mean = sum(drawn) / len(drawn)
    return tuple(value / mean for value in drawn)


class Player:
    """Plays events into one response. Its schedule goes on over several calls of `play`."""

    __slots__ = ("_due_s", "_events", "_frame", "_index", "_loop", "_next", "_pace", "_pause", "_timer", "_writer")

    def __init__(
        self, writer: AbstractStreamWriter, frame: Callable[[bytes], bytes], started_s: float, pace: Pace
    ) -> None:
        self._writer = writer
        self._frame = frame
        self._loop = asyncio.get_running_loop()
        self._pace = pace
        self._index = pace.offset
        self._due_s = started_s + pace.first_s
        self._events: Iterator[Event] = iter(())
        self._next: Event | None = None
        self._pause: asyncio.Future[bool] = self._loop.create_future()
        self._timer: asyncio.Handle | None = None

    async def play(self, events: Iterator[Event]) -> None:
        """Sends them all; returns when the last is handed to the socket.

        Raises:
            ConnectionResetError: the connection is gone.
        """
        self._events = events
        more = True
        while more:
            self._pause = self._loop.create_future()
            self._tick()
            try:
                more = await self._pause
            finally:
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None
            await self._writer.drain()

    def skip(self, count: int) -> None:
        """Leaves out so many content events, in the time that they would have taken."""
        for _ in range(count):
            self._schedule_next()

    def _tick(self) -> None:
        self._timer = None
        try:
            self._send_due()
        except Exception as error:  # called by the loop: whoever awaits `play` must hear of it, else it waits for ever
            if not self._pause.done():
                self._pause.set_exception(error)

    def _send_due(self) -> None:
        """Sends what is due, then sets the timer for what isn't, or wakes `play`."""
        transport = self._writer.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        frames = self._due()
        if frames:
            transport.write(b"".join(frames))
        if self._next is None and len(frames) < _BATCH:
            self._pause.set_result(False)
        elif transport.get_write_buffer_size() > SIMULATOR_WRITE_BYTES:
            self._pause.set_result(True)
        elif self._next is not None:
            self._timer = self._loop.call_at(self._due_s, self._tick)
        else:
            self._timer = self._loop.call_soon(self._tick)

    def _due(self) -> list[bytes]:
        """What is due, framed, a batch at most; `_next` is then the event that isn't, if there is one."""
        now_s = self._loop.time()
        frames: list[bytes] = []
        event = self._next or next(self._events, None)
        while event is not None:
            if event.kind is Kind.CONTENT:
                if self._due_s > now_s:
                    break
                self._schedule_next()
            frames.append(self._frame(event.data))
            event = next(self._events, None) if len(frames) < _BATCH else None
        self._next = event
        return frames

    def _schedule_next(self) -> None:
        factors = self._pace.factors
        self._due_s += self._pace.gap_s * factors[self._index % len(factors)]
        self._index += 1
