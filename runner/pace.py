"""A rate for servers that refuse requests but don't name their limits. Pure but for the clock it is given.

Until refusals show a limit it only holds back the start: START_PER_S, doubling every second, so that the limit is met
by a few requests too many and not by a hundred. One refusal that comes alone shows nothing yet (`excuses`): several of
the last RECENT do. They make it a limit: what the server is known to bear, less BACK_OFF. A bucket that holds one
second's worth lets at most limit × (w + 1 s) through in w seconds, so what any stretch of the last seconds shows is a
lower bound, and the highest of them, just after a refusal, a close one.

From there it comes back along a cubic (as TCP's congestion control does, RFC 9438): quickly at first, hardly at all
about the rate that failed, then ever faster, and a tenth above it the search goes on, for the limit may have risen. So
a server refuses little, and seldom: one or two of some 200 requests. All steps are in proportion, for limits from 60 to
30,000 a minute.

Time in which something else held the requests back counts for neither (`sent`): a rate that nobody sent at was not
borne, and the slots that open at last would all be used at once.

What was borne is a lower bound, so below it a server with a limit refuses nothing, unless the limit was lowered, once.
Refusals that come there again and again have nothing to do with the rate (an overloaded backend, a proxy in front of
several): they are left to their attempts, and the rate is given free for a while; unless that gets much more refused
than before, for then it was a limit that had been lowered several times.

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
BACK: Final = 25.0
"""So many requests it takes to come back to the rate that failed the first time…"""
MAX_BACK: Final = 100.0
"""…twice as many the next time, as the estimate gets better, and so many at most: one of them is refused, or two…"""
BACK_S: Final = 3.0
MAX_BACK_S: Final = 40.0
"""…but so many seconds at least and at most."""
AGAIN: Final = 1.1
"""So far above the rate that failed the limit is another one: the search goes on from there."""
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
LEAST: Final = 0.5
"""The rate stays above this part of the best throughput yet…"""
FADE: Final = 0.8
"""…which fades so much with every refusal."""
IGNORE_S: Final = 60.0
"""How long the rate is given free then."""
IN_VAIN: Final = 0.25
"""…unless so large a part of what is sent then is refused…"""
REMEMBERED: Final = 400
"""…of about so many lately…"""
IN_VAIN_COUNT: Final = 10
"""…of so many refusals at least…"""
WORSE: Final = 2.0
"""…and so many times the part that was refused before: a limit refuses more the faster one sends, chance doesn't."""
ALL: Final = 0.9
"""Of what is refused at that part, nobody can tell the reason."""
RECENT: Final = 20
"""Of the last so many answers…"""
ALONE: Final = 3
"""…so many refusals show a limit, while nothing is known…"""
MANY: Final = 4
"""…and so many that a server that calls itself overloaded means all that we send."""
ENOUGH: Final = 10
"""A 429 that comes earlier than this begins a pause even so, though it shows no rate the first time."""
IN_A_ROW: Final = 8
"""So many in a row aren't chance, even where chance refuses a third (once in 7,000 requests)."""
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
        self._back = BACK
        self._bins: deque[list[float]] = deque()  # [start of the bin, requests accepted]
        self._best = 0.0  # throughput, in requests a second
        self._contradictions = 0
        self._ignore_until_s = -math.inf
        self._freed = [0, 0]  # accepted and refused since the rate was given free
        self._tried = [0, 0]  # …and while that was found out
        self._recent: deque[bool] = deque(maxlen=RECENT)  # whether it was accepted
        self._in_a_row = 0  # refusals
        self._pardoned = False  # one of the first answers was a refusal
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
        self._tried[0] += 1
        if self._freed[0] > REMEMBERED:  # what is refused lately must count
            self._freed = [count // 2 for count in self._freed]
        self._recent.append(True)
        self._in_a_row = 0
        now = self._clock()
        if not self._bins or now - self._bins[-1][0] >= BIN_S:
            self._bins.append([now, 0.0])
            while self._bins[0][0] < now - MEMORY_S:
                self._bins.popleft()
        self._bins[-1][1] += 1

    def refused(self) -> None:
        """A request was refused, whether or not an episode begins with it."""
        if -math.inf < self._ignore_until_s <= self._clock() and not self._free_in_vain:
            self._ignore_until_s = self._clock() + IGNORE_S  # it went well at any rate, and will go on
        self._freed[1] += 1
        self._tried[1] += 1
        self._recent.append(False)
        self._in_a_row += 1

    @property
    def is_free(self) -> bool:
        """Whether refusals were found to have nothing to do with the rate."""
        return self._clock() < self._ignore_until_s

    @property
    def expects_refusal(self) -> bool:
        """Whether the rate that failed, or the start that failed at once, is being tried again."""
        return self._pardoned if self._failed is None else not self._is_below

    def excuses(self, many: int) -> bool:
        """Whether the last refusal needn't mean anything, since it isn't one of so many lately."""
        if self._in_a_row >= IN_A_ROW:
            return False
        if self.is_free:
            return not self._free_in_vain
        few = self._recent.count(False) < many
        if self._is_below and few:
            self._contradictions += 1
            if self._contradictions >= CONTRADICTIONS:
                self.set_free()
            return True
        return self._failed is None and few and (many >= MANY or len(self._recent) >= ENOUGH)

    @property
    def _is_below(self) -> bool:
        """Whether the rate hasn't come back yet to the one that failed."""
        return self._failed is not None and self._since_s is not None and self._clock() - self._since_s < self._back_s

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
        if self.is_free and not gently and not self._free_in_vain:
            return
        early = self._failed is None and not self._pardoned and len(self._recent) < ENOUGH and not gently
        self._pardoned |= early
        self._recent.clear()
        # Refused at once, nothing borne: that is no question of the rate either, and waiting is the cool-down's.
        if self._bins and not early:
            self._give_way(gently, now if since_s is None else since_s)
        self._bins.clear()
        self._gently = gently
        self._since_s = now + wait_s

    def _give_way(self, gently: bool, refused_s: float) -> None:
        contradicted = not gently and self._contradicted()
        self._best = max(FADE * self._best, self._throughput())
        if contradicted:
            self.set_free()
        else:
            least = max(FLOOR_PER_S, LEAST * self._best)
            failed = max(least, min(self.per_s, ENOUGH_PER_S, self._borne(refused_s)))
            self._back_s = min(max(self._back / failed, BACK_S), MAX_BACK_S)
            self._back = min(2 * self._back, MAX_BACK)
            self._failed = failed
            self._ignore_until_s = -math.inf
        self._known = False

    def set_free(self) -> None:
        """Refusals have nothing to do with the rate."""
        self._ignore_until_s = self._clock() + IGNORE_S
        self._freed = [0, 0]
        self._failed, self._back = None, BACK
        self._contradictions = 0

    @property
    def _free_in_vain(self) -> bool:
        accepted, refused = self._freed
        accepted_before, refused_before = self._tried
        share = max(IN_VAIN, min(ALL, WORSE * refused_before / max(1, accepted_before + refused_before)))
        return refused >= IN_VAIN_COUNT and refused > share * (accepted + refused)

    def _contradicted(self) -> bool:
        """Whether this refusal, below what was borne, is one too many."""
        # Chance lets a long time pass now and then: one that doesn't contradict takes back half of them.
        self._contradictions = self._contradictions + 1 if self._is_below else self._contradictions // 2
        if self._contradictions == 0:
            self._tried = [0, 0]
        return self._contradictions >= CONTRADICTIONS

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
            again_s = elapsed - self._back_s * (1 + ((AGAIN - 1) / BACK_OFF) ** (1 / 3))
            if again_s > 0:
                rate = self._failed * AGAIN * 2 ** min(again_s, 60.0)
            else:
                rate = self._failed * (1 + BACK_OFF * (elapsed / self._back_s - 1) ** 3)
        return max(rate, FLOOR_PER_S) if rate < ENOUGH_PER_S else math.inf
