"""The three deadlines of an attempt: first token, idle between deltas, total.

Bytes don't count, deltas do: keep-alive comments reset a read timeout for ever. One timer an attempt, re-armed only
when it goes off: progress is a store into an attribute, so that a chunk costs no timer.

Time in which this process stood still (Ctrl-Z, a paused container or machine) is not the server's: a timer that goes
off late puts the deadlines off by as much, and what has arrived meanwhile is read before any of them passes. Without
this, three pauses of 6 s under an idle deadline of 3 s cost 64 streams 157 attempts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Final

from runner.faults import FaultKind

SUSPENDED_CHECK_S: Final = 1.0
"""How soon a suspended deadline is looked at again, or one that a standstill has put off."""
STANDSTILL_S: Final = 1.0
"""A timer that goes off so late says that the process stood still. A loop that is merely busy is a tenth of it late."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """All in seconds; None means none."""

    first_token_s: float | None = None
    """From sending to the first content."""
    idle_s: float | None = None
    """Between two deltas with content, after the first."""
    total_s: float | None = None
    """From sending to the end of the answer."""
    first_look_s: float | None = field(init=False)
    """When one of them may have passed at the earliest: the idle deadline, too, begins after the start."""

    def __post_init__(self) -> None:
        given = [limit for limit in (self.first_token_s, self.idle_s, self.total_s) if limit is not None]
        object.__setattr__(self, "first_look_s", min(given, default=None))


_CURRENT: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def suspended() -> Iterator[None]:
    """While it lasts no deadline of this task's attempt comes nearer; of no effect outside of one.

    For what has a bound of its own: a refusal's body, say. Its status has come, and a deadline would hide it.
    """
    watch = _CURRENT.get()
    if watch is None:
        yield
        return
    with watch.suspended():
        yield


def _nothing() -> None:
    """Has nothing to catch up with."""


class Watch:
    """Cancels what runs inside it when a deadline passes, and says which one did.

    Used as a context manager inside a task; `fired` is read after it. Whoever else cancels the task is obeyed.
    """

    def __init__(self, deadlines: Deadlines, *, streaming: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadlines = deadlines
        self._started = self._loop.time()
        self._last: float | None = None
        # A body that comes in one piece has no first token; only the total deadline applies to it.
        self._streaming = streaming
        self._timer: asyncio.TimerHandle | None = None
        self._armed = 0.0  # when it is to go off
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0  # by others, when it began
        self.fired: FaultKind | None = None
        self._suspended = False
        self._outer: Token[Watch | None] | None = None
        self.catch_up: Callable[[], None] = _nothing
        """Has what arrived before a deadline counted before it."""

    def progress(self) -> None:
        """A delta with content, or a sign of work, has arrived."""
        self._last = self._loop.time()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """While it lasts the wait is ours, not the server's: no deadline comes nearer."""
        start = self._loop.time()
        self._suspended = True
        try:
            yield
        finally:
            self._suspended = False
            self._put_off(self._loop.time() - start)

    def _put_off(self, seconds: float) -> None:
        self._started += seconds
        if self._last is not None:
            self._last += seconds

    def _due(self) -> tuple[float, FaultKind] | None:
        """The earliest deadline as of now."""
        limits = self._deadlines
        due: list[tuple[float, FaultKind]] = []
        if limits.total_s is not None:
            due.append((self._started + limits.total_s, FaultKind.TOTAL_TIMEOUT))
        if self._streaming and self._last is None and limits.first_token_s is not None:
            due.append((self._started + limits.first_token_s, FaultKind.FIRST_TOKEN_TIMEOUT))
        if self._streaming and self._last is not None and limits.idle_s is not None:
            due.append((self._last + limits.idle_s, FaultKind.IDLE_TIMEOUT))
        return min(due, key=lambda item: item[0], default=None)

    def _arm(self, when: float) -> None:
        self._armed = when
        self._timer = self._loop.call_at(when, self._check)

    def _check(self) -> None:
        self._timer = None
        now = self._loop.time()
        late_s = now - self._armed
        patience_s = 0.0
        if late_s > STANDSTILL_S and not self._suspended:
            self._put_off(late_s)
            patience_s = SUSPENDED_CHECK_S
        self.catch_up()
        due = self._due()
        if due is None:
            return
        when, kind = due
        if self._suspended:
            self._arm(now + SUSPENDED_CHECK_S)
        elif now >= when + patience_s:
            self.fired = kind
            assert self._task is not None
            self._task.cancel()
        else:
            # The idle deadline may be shorter than what is armed now: look again no later than that.
            ceiling = now + (self._deadlines.idle_s or float("inf")) if self._streaming else when
            self._arm(max(min(when, ceiling), now + patience_s))

    def __enter__(self) -> Watch:
        task = self._task = asyncio.current_task(self._loop)
        assert task is not None
        self._cancelling = task.cancelling()
        self._outer = _CURRENT.set(self)
        first_s = self._deadlines.first_look_s if self._streaming else self._deadlines.total_s
        if first_s is not None:
            self._arm(self._started + first_s)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
        outer, self._outer = self._outer, None
        if outer is not None:
            _CURRENT.reset(outer)
        # Timer and token hold a context that holds this. Such rings, one an attempt, are the collector's to find: it
        # stopped everything for 50 ms where it came by rarely.
        self.catch_up = _nothing
        task, self._task = self._task, None
        if self.fired is None or task is None:
            return False
        # As in asyncio.timeout: others may have cancelled it as well.
        return task.uncancel() <= self._cancelling and kind is asyncio.CancelledError
