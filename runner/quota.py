"""An allowance over a long window (a day): spent as fast as asked for, then waited for. No bursts to bound here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import anyio


class Quota:
    """See the module. Used as a `Bucket` is.

    Kept in bins of a hundredth of the window, so that it costs no memory; what has left the window is free again.
    A refund counts as of now: it outlives what it refunds by the duration of a job, minutes of a day, and a bin is
    kept longer than that.
    """

    def __init__(self, limit: float, clock: Callable[[], float], *, window_s: float = 86_400.0) -> None:
        self.limit = limit
        self._clock = clock
        self._bin_s = window_s / 100
        self._bins: deque[list[float]] = deque()  # [number of the bin, amount]
        self._eased = anyio.Event()

    @property
    def used(self) -> float:
        """In the window that ends now, to a hundredth of it."""
        oldest = self._clock() / self._bin_s - 101
        while self._bins and self._bins[0][0] <= oldest:
            self._bins.popleft()
        return max(0.0, sum(amount for _, amount in self._bins))

    @property
    def free(self) -> float:
        """The part of the allowance that is unspent as of now, 0 to 1."""
        return max(0.0, 1 - self.used / self.limit)

    async def acquire(self, amount: float) -> None:
        """Waits until the window has room for `amount`."""
        while (wait_s := self.opens_in(amount)) > 0:
            self._eased = anyio.Event()
            with anyio.move_on_after(wait_s):
                await self._eased.wait()
        self.correct(-amount)

    def has(self, amount: float) -> bool:
        """Whether there is room for `amount` now."""
        return self.opens_in(amount) <= 0

    def pay(self, amount: float) -> None:
        """Takes what `has` said is there."""
        self.correct(-amount)

    def opens_in(self, amount: float) -> float:
        """Seconds until there may be room for `amount`, if nothing is given back; 0 is now."""
        if self.used + amount <= self.limit or not self._bins:
            return 0.0
        return (self._bins[0][0] + 101) * self._bin_s - self._clock() + 1e-3

    def correct(self, amount: float, paid_s: float | None = None) -> None:
        """A refund; negative is a use."""
        number = float(int(self._clock() / self._bin_s))
        if not self._bins or self._bins[-1][0] != number:
            self._bins.append([number, 0.0])
        self._bins[-1][1] -= amount
        self._eased.set()
