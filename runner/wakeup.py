"""A bell for one task of an asyncio loop: an event and a timeout in one, since admission waits so once a request.

`anyio.Event` under `anyio.move_on_after` does the same and costs three times as much.
"""

from __future__ import annotations

import asyncio
import math


class Wakeup:
    """Rung by anybody, waited for by one task. It stays rung until somebody has waited."""

    __slots__ = ("_rung", "_waiter")

    def __init__(self) -> None:
        self._rung = False
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Ends the wait, or the next one at once."""
        if not self._rung:  # else whoever waits has been woken
            self._rung = True
            _wake(self._waiter)

    def forget(self) -> None:
        """What rang until now has been seen to."""
        self._rung = False

    async def wait(self, seconds: float) -> None:
        """Returns when it has rung, in the next turn of the loop if it rang before, or after so long (inf: never)."""
        if self._rung:
            await asyncio.sleep(0)
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = None if seconds == math.inf else loop.call_later(max(0.0, seconds), _wake, self._waiter)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
