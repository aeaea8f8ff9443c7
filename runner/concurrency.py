"""How many streams at once: fixed, or adapted to what the server bears. Pure: `now` is passed in.

Adaptive: slow start (doubling each clean round, a round being as many successes as the limit) until the first cut;
then +5 % a clean round; ×0.8 on an episode of throttling. It grows only while at least 80 % of it is in use, so that an
idle run doesn't earn room that it never tried. It never falls below 1: a probe always goes on.
"""

from __future__ import annotations

from typing import Final, Protocol

from runner.limits import AUTO_CONCURRENCY_MAX, AUTO_CONCURRENCY_START

GROWTH: Final = 0.05
CUT: Final = 0.8
USE_TO_GROW: Final = 0.8


class Concurrency(Protocol):
    """Decides the number of slots."""

    @property
    def limit(self) -> int:
        """Slots as of now, at least 1."""

    def succeeded(self, in_flight: int) -> None:
        """An answer came with a good status while so many were in flight, itself included."""

    def throttled(self) -> None:
        """An episode of throttling began; called once an episode."""


class FixedConcurrency:
    """What the user said."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def succeeded(self, in_flight: int) -> None:
        """Changes nothing."""

    def throttled(self) -> None:
        """Changes nothing: the cool-down alone slows the run."""


class AdaptiveConcurrency:
    """See the module."""

    def __init__(self, start: int = AUTO_CONCURRENCY_START, maximum: int = AUTO_CONCURRENCY_MAX) -> None:
        self.limit = start
        self._maximum = maximum
        self._clean = 0
        self._cut_once = False

    def succeeded(self, in_flight: int) -> None:
        """Counts towards the round; a full round grows the limit."""
        if in_flight < USE_TO_GROW * self.limit:
            return
        self._clean += 1
        if self._clean >= self.limit:
            self._clean = 0
            step = max(1, int(self.limit * GROWTH)) if self._cut_once else self.limit
            self.limit = min(self.limit + step, self._maximum)

    def throttled(self) -> None:
        """Cuts by a fifth, at least by one."""
        self._cut_once = True
        self._clean = 0
        self.limit = max(1, min(self.limit - 1, int(self.limit * CUT)))
