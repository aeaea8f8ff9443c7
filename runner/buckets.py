"""An allowance of so many a minute, on aiolimiter's leaky bucket, and what the server says is left of it.

Two facts shape it. `AsyncLimiter(60, 60)` admits 119 in its worst 60 s, so the period is scaled down to the burst; and
burst plus 60 s at the long-run rate must not exceed the limit, so the rate is 119/120 of it:
burst limit/120 + 60 s × limit/60 × 119/120 = limit. Below 120 a minute the burst is one request, and the spacing of
60.5/limit seconds keeps every half-open window at or under the limit.

aiolimiter refuses amounts above its capacity and knows no refund. So amounts are paid in pieces, and a balance beside
the bucket holds what was given back (credit) or used beyond the reservation (debt); the next payment takes it first.
Credit is bounded, or a mass of refunds would become a flood.

The server's own count (its headers) is a second bound beside ours, never a replacement: others may use the same key,
and a server that charges the reservation up front gives nothing back. Both must have room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import anyio
from aiolimiter import AsyncLimiter

from runner.limits import BURST_S

SAFETY: Final = 1 - BURST_S / 60
"""The part of the allowance that the bucket refills with; the burst is the rest."""
PIECES: Final = 10
"""A burst is paid in so many pieces, so that a refund that comes while the head of the queue pays counts at once."""
WINDOW_S: Final = 60
MOST_OWED_MIN: Final = 10.0
"""The longest answer there is, 384 k tokens, is 13 minutes' worth of the lowest tier's 30,000 a minute."""
_SAME: Final = 1e-3
"""Limits that differ by less are the same."""


class Bucket:
    """One allowance. `acquire` is for one waiter at a time: aiolimiter serves several by size, not by order."""

    def __init__(self, per_minute: float, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._balance = 0.0
        self._use = Sliding(clock)
        self._server: _ServerCount | None = None
        self._set(per_minute)
        self._largest = self.burst

    def _set(self, per_minute: float) -> None:
        self.per_minute = per_minute
        self.burst = max(1.0, per_minute * BURST_S / 60)
        self.rate_per_s = per_minute / 60 * SAFETY
        self._limiter = AsyncLimiter(self.burst, self.burst / self.rate_per_s)

    def resize(self, per_minute: float) -> None:
        """Another limit from now on. A new bucket begins empty: what was saved under the old limit doesn't count."""
        if abs(per_minute - self.per_minute) <= _SAME * self.per_minute:
            return
        self._set(per_minute)
        self._balance = min(self._balance, -self.burst)

    # ── Paying ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def acquire(self, amount: float) -> None:
        """Waits until `amount` is paid, and the server has so much left. Cancelled, it gives back what was paid."""
        self._largest = max(self._largest, amount)
        paid = 0.0
        try:
            while (due := amount - paid) > 0:
                if self._balance:
                    taken = min(self._balance, due)  # a debt is negative: it adds to what is due
                    self._balance -= taken
                    paid += taken
                    continue
                piece = min(due, self.burst if self.burst <= 1 else max(1.0, self.burst / PIECES))
                await self._limiter.acquire(piece)
                paid += piece
            if self._server is not None:
                await self._server.take(amount)
        except BaseException:
            self.give_back(paid)
            raise
        self._use.add(amount)

    def give_back(self, amount: float) -> None:
        """A refund; negative is a debt, bounded: a broken counter must not stop a run."""
        owed = MOST_OWED_MIN * self.per_minute
        self._balance = max(min(self._balance + amount, self._largest), -owed)

    def correct(self, amount: float) -> None:
        """A refund or debt that also corrects what `used` reports."""
        self.give_back(amount)
        self._use.add(-amount)

    # ── The server's view ────────────────────────────────────────────────────────────────────────────────────────

    def observe(self, remaining: float, *, age_s: float, taken_since: float) -> None:
        """The server said what was left: `age_s` ago at most, and `taken_since` was admitted after that."""
        if self._server is None:
            self._server = _ServerCount(self._clock)
        rate = self.per_minute / 60
        # A second's worth below zero at most: what was taken since may have been counted by the server already.
        self._server.set(max(remaining + rate * age_s - taken_since, -rate), rate)

    @property
    def used(self) -> float:
        """Net use in the last 60 s, to a second's precision."""
        return self._use.total


class Sliding:
    """A sum over the last seconds, kept by the second."""

    def __init__(self, clock: Callable[[], float], window_s: int = WINDOW_S) -> None:
        self._clock = clock
        self._window_s = window_s
        self._bins: deque[tuple[int, float]] = deque()

    def add(self, amount: float) -> None:
        """Counts it as of now."""
        second = int(self._clock())
        if self._bins and self._bins[-1][0] == second:
            self._bins[-1] = (second, self._bins[-1][1] + amount)
        else:
            self._bins.append((second, amount))
        self._forget(second)

    def _forget(self, second: int) -> None:
        while self._bins and self._bins[0][0] <= second - self._window_s:
            self._bins.popleft()

    @property
    def total(self) -> float:
        """Never below zero, though a refund may come later than what it refunds was forgotten."""
        self._forget(int(self._clock()))
        return max(0.0, sum(amount for _, amount in self._bins))


class _ServerCount:
    """What the server has left, as of its last word, plus what has come since at its rate, less what we took."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._level = 0.0
        self._at = clock()
        self._rate = 1.0
        self._changed = anyio.Event()

    def set(self, level: float, rate_per_s: float) -> None:
        self._level, self._at, self._rate = level, self._clock(), rate_per_s
        self._changed.set()
        self._changed = anyio.Event()

    async def take(self, amount: float) -> None:
        """Waits until it is there: a minute at most, since no limit is asked for more than it gives in one."""
        while (missing := amount - self._now()) > 0:
            with anyio.move_on_after(max(missing / self._rate, 1e-3)):
                await self._changed.wait()
        self._level = self._now() - amount
        self._at = self._clock()

    def _now(self) -> float:
        return self._level + (self._clock() - self._at) * self._rate


class Quota:
    """An allowance over a long window (a day): spent as fast as asked for, then waited for. No bursts to bound here.

    Kept in bins of a hundredth of the window, so that it costs no memory; what has left the window is free again.
    """

    def __init__(self, limit: float, clock: Callable[[], float], *, window_s: float = 86_400.0) -> None:
        self.limit = limit
        self._clock = clock
        self._bin_s = window_s / 100
        self._bins: deque[list[float]] = deque()  # [number of the bin, amount]

    @property
    def used(self) -> float:
        """In the window that ends now, to a hundredth of it."""
        oldest = self._clock() / self._bin_s - 101
        while self._bins and self._bins[0][0] <= oldest:
            self._bins.popleft()
        return sum(amount for _, amount in self._bins)

    async def acquire(self, amount: float) -> None:
        """Waits until the window has room for `amount`."""
        while self.used + amount > self.limit and self._bins:  # noqa: ASYNC110 - nothing but time changes it
            await anyio.sleep((self._bins[0][0] + 101) * self._bin_s - self._clock() + 1e-3)
        self.correct(-amount)

    def correct(self, amount: float) -> None:
        """A refund; negative is a use."""
        number = float(int(self._clock() / self._bin_s))
        if not self._bins or self._bins[-1][0] != number:
            self._bins.append([number, 0.0])
        self._bins[-1][1] -= amount
