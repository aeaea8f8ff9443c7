"""A rate for servers that refuse requests but don't name their limits. Pure but for the clock it is given.

Until the first 429 it only holds back the start: START_PER_S, doubling every second, so that an unknown limit is met by
one request too many and not by a hundred. A 429 makes it a limit: what the server is known to bear, less BACK_OFF. A
bucket that holds one second's worth lets at most limit × (w + 1 s) through in w seconds, so what any stretch of the
last seconds shows is a lower bound, and the highest of them, just after a refusal, a close one.

From there it comes back along a cubic (as TCP's congestion control does, RFC 9438): quickly at first, hardly at all
about the rate that failed, then ever faster, for the limit may have risen. So a server refuses little, and seldom. All
steps are in proportion, for limits from 60 to 30,000 a minute.

Time in which something else held the requests back counts for neither (`sent`): a rate that nobody sent at was not
borne, and the slots that open at last would all be used at once.

What was borne is a lower bound, so below it a server with a limit refuses nothing, unless the limit was lowered, once.
Refusals that come there again and again have nothing to do with the rate (an overloaded backend, a proxy in front of
several): they are left to the cool-down, and the rate is given free for a while; unless that gets most of what is sent
refused, for then it was a limit that had been lowered several times.

After a slow_down above a million input tokens a minute the growth is what the API asks for, half as much again in 15
minutes (its guide to errors). That is a request and no guess, so nothing contradicts it.

Accepted: a lane that has sent nothing for minutes and is refused at once takes the pause for the server's slowness; the
cubic makes up for it in a minute or two.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final

START_PER_S: Final = 20.0
ENOUGH_PER_S: Final = 2_000.0
"""One process sends no faster: a higher rate holds nothing back."""
BACK_OFF: Final = 0.08
"""The part of what the server bore that is given up."""
BACK_S: Final = 10.0
MAX_BACK_S: Final = 40.0
"""How long it takes to come back to the rate that failed: longer with every refusal, as the estimate gets better."""
SAVED_S: Final = 1.0
"""A server may have saved up so much of its allowance when it begins to be used."""
RAMP: Final = math.log(1.5) / 900
"""Growth a second after slow_down."""
GROWTH_S: Final = 86_400.0
"""A day without a refusal frees any rate, even FLOOR_PER_S; to reckon with more would overflow a float."""
MEMORY_S: Final = 10.0
"""What the server bore is remembered this long, in bins of BIN_S."""
BIN_S: Final = 0.25
IN_USE: Final = 0.25
"""At this part of its rate it is in use: requests come in bursts, and slots open in steps."""
CONTRADICTIONS: Final = 3
"""So many refusals below what was borne: the rate isn't their reason."""
LEAST: Final = 0.25
"""The rate stays above this part of the best throughput yet…"""
FADE: Final = 0.8
"""…which fades so much with every refusal."""
IGNORE_S: Final = 60.0
"""How long the rate is given free then."""
IN_VAIN: Final = 0.25
"""…unless so large a part of what is sent then is refused…"""
IN_VAIN_COUNT: Final = 10
"""…of so many refusals at least."""
FLOOR_PER_S: Final = 1 / 30
"""Two requests a minute: a probe always goes on."""


