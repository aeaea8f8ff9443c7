"""How many streams at once: fixed, or adapted to what the server bears. Pure: the time is passed in.

Adaptive: ×0.8 on an episode of throttling; slow start, doubling each clean round; +5 % a clean round once the server
has shown that it refuses streams. One episode doesn't show that: mostly it is the rate that was refused, which is cut
by others (`lanes`), and with answers of half a minute to go on by twentieths would take hours. A second one soon after
does. It grows only while at least 80 % of it is in use, so that an idle run doesn't earn room that it never tried. It
never falls below 1: a probe always goes on. Where a limit of the server's is known, slow start begins with the streams
that it takes to use that limit (`begin_with`): the limit keeps the server from harm, not the start.

A server that never sends 429 just gets slower: then throughput is the signal. Each step of the slow start has to bring
at least a quarter of what it would bring at an unladen server, in chunks a second over all streams. One that doesn't is
measured again; if it still doesn't, it is taken back, and a smaller step is tried now and then.

What is measured has to be even. Streams that began together end together, so a stretch of time holds one burst of short
answers more or less: a round lasts until every slot has begun another answer, so many times the same, or until the
streams have brought many chunks each.
"""

from __future__ import annotations

import math
from typing import Final, Protocol

from runner.limits import AUTO_CONCURRENCY_MAX, AUTO_CONCURRENCY_START

GROWTH: Final = 0.05
CUT: Final = 0.8
SOON_S: Final = 60.0
"""Two episodes within this aren't chance."""
QUIET_S: Final = 5.0
"""Slow start goes on so long after a cut: by then a second one would have come."""
USE_TO_GROW: Final = 0.8
KNOWN_S: Final = 10.0
"""How long an answer may last for its limit, where that is known, to be used from the start; longer ones take steps."""
ROUND_S: Final = 0.5
"""A step's throughput is measured over at least this long."""
EVEN: Final = 10
"""Chunks of each stream that make a measurement even, whenever it began."""
WORTH: Final = 0.25
"""The part of its ideal gain that a step must bring to be kept."""
PROBE: Final = 1.25
"""The step that is tried again after one was taken back."""
HOLD_S: Final = 20.0
"""How long to stay before that; it doubles each time in vain."""
MAX_HOLD_S: Final = 600.0


class Concurrency(Protocol):
    """Decides the number of slots."""

    @property
    def limit(self) -> int:
        """Slots as of now, at least 1."""

    def answered(self, in_flight: int, now_s: float) -> bool:
        """An answer came with a good status while so many were in flight, itself included.

        Whether that gave more slots.
        """

    def received(self, chunks: int, in_flight: int, now_s: float) -> bool:
        """So many chunks came, a whole answer counting as one. Whether that gave more slots."""

    def throttled(self, now_s: float) -> None:
        """An episode of throttling began; called once an episode."""

    def acquitted(self) -> None:
        """The episodes of late had nothing to do with what was sent."""

    def begin_with(self, per_s: float) -> bool:
        """Known limits let so many requests a second through. Whether that gave more slots."""


