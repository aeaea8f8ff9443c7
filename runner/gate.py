"""What all lanes of a run share: the slots, and the limits that hold for everything it sends.

A lane's head enters it when its own limits are paid; here it is first come, first served again, one at a time: a slot
is free → its tokens are paid → its request is paid.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import anyio

from runner.buckets import Bucket
from runner.concurrency import Concurrency


class Entry(NamedTuple):
    """How one came in."""

    paid: bool
    waited_s: float  # for the limits of the run


class Gate:
    """The last door before sending. All methods are for one event loop."""

    def __init__(
        self, *, rpm: float | None, tpm: float | None, concurrency: Concurrency, clock: Callable[[], float]
    ) -> None:
        self.requests = None if rpm is None else Bucket(rpm, clock)
        self.tokens = None if tpm is None else Bucket(tpm, clock)
        self.concurrency = concurrency
        self.in_flight = 0
        self.closed = False
        self.blocked: defaultdict[str, float] = defaultdict(float)
        """Seconds that heads of lanes waited, by what for."""
        self._clock = clock
        self._turn = anyio.Lock()
        self._changed = anyio.Event()

    async def enter(self, tokens: int | None, gone: Callable[[], bool]) -> Entry:
        """Takes a slot and pays for one request of so many tokens; None: it has paid before.

        `gone` says that it is no longer wanted: it gets its slot at once then, unpaid, and is to leave again.
        """
        async with self._turn:
            start = self._clock()
            while self.in_flight >= self.concurrency.limit and not gone() and not self.closed:
                self._changed = anyio.Event()
                await self._changed.wait()
            self.blocked["concurrency"] += self._clock() - start
            self.in_flight += 1
            if tokens is None or gone() or self.closed:
                return Entry(paid=False, waited_s=0.0)
            try:
                waited = await self.timed("tokens", self.tokens.acquire(tokens)) if self.tokens else 0.0
                waited += await self.timed("requests", self.requests.acquire(1)) if self.requests else 0.0
            except BaseException:
                self.leave()
                raise
            return Entry(paid=True, waited_s=waited)

    def leave(self) -> None:
        """Gives the slot back."""
        self.in_flight -= 1
        self.wake()

    def wake(self) -> None:
        """Something changed that the one at the door may wait for."""
        self._changed.set()

    def correct(self, tokens: int) -> None:
        """Gives tokens back; negative takes what is missing."""
        if self.tokens is not None:
            self.tokens.correct(tokens)

    def close(self) -> None:
        """Nobody is let in any more."""
        self.closed = True
        self.wake()

    async def timed(self, what: str, waiting: Awaitable[None]) -> float:
        """Counts how long something is waited for."""
        start = self._clock()
        await waiting
        waited = self._clock() - start
        self.blocked[what] += waited
        return waited
