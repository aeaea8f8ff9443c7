"""Circuit breaker of one endpoint of several. Pure: the time is passed in.

FAILURES attempts in a row that failed by the server's or the network's fault open it: jobs go to other endpoints. After
a while it is half-open, and one job goes as a probe: if it succeeds the breaker closes, if it fails the while doubles.
A probe that ends in neither (cancelled, refused for its own sake) leaves it half-open, so that it can't freeze.

Source: M. Nygard, "Release It!", Circuit Breaker.
"""

from __future__ import annotations

import math
from typing import Final

FAILURES: Final = 5
"""In a row. At one failure in five, which retries take care of, this happens once in 3,000 attempts."""
OPEN_S: Final = 1.0
"""How long it is open the first time."""
OPEN_MAX_S: Final = 60.0
"""…doubling up to this: an endpoint that comes back is noticed within a minute."""


class Breaker:
    """See the module."""

    def __init__(self) -> None:
        self._failed_in_row = 0
        self._opened_s = OPEN_S
        self._until_s = -math.inf  # open until then
        self._probe: object | None = None
        self.closed = True
        """Whether jobs go there as usual."""

    def opens_in(self, now_s: float) -> float:
        """Seconds until a job may go there; 0 is now, inf while its probe is under way."""
        if self.closed:
            return 0.0
        return math.inf if self._probe is not None else max(0.0, self._until_s - now_s)

    def sent(self, attempt: object) -> None:
        """A job goes there: while it isn't closed, as the probe."""
        if not self.closed and self._probe is None:
            self._probe = attempt

    def succeeded(self, attempt: object) -> bool:
        """An attempt ended well; True if that closed it.

        Of those that were sent before it opened none does: what works is found out by a probe.
        """
        if not self.closed and attempt is not self._probe:
            return False
        closes, self.closed = not self.closed, True
        self._failed_in_row, self._opened_s, self._probe = 0, OPEN_S, None
        return closes

    def failed(self, attempt: object, now_s: float) -> bool:
        """An attempt failed by the endpoint's fault; True if that opened it, or opened it again."""
        if not self.closed:
            if attempt is not self._probe:
                return False
            self._opened_s = min(2 * self._opened_s, OPEN_MAX_S)
        else:
            self._failed_in_row += 1
            if self._failed_in_row < FAILURES:
                return False
        self.closed, self._probe = False, None
        self._until_s = now_s + self._opened_s
        return True

    def ended(self, attempt: object) -> None:
        """An attempt is over, however it ended."""
        if attempt is self._probe:
            self._probe = None