class FixedConcurrency:
    """What the user said."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def answered(self, in_flight: int, now_s: float) -> bool:
        """Changes nothing."""
        return False

    def received(self, chunks: int, in_flight: int, now_s: float) -> bool:
        """Changes nothing."""
        return False

    def throttled(self, now_s: float) -> None:
        """Changes nothing: the cool-down alone slows the run."""

    def acquitted(self) -> None:
        """Changes nothing."""

    def begin_with(self, per_s: float) -> bool:
        """Changes nothing."""
        return False


class AdaptiveConcurrency:
    """See the module."""

    def __init__(self, start: int = AUTO_CONCURRENCY_START, maximum: int = AUTO_CONCURRENCY_MAX) -> None:
        self.limit = start
        self._maximum = maximum
        self._work = 0  # chunks so far
        self._cut_s: float | None = None  # when it was cut last
        self._by_twentieths = False
        self._before_cuts = start
        """Slots before the first of those cuts of which each came soon after the one before."""
        self._before: tuple[int, float] | None = None
        """Limit and throughput of the round before, where this round is a step that has to be worth it."""
        self._unanswered = start
        """Slots that this round opened and that nothing was heard of yet; till then it isn't measured."""
        self._answers = 0  # while it was in use
        self._measured_from: tuple[float, int] | None = None  # (time, work) once all slots of the round have answered
        self._doubted = False  # the step didn't seem worth it the first time
        self._hold_until_s = 0.0
        self._hold_s = HOLD_S

    def begin_with(self, per_s: float) -> bool:
        """Opens the slots that this takes at once, while nothing has shown that the server doesn't bear them."""
        limit = min(math.ceil(per_s * KNOWN_S), self._maximum)
        if limit <= self.limit or self._cut_s is not None or self._hold_until_s > 0.0:
            return False
        self._step(limit)
        return True

    def answered(self, in_flight: int, now_s: float) -> bool:
        """Counts towards the round; a full round that was worth it opens the next."""
        self._unanswered -= 1
        before = self.limit
        if self._is_in_use(in_flight):
            self._answers += 1
            self._look(now_s)
        return self.limit > before

    def received(self, chunks: int, in_flight: int, now_s: float) -> bool:
        """The same: where answers last for minutes, their chunks are what makes a round."""
        self._work += chunks
        before = self.limit
        if self._is_in_use(in_flight):
            self._look(now_s)
        return self.limit > before

    def _is_in_use(self, in_flight: int) -> bool:
        """Whether what comes now says something of this limit: of more than that, it says nothing yet."""
        return USE_TO_GROW * self.limit <= in_flight <= self.limit

    def _look(self, now_s: float) -> None:
        if self._by_twentieths:
            if self._answers >= self.limit:
                self._step(min(self.limit + max(1, int(self.limit * GROWTH)), self._maximum))
            return
        if self._cut_s is not None and now_s - self._cut_s < QUIET_S:
            return
        if self._measured_from is None:
            # Some of them may never be used: limits or other lanes keep them free.
            if self._unanswered <= (1 - USE_TO_GROW) * self.limit:
                self._measure(now_s)
            return
        since_s, work = self._measured_from
        turned_over = self._answers > 0 and self._answers % self.limit == 0
        if (turned_over or self._work - work >= EVEN * self.limit) and now_s - since_s >= ROUND_S:
            self._conclude(now_s, (self._work - work) / (now_s - since_s))

    def _measure(self, now_s: float) -> None:
        self._measured_from = (now_s, self._work)
        self._answers = 0

    def _conclude(self, now_s: float, rate: float) -> None:
        if self._before is not None and not self._worth_it(rate):
            if self._doubted:
                self._take_back(self._before[0], now_s)
            else:
                self._doubted = True
                self._measure(now_s)
        elif now_s >= self._hold_until_s and self.limit < self._maximum:
            factor = 2.0 if self._hold_until_s == 0.0 else PROBE
            limit, before = min(max(self.limit + 1, int(self.limit * factor)), self._maximum), (self.limit, rate)
            self._step(limit)
            self._before = before
        else:
            self._step(self.limit)

    def _take_back(self, limit: int, now_s: float) -> None:
        self._hold_until_s = now_s + self._hold_s
        self._hold_s = min(2 * self._hold_s, MAX_HOLD_S)
        self._step(limit)

    def _worth_it(self, rate: float) -> bool:
        assert self._before is not None
        limit, rate_before = self._before
        return rate >= rate_before * (1 + WORTH * (self.limit / limit - 1))

    def _step(self, limit: int) -> None:
        self._unanswered = limit - self.limit
        self._answers = 0
        self._measured_from = None
        self._doubted = False
        self._before = None
        self.limit = limit

    def throttled(self, now_s: float) -> None:
        """Cuts by a fifth, at least by one."""
        again = self._cut_s is not None and now_s - self._cut_s <= SOON_S
        if not again:
            self._before_cuts = self.limit
        self._by_twentieths |= again
        self._cut_s = now_s
        self._step(max(1, min(self.limit - 1, int(self.limit * CUT))))

    def acquitted(self) -> None:
        """Takes the cuts of late back, and goes on with the slow start."""
        self._by_twentieths = False
        self._cut_s = None
        self._step(max(self.limit, self._before_cuts))
