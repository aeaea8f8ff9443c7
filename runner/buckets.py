"""An allowance of so many a minute, on aiolimiter's leaky bucket.

Two facts shape it. `AsyncLimiter(60, 60)` admits 119 in its worst 60 s, so the period is scaled down to the burst; and
burst plus 60 s at the long-run rate must not exceed the limit, so the rate is 119/120 of it:
burst limit/120 + 60 s × limit/60 × 119/120 = limit. Below 120 a minute the burst is one request, and the spacing of
60.5/limit seconds keeps every half-open window at or under the limit.

aiolimiter refuses amounts above its capacity and knows no refund. So amounts are paid in pieces, and a balance beside
the bucket holds what was given back (credit) or used beyond the reservation (debt); the next payment takes it first.
Credit is bounded, or a mass of refunds would become a flood.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from aiolimiter import AsyncLimiter

from runner.limits import BURST_S

SAFETY: Final = 1 - BURST_S / 60
"""The part of the allowance that the bucket refills with; the burst is the rest."""
PIECES: Final = 10
"""A burst is paid in so many pieces, so that a refund that comes while the head of the queue pays counts at once."""
WINDOW_S: Final = 60


class Bucket:
    """One allowance. `acquire` is for one waiter at a time: aiolimiter serves several by size, not by order."""

    def __init__(self, per_minute: float, clock: Callable[[], float]) -> None:
        self.per_minute = per_minute
        self.burst = max(1.0, per_minute * BURST_S / 60)
        self._rate_per_s = per_minute / 60 * SAFETY
        self._limiter = AsyncLimiter(self.burst, self.burst / self._rate_per_s)
        self._balance = 0.0
        self._largest = self.burst
        self._clock = clock
        self._bins: deque[tuple[int, float]] = deque()

    async def acquire(self, amount: float) -> None:
        """Waits until `amount` is paid. Cancelled, it gives back what was paid so far."""
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
        except BaseException:
            self.give_back(paid)
            raise
        self._count(amount)

    def give_back(self, amount: float) -> None:
        """A refund; negative is a debt."""
        self._balance = min(self._balance + amount, self._largest)

    def correct(self, amount: float) -> None:
        """A refund or debt that also corrects what `used` reports."""
        self.give_back(amount)
        self._count(-amount)

    def _count(self, amount: float) -> None:
        second = int(self._clock())
        if self._bins and self._bins[-1][0] == second:
            self._bins[-1] = (second, self._bins[-1][1] + amount)
        else:
            self._bins.append((second, amount))
        self._forget(second)

    def _forget(self, second: int) -> None:
        while self._bins and self._bins[0][0] <= second - WINDOW_S:
            self._bins.popleft()

    @property
    def used(self) -> float:
        """Net use in the last 60 s, to a second's precision."""
        self._forget(int(self._clock()))
        return max(0.0, sum(amount for _, amount in self._bins))
