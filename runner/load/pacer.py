"""Waiting for an absolute moment, more finely than an event loop's timers do.

asyncio and uvloop wait in whole milliseconds: sends at 1,000 a second would go out in pairs, and Poisson gaps would be
multiples of a millisecond, which a Kolmogorov–Smirnov test sees at any rate. On Linux a timerfd wakes the loop through
the descriptor that becomes readable, within some 50 µs and without spinning: a wait costs about 40 µs CPU. Elsewhere
the loop's timers have to do; the send lag says how well they did.

Deadlines are absolute: a send that was late moves none behind it. `time.monotonic` is the one clock, since uvloop's own
stands still while a callback runs.

Accepted: the timerfd comes through ctypes until Python 3.13, which has it, is the oldest version supported.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import heapq
import os
import sys
import time
from itertools import count
from typing import Final, NamedTuple

IN_A_ROW: Final = 16
"""Moments that may pass without giving up the loop: many sends that are due at once must not hold back the answers."""
_CLOCK_MONOTONIC: Final = 1
_ABSOLUTE: Final = 1  # TFD_TIMER_ABSTIME


class _Spec(ctypes.Structure):
    """struct itimerspec: interval, then value, each seconds and nanoseconds."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("every_s", "every_ns", "value_s", "value_ns"))


class _Timer:
    """A timerfd."""

    def __init__(self) -> None:
        """Opens it.

        Raises:
            OSError: there is none to be had here.
        """
        if not sys.platform.startswith("linux"):
            raise OSError("no timerfd")
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = self._libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set(self, moment_s: float) -> None:
        """Makes the descriptor readable at a moment of the monotonic clock."""
        seconds, ns = divmod(int(moment_s * 1e9), 1_000_000_000)
        spec = _Spec(0, 0, seconds, max(1, ns))  # all zeros would disarm it
        if self._libc.timerfd_settime(self.fd, _ABSOLUTE, ctypes.byref(spec), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")


class _Waiter(NamedTuple):
    """Who waits; the number keeps those of one moment in order."""

    moment_s: float
    number: int
    rung: asyncio.Future[None]


class Pacer:
    """Lets any number of tasks wait, each for a moment of its own. To be closed in its loop."""

    def __init__(self) -> None:
        self._in_a_row = 0
        self._numbers = count()
        self._waiters: list[_Waiter] = []
        """A heap."""
        self._timer: _Timer | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        with contextlib.suppress(OSError, AttributeError):
            self._timer = _Timer()

    @property
    def is_fine(self) -> bool:
        """Whether it is finer than the loop's timers."""
        return self._timer is not None

    async def until(self, moment_s: float) -> None:
        """Returns at a moment of `time.monotonic`, at once if it has passed."""
        if time.monotonic() >= moment_s:
            self._in_a_row += 1
            if self._in_a_row % IN_A_ROW == 0:
                await asyncio.sleep(0)
            return
        self._in_a_row = 0
        if self._timer is None:
            await asyncio.sleep(moment_s - time.monotonic())
        else:
            await self._queue(self._timer, moment_s)

    def _queue(self, timer: _Timer, moment_s: float) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
            loop.add_reader(timer.fd, self._rings, timer)
        waiter = _Waiter(moment_s, next(self._numbers), loop.create_future())
        heapq.heappush(self._waiters, waiter)
        if self._waiters[0] is waiter:
            timer.set(moment_s)
        return waiter.rung

    def _rings(self, timer: _Timer) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(timer.fd, 8)
        waiters = self._waiters
        while waiters and waiters[0].moment_s <= time.monotonic():
            rung = heapq.heappop(waiters).rung
            if not rung.done():  # by its own cancellation
                rung.set_result(None)
        if waiters:
            timer.set(waiters[0].moment_s)

    def close(self) -> None:
        """Gives its descriptor back."""
        timer, self._timer = self._timer, None
        if timer is not None:
            if self._loop is not None:
                self._loop.remove_reader(timer.fd)
            os.close(timer.fd)
