"""A rate for servers that refuse requests but don't name their limits. Pure but for the clock it is given.

What it does, by what the server does:
- It refuses nothing: slow start, START_PER_S doubling every second, and after seven seconds no rate at all.
- It has a limit: slow start meets it with a few requests too many and not with hundreds. A refusal that comes alone
  shows nothing yet; several of the last answers do (`chance`). Then the rate is what the server bore, less BACK_OFF.
  From there it comes back along a cubic, as TCP's congestion control does (CUBIC, RFC 9438): quickly at first, hardly
  at all about the rate that failed, then faster. One refusal there begins the next cycle: one of 100 to 200 requests.
- Its limit rises: AGAIN above the rate that failed, that isn't the limit any more, and the doubling goes on.
- Its limit falls: the same as when it was met, but no cut is deeper than half.
- It refuses by chance, whatever the rate: what it bore is a lower bound, so what it refuses below that is chance's
  share, and so much is left to its attempts from then on. The rate was cut for nothing and goes on growing from above
  where it was. A limit is still seen by what it refuses beyond that share.
- It asks to slow down (slow_down, above a million input tokens a minute): half as much again in 15 minutes, which is
  what the API's guide to errors asks for. That is a request and no guess.

What the server bore: a bucket that holds one second's worth lets at most limit × (w + 1 s) through in w seconds. So
what any stretch of the last seconds shows is a lower bound, and the highest of them, just after a refusal, a close one
(as BBR takes the highest delivery rate of late). All steps are in proportion, for limits from 60 to 30,000 a minute.
Less than that second, with FEW requests in it, shows nothing: a server whose Retry-After is the milliseconds to its
next request has nothing saved up then, and refuses one that comes a little early. Such a refusal is only waited for.

Time in which something else held the requests back counts for neither (`sent`): a rate that nobody sent at was not
borne, and the slots that open at last would all be used at once.

Accepted: a lane that has sent nothing for minutes and is refused at once takes the pause for the server's slowness; the
cubic makes up for it in a minute or two. A server that saves up a whole minute's worth shows no rate before it is used
up. Of a limit of a few requests a minute most that is sent is refused: the cool-down's probes, seconds apart.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final

from runner.chance import Chance

START_PER_S: Final = 20.0
ENOUGH_PER_S: Final = 2_000.0
"""One process sends no faster: a higher rate holds nothing back."""
BACK_OFF: Final = 0.08
"""The part of what the server bore that is given up. TCP gives up 0.3 (RFC 9438), to drain a queue; here is none."""
BACK: Final = 25.0
"""So many requests it takes to come back to the rate that failed the first time…"""
MAX_BACK: Final = 100.0
"""…twice as many the next time, as the estimate gets better, and so many at most: one of them is refused, or two…"""
BACK_S: Final = 3.0
MAX_BACK_S: Final = 40.0
"""…but so many seconds at least and at most."""
AGAIN: Final = 1.1
"""So far above the rate that failed the limit is another one: the search goes on from there."""
AGAIN_AT: Final = 1 + ((AGAIN - 1) / BACK_OFF) ** (1 / 3)
"""…which the cubic reaches after so many times the way back."""
AHEAD_S: Final = 2.0
"""Where only chance cut the rate, the search is so much further on: it cost a pause, and time to find out."""
DEEPEST: Final = 0.5
"""No cut goes below this part of the rate that failed before: what was borne in a short while is a loose bound. (TCP's
deepest is the same, RFC 5681.)"""
SAVED_S: Final = 1.0
"""A server may have saved up so much of its allowance when it begins to be used."""
RAMP: Final = math.log(1.5) / 900
"""Growth a second after slow_down."""
GROWTH_S: Final = 86_400.0
"""A day without a refusal frees any rate, even FLOOR_PER_S; to reckon with more would overflow a float."""
MEMORY_S: Final = 10.0
"""What the server bore is remembered this long, in bins of BIN_S."""
BIN_S: Final = 0.25
FEW: Final = 8
"""Fewer than so many requests, within SAVED_S of a cut, show no rate."""
IN_USE: Final = 0.25
"""At this part of its rate it is in use: requests come in bursts, and slots open in steps."""
FIRST: Final = 10
"""A refusal among so few answers shows no rate the first time: servers wake up, and keys become valid."""
CATCH_UP_S: Final = 0.05
"""It makes up for what a late timer lost, up to this."""
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
        self._next_s = 0.0  # when the next one is due
        self._back_s = BACK_S
        self._back = BACK
        self._bins: deque[list[float]] = deque()  # [start of the bin, requests accepted], since the last cut
        self._cut_s = -math.inf
        self._bore_since = False  # since the last refusal
        self._chance = Chance()
        self._free = False
        self._pardoned = False  # one of the first answers was a refusal
        self._known = False

    # ── What happens ─────────────────────────────────────────────────────────────────────────────────────────────

    def know(self) -> None:
        """The limits are known: nothing is to be found out."""
        self._known = True

    def sent(self) -> None:
        """A request is sent: what it leaves unused of the time since the last one is no time to grow in."""
        now, per_s = self._clock(), self.per_s
        sparse_s = 1 / (IN_USE * per_s)
        unused_s = now - self._sent_s - self._in_use_s
        self._sent_s = now
        if unused_s <= 0:
            self._in_use_s = min(sparse_s - unused_s, max(1.0, sparse_s))
        else:
            self._in_use_s = sparse_s
            if self._since_s is not None and not self._gently:
                self._since_s = max(self._since_s, min(self._since_s + unused_s, now))
                per_s = self.per_s
        self._next_s = max(self._next_s, now - CATCH_UP_S) + 1 / per_s

    def bore(self) -> None:
        """A request was accepted."""
        now, bins = self._clock(), self._bins
        self._chance.answered(accepted=True, below=self._is_below(now))
        if not bins or now - bins[-1][0] >= BIN_S:
            bins.append([now, 0.0])
            while bins[0][0] < now - MEMORY_S:
                bins.popleft()
        bins[-1][1] += 1
        self._bore_since = True

    def refused(self) -> None:
        """A request was refused, whether or not an episode begins with it."""
        now, unexpected = self._clock(), self._chance.share == 0
        # Where nothing was borne since the last one, it is no question of the rate.
        below = self._bore_since and self._has_settled(now) and self._is_below(now)
        self._chance.answered(accepted=False, below=below)
        if unexpected and self._chance.share > 0 and not self._gently:
            self._free = True
            self._since_s = now - AGAIN_AT * self._back_s - AHEAD_S

    def exceeded(self, wait_s: float, *, gently: bool = False, since_s: float | None = None) -> None:
        """Requests were refused, from `since_s` on (None: now); nothing is sent for `wait_s`."""
        now = self._clock()
        early = self.is_new and not self._pardoned and not gently
        self._pardoned |= early
        self._chance.begin_anew()
        # Refused at once, nothing borne: that is no question of the rate either, and waiting is the cool-down's.
        if self._bore_since and not early and self._has_settled(now):
            self._give_way(now if since_s is None else since_s)
            self._bins.clear()
            self._cut_s = now
        self._bore_since = False
        self._gently = gently
        self._since_s = now + wait_s

    def _give_way(self, refused_s: float) -> None:
        least = max(FLOOR_PER_S, DEEPEST * (self._failed or 0.0))
        self._failed = max(least, min(self.per_s, ENOUGH_PER_S, self._borne(refused_s)))
        self._back_s = min(max(self._back / self._failed, BACK_S), MAX_BACK_S)
        self._back = min(2 * self._back, MAX_BACK)
        self._free = self._known = False

    def set_free(self) -> None:
        """Refusals have nothing to do with the rate: none holds anything back until they show one."""
        self._free, self._failed, self._back = True, None, BACK
        self._since_s = self._clock() - GROWTH_S

    # ── What follows ─────────────────────────────────────────────────────────────────────────────────────────────

    def opens_in(self, now_s: float) -> float:
        """Seconds until the next request may go; 0 is now."""
        if self._known or self.per_s == math.inf or now_s >= self._next_s:
            return 0.0
        return self._next_s - now_s

    @property
    def searching(self) -> bool:
        """Whether nothing has been refused yet: the start is slow because nobody named a limit."""
        return self._failed is None

    @property
    def is_new(self) -> bool:
        """Whether too few answers have come for a refusal to be the exception."""
        return self._failed is None and self._chance.answers < FIRST

    @property
    def is_free(self) -> bool:
        """Whether refusals were found to have nothing to do with the rate, and no limit was met since."""
        return self._free

    @property
    def expects_refusal(self) -> bool:
        """Whether the rate that failed, or the start that failed at once, is being tried again."""
        return self._pardoned if self._failed is None else not self._is_below(self._clock())

    def excuses(self, many: int) -> bool:
        """Whether the last refusal needn't mean anything: neither `many` came lately, nor was the limit to be met."""
        expected = self._failed is not None and self._chance.share == 0 and not self._is_below(self._clock())
        return not expected and self._chance.explains(many)

    def _is_below(self, now: float) -> bool:
        """Whether the rate hasn't come back yet to the one that failed."""
        return self._failed is not None and self._since_s is not None and now - self._since_s < self._back_s

    def _has_settled(self, now: float) -> bool:
        """Whether enough happened since the last cut for a refusal to say something of the rate."""
        return now - self._cut_s >= SAVED_S or sum(accepted for _, accepted in self._bins) >= FEW

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
        if self._known:
            return math.inf
        if self._since_s is None:
            self._since_s = self._clock()
        elapsed = min(max(0.0, self._clock() - self._since_s), GROWTH_S)
        if self._failed is None:
            rate = START_PER_S * 2 ** min(elapsed, 60.0)
        elif self._gently:
            rate = self._failed * (1 - BACK_OFF) * math.exp(RAMP * elapsed)
        else:
            again_s = elapsed - AGAIN_AT * self._back_s
            if again_s > 0:
                rate = self._failed * AGAIN * 2 ** min(again_s, 60.0)
            else:
                rate = self._failed * (1 + BACK_OFF * (elapsed / self._back_s - 1) ** 3)
        return max(rate, FLOOR_PER_S) if rate < ENOUGH_PER_S else math.inf