class Pace:
    """The rate of one lane's requests."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since_s: float | None = None  # the start, or the end of the last refusal
        self._failed: float | None = None  # the rate that was refused last
        self._gently = False
        self._sent_s = clock()
        self._in_use_s = 0.0  # from the last request on
        self._back_s = BACK_S
        self._bins: deque[list[float]] = deque()  # [start of the bin, requests accepted]
        self._best = 0.0  # throughput, in requests a second
        self._contradictions = 0
        self._ignore_until_s = -math.inf
        self._freed = [0, 0]  # accepted and refused since the rate was given free
        self._known = False

    def know(self) -> None:
        """The limits are known: nothing is to be found out."""
        self._known = True

    @property
    def searching(self) -> bool:
        """Whether nothing has been refused yet: the start is slow because nobody named a limit."""
        return self._failed is None

    def bore(self) -> None:
        """A request was accepted."""
        self._freed[0] += 1
        now = self._clock()
        if not self._bins or now - self._bins[-1][0] >= BIN_S:
            self._bins.append([now, 0.0])
            while self._bins[0][0] < now - MEMORY_S:
                self._bins.popleft()
        self._bins[-1][1] += 1

    def refused(self) -> None:
        """A request was refused, whether or not an episode begins with it."""
        self._freed[1] += 1

    def sent(self) -> None:
        """A request is sent: what it leaves unused of the time since the last one is no time to grow in."""
        now = self._clock()
        unused_s = max(0.0, now - self._sent_s) - self._in_use_s
        self._in_use_s = min(max(0.0, -unused_s) + 1 / (IN_USE * self.per_s), max(1.0, 1 / (IN_USE * self.per_s)))
        self._sent_s = now
        if unused_s > 0 and self._since_s is not None and not self._gently:
            self._since_s = max(self._since_s, min(self._since_s + unused_s, now))

    def exceeded(self, wait_s: float, *, gently: bool = False, since_s: float | None = None) -> None:
        """Requests were refused, from `since_s` on (None: now); nothing is sent for `wait_s`."""
        now = self._clock()
        if now < self._ignore_until_s and not gently and not self._free_in_vain:
            return
        # Refused at once, nothing borne: that is no question of the rate either, and waiting is the cool-down's.
        if self._bins:
            self._give_way(gently, now if since_s is None else since_s)
        self._gently = gently
        self._since_s = now + wait_s

    def _give_way(self, gently: bool, refused_s: float) -> None:
        contradicted = not gently and self._contradicted()
        self._best = max(FADE * self._best, self._throughput())
        if contradicted:
            self._ignore_until_s = self._clock() + IGNORE_S
            self._freed = [0, 0]
            self._failed, self._back_s = None, BACK_S
        else:
            least = max(FLOOR_PER_S, LEAST * self._best)
            failed = max(least, min(self.per_s, ENOUGH_PER_S, self._borne(refused_s)))
            if self._failed is not None:
                self._back_s = min(2 * self._back_s, MAX_BACK_S)
            self._failed = failed
            self._ignore_until_s = -math.inf
        self._known = False
        self._bins.clear()

    @property
    def _free_in_vain(self) -> bool:
        accepted, refused = self._freed
        return refused >= IN_VAIN_COUNT and refused > IN_VAIN * (accepted + refused)

    def _contradicted(self) -> bool:
        """Whether this refusal, below what was borne, is one too many."""
        below = self._failed is not None and self._since_s is not None and self._clock() - self._since_s < self._back_s
        # Chance lets a long time pass now and then: one that doesn't contradict takes back half of them.
        self._contradictions = self._contradictions + 1 if below else self._contradictions // 2
        if self._contradictions < CONTRADICTIONS:
            return False
        self._contradictions = 0
        return True

    def _throughput(self) -> float:
        """Since the bins were cleared, in requests a second."""
        elapsed = self._clock() - self._bins[0][0] if self._bins else 0.0
        return sum(accepted for _, accepted in self._bins) / max(elapsed, 1.0)

    def _borne(self, now: float) -> float:
        """The most that a stretch up to then shows the server to bear, in requests a second."""
        count, best = 0.0, 0.0
        for start, accepted in reversed(self._bins):
            count += accepted
            best = max(best, count / (max(0.0, now - start) + SAVED_S))
        return best

    @property
    def per_s(self) -> float:
        """Requests a second as of now; inf where nothing holds them back."""
        if self._known or self._clock() < self._ignore_until_s:
            return math.inf
        if self._since_s is None:
            self._since_s = self._clock()
        elapsed = min(max(0.0, self._clock() - self._since_s), GROWTH_S)
        if self._failed is None:
            rate = START_PER_S * 2 ** min(elapsed, 60.0)
        elif self._gently:
            rate = self._failed * (1 - BACK_OFF) * math.exp(RAMP * elapsed)
        else:
            rate = self._failed * (1 + BACK_OFF * (elapsed / self._back_s - 1) ** 3)
        return max(rate, FLOOR_PER_S) if rate < ENOUGH_PER_S else math.inf
