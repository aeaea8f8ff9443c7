"""An event loop whose clock jumps to the next deadline: tests don't sleep.

Everything that asks the loop for the time works in it: anyio.sleep and deadlines, loop.call_at, aiolimiter, tenacity
with an async sleep. Threads don't: a loop that waits for nothing but a thread is taken for a deadlock.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

T = TypeVar("T")


_TICK_S: Final = 1e-9
"""What a round of the loop takes at least: on a clock that stood still, a timer that is late by a rounding error would
be set again for the same instant, for ever."""

_HORIZON_S: Final = 1e9
"""Thirty years: anyio.sleep_forever is a timer at infinity, which asyncio approaches a day at a time."""


class Deadlock(RuntimeError):
    """Raised when every task waits and no timer is set: real time would pass without end."""


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits: what the loop would have slept is added to its clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready: list[Any] = super().select(0)
        # A timeout of 0 has something to run: tasks that are cancelled after a deadlock come to their end.
        if not ready and (timeout is None or (timeout > 0 and self.now > _HORIZON_S)):
            raise Deadlock("every task waits, and no timer is set")
        self.now += _TICK_S if ready or timeout is None else max(timeout, _TICK_S)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A selector loop on a clock of its own, which begins at 0."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Virtual seconds."""
        return self._jumping.now


def run_virtual(main: Callable[[], Awaitable[T]]) -> T:
    """Runs `await main()` in virtual time and returns its result."""

    async def runner() -> T:
        return await main()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as loop_runner:
        return loop_runner.run(runner())
