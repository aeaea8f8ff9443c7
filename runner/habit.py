"""Servers that refuse every job so many times and then take it. Pure.

Stand-ins for an API do so in tests of retries, and caches that warm up. Such refusals come in great numbers, whatever
the rate: what decides is how often the job was sent before. It is seen by the numbers of the attempts: none that was
taken is as low as one that was refused. A server that has a limit, or is overloaded, takes some first attempts.
"""

from __future__ import annotations

import math
from typing import Final

SURE: Final = 3
"""Attempts taken, and as many refused, before it is believed."""


class Habit:
    """See the module. Attempts of a job count from 0."""

    def __init__(self) -> None:
        self._taken_from: float = math.inf
        self._refused_to = -1
        self._taken = self._refused = 0

    def took(self, attempt: int) -> None:
        """The server took a job's attempt of this number."""
        self._taken += 1
        if attempt < self._taken_from:
            self._taken_from = attempt

    def refused(self, attempt: int) -> None:
        """It refused one."""
        self._refused += 1
        self._refused_to = max(attempt, self._refused_to)

    @property
    def explains(self) -> bool:
        """Whether that is what all refusals were."""
        return min(self._taken, self._refused) >= SURE and self._taken_from > self._refused_to
