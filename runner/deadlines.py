"""The three deadlines of an attempt: first token, idle between deltas, total.

Bytes don't count, deltas do: keep-alive comments reset a read timeout for ever. One timer an attempt, re-armed only
when it goes off: progress is a store into an attribute, so that a chunk costs no timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import anyio

from runner.faults import FaultKind

SUSPENDED_CHECK_S: Final = 1.0
"""How soon a suspended deadline is looked at again."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """All in seconds; None means none."""

    first_token_s: float | None = None
    """From sending to the first content."""
    idle_s: float | None = None
    """Between two deltas with content, after the first."""
    total_s: float | None = None
    """From sending to the end of the answer."""

    @property
    def first_look_s(self) -> float | None:
        """When one of them may have passed at the earliest: the idle deadline, too, begins after the start."""
        given = [limit for limit in (self.first_token_s, self.idle_s, self.total_s) if limit is not None]
        return min(given, default=None)


class Watch:
    """Cancels its scope when a deadline passes, and says which one did.

    Used as a context manager inside a running loop; `fired` is read after it.
    """

    def __init__(self, deadlines: Deadlines, *, streaming: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadlines = deadlines
        self._started = self._loop.time()
        self._last: float | None = None
        # A body that comes in one piece has no first token; only the total deadline applies to it.
        self._streaming = streaming
        self._timer: asyncio.TimerHandle | None = None
        self.scope = anyio.CancelScope()
        self.fired: FaultKind | None = None
        self._suspended = False
        self.catch_up: Callable[[], None] = lambda: None
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
            waited = self._loop.time() - start
            self._started += waited
            if self._last is not None:
                self._last += waited

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

    def _check(self) -> None:
        self._timer = None
        self.catch_up()
        due = self._due()
        if due is None:
            return
        when, kind = due
        if self._suspended:
            self._timer = self._loop.call_later(SUSPENDED_CHECK_S, self._check)
        elif self._loop.time() >= when:
            self.fired = kind
            self.scope.cancel()
        else:
            # The idle deadline may be shorter than what is armed now: look again no later than that.
            ceiling = self._loop.time() + (self._deadlines.idle_s or float("inf")) if self._streaming else when
            self._timer = self._loop.call_at(min(when, ceiling), self._check)

    def __enter__(self) -> Watch:
        self.scope.__enter__()
        first_s = self._deadlines.first_look_s if self._streaming else self._deadlines.total_s
        if first_s is not None:
            self._timer = self._loop.call_at(self._started + first_s, self._check)
        return self

    def __exit__(self, *exc_info: object) -> bool | None:
        if self._timer is not None:
            self._timer.cancel()
        return self.scope.__exit__(*exc_info)  # type: ignore[arg-type]
