"""An allowance of so many a minute, on aiolimiter's leaky bucket, and what the server says is left of it.

Two facts shape it. `AsyncLimiter(60, 60)` admits 119 in its worst 60 s, so the period is scaled down to the burst; and
burst plus 60 s at the long-run rate must not exceed the limit, so the rate is 119/120 of it:
burst limit/120 + 60 s × limit/60 × 119/120 = limit. Below 120 a minute the burst is one request, and the spacing of
60.5/limit seconds keeps every half-open window at or under the limit.

aiolimiter refuses amounts above its capacity and knows no refund. So amounts are paid in pieces, and a balance beside
the bucket holds what was given back (credit) or used beyond the reservation (debt); the next payment takes it first.
Credit is bounded, or a mass of refunds would become a flood.

What is larger than a second's worth goes when that is paid, and owes the rest: a server that allows one second's worth
saves no more than that either, and after a large request it is in debt for as long as we are.

Credit lets more through than the bucket does, so the minute itself is a second bound: what was admitted in the last
60 s, each amount as reserved until its real use is known and as used from then on, debts as of when they are known.
While that is above the limit, and credit has a part in it, nobody is admitted. So no window of 60 s is above the limit
and one admission, whatever comes back and when; a payment that has left the window brings no credit, and pays off a
debt at most.

The server's own count (its headers) is a third bound, never a replacement: others may use the same key, and a server
that charges the reservation up front gives nothing back. All must have room.

Accepted: what runs counts in full. Jobs of d seconds that use the part u of what they reserved reach u × 60 /
(d + u × (60 - d)) of the limit, net, where that is less than the bucket gives: a tenth of it 96 % at 0.3 s, 40 % at
10 s. More can't be promised to stay within the limit, for they might use it all; a closer reservation is the remedy.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Final

import anyio
from aiolimiter import AsyncLimiter

from runner.limits import BURST_S

SAFETY: Final = 1 - BURST_S / 60
"""The part of the allowance that the bucket refills with; the burst is the rest."""
PIECES: Final = 2
"""A burst is paid in so many pieces: a timer that is late by less than one loses nothing of the allowance."""
WINDOW_S: Final = 60
MOST_OWED_MIN: Final = 10.0
"""The longest answer there is, 384 k tokens, is 13 minutes' worth of the lowest tier's 30,000 a minute."""
LEAST_PER_MINUTE: Final = 1e-6
"""One in two years: a lower limit is none at all, and what is divided by it would overflow."""
BEYOND: Final = 1.25
"""A server that has saved up a whole minute lets more through, but only once."""
JITTER_S: Final = 0.1
"""What a second's worth or more owes beyond its size, where the server is strict: it comes when the server is full, so
nothing is left to make up for a network that is slower for this request than for the next."""
_SAME: Final = 1e-3
"""Limits that differ by less are the same."""
_BIN_S: Final = 0.125
"""A window is kept in bins of this: what it forgets late costs 0.2 % of the allowance, less than SAFETY leaves."""
_GRAIN: Final = 1024
"""Amounts are paid in multiples of a 1,024th, which floats add exactly. aiolimiter compares amount - capacity + level
with zero in one place and level + amount with the capacity in another; where rounding makes them disagree it asks
again without a pause, which on a clock that stands still is for ever."""


class Bucket:
    """One allowance. `acquire` is for one waiter at a time: aiolimiter serves several by size, not by order."""

    def __init__(self, per_minute: float, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._balance = 0.0
        self._credited_s = -math.inf  # when credit was last taken
        self._use = Sliding(clock)
        self._owed = 0.0  # of what was larger than a second's worth, as of when it went
        self._owed_at = clock()
        self.careful = False
        """Whether the server refused what should have been within its limit."""
        self._reserved = Sliding(clock)
        self._since_s = clock()
        self._eased = anyio.Event()
        self._paying: anyio.CancelScope | None = None  # cancelled when there is credit: that comes first
        self._server: dict[str, _ServerCount] = {}
        self._set(per_minute)
        self._largest = self.burst

    def _set(self, per_minute: float) -> None:
        self.per_minute = max(per_minute, LEAST_PER_MINUTE)
        self.burst = max(1.0, _grains(self.per_minute * BURST_S / 60))
        self.rate_per_s = self.per_minute / 60 * SAFETY
        self._second = max(1.0, self.per_minute / 60)  # what is paid before it goes; the rest is owed
        self._limiter = AsyncLimiter(self.burst, self.burst / self.rate_per_s)

    def resize(self, per_minute: float) -> None:
        """Another limit from now on. A new bucket begins empty: what was saved under the old limit doesn't count.

        What was used under the old one counts in proportion, or a lower limit would stop everything for a while.
        """
        if abs(per_minute - self.per_minute) <= _SAME * self.per_minute:
            return
        before = self.per_minute
        self._drain()
        self._set(per_minute)
        self._use.scale(self.per_minute / before)
        self._reserved.scale(self.per_minute / before)
        self._balance = min(self._balance, -self.burst)
        self._eased.set()

    def per_s(self, amount: float) -> float:
        """Admissions a second of so much each that it lets through for long."""
        return self.per_minute / 60 / max(1.0, amount)

    # ── Paying ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def acquire(self, amount: float) -> None:
        """Waits until `amount` is paid, and the server has so much left. Cancelled, it gives back what was paid."""
        self._largest = max(self._largest, amount)
        at_once = min(amount, self._second)
        paid = 0.0
        if amount > 0:
            await self._pay_off()
        try:
            while (due := _grains(at_once - paid)) > 0:
                if self._balance:
                    taken = min(self._balance, due)  # a debt is negative: it adds to what is due
                    self._balance -= taken
                    paid += taken
                    if taken > 0:
                        self._credited_s = self._clock()
                    continue
                with anyio.CancelScope() as self._paying:
                    piece = min(due, max(1.0, _grains(self.burst / PIECES)))
                    await self._limiter.acquire(piece)
                    paid += piece
            await self._within_the_minute(amount, at_once)
            for count in list(self._server.values()):
                await count.take(amount)
        except BaseException:
            self.give_back(paid)
            raise
        if amount > at_once:
            margin = JITTER_S * self.per_minute / 60 if self.careful else 0.0
            self._owed, self._owed_at = amount - at_once + margin, self._clock()
            self._credited_s = self._clock()
        self._use.add(amount)
        self._reserved.add(amount)

    def has(self, amount: int) -> bool:
        """Whether `acquire` would have nothing to wait for, and no debt to see to: then `pay` does the same."""
        if self._owed > 0.0 or self._balance < 0.0 or amount > self._second:
            return False
        credit = min(self._balance, amount)
        due = amount - credit
        return (
            due <= self.burst
            and self._limiter.has_capacity(due)
            and not self._is_full(amount, amount, self._clock() if credit > 0 else self._credited_s)
            and not (self._server and any(count.lacks(amount) for count in self._server.values()))
        )

    def pay(self, amount: int) -> None:
        """Pays what `has` said is there."""
        credit = min(self._balance, amount)
        if credit > 0:
            self._balance -= credit
            self._credited_s = self._clock()
        if amount > credit:
            _at_once(self._limiter.acquire(amount - credit))
        for count in self._server.values():
            count.pay(amount)
        if amount > self._largest:
            self._largest = amount
        self._use.add(amount)
        self._reserved.add(amount)

    async def _pay_off(self) -> None:
        """Waits until what a large one owes is paid; time pays it, whether anybody waits or not."""
        while (owed := self._still_owed) > 0:
            self._eased = anyio.Event()
            with anyio.move_on_after(max(owed / self.rate_per_s, 1e-3)):
                await self._eased.wait()
        self._drain()

    def went(self) -> None:
        """What was paid last is sent now, after a wait for other limits: so long it owed nothing to the server."""
        if self._owed > 0:
            self._owed_at = self._clock()

    def _drain(self) -> None:
        """The bucket has refilled from nothing meanwhile, though from below nothing was due."""
        if self._owed > 0:
            refilled = self.rate_per_s * (self._clock() - self._owed_at)
            self._balance -= _grains(min(self.burst, refilled) - min(self.burst, refilled - self._owed))
            self._owed = 0.0

    @property
    def _still_owed(self) -> float:
        return max(0.0, self._owed - self.rate_per_s * (self._clock() - self._owed_at))

    async def _within_the_minute(self, amount: float, at_once: float) -> None:
        while self._is_full(amount, at_once, self._credited_s):
            self._eased = anyio.Event()
            with anyio.move_on_after(self._use.changes_in_s):
                await self._eased.wait()

    def _is_full(self, amount: float, at_once: float, credited_s: float) -> bool:
        """Whether the last 60 s hold more than the limit. Where nothing went on credit, the bucket has seen to that."""
        if amount <= at_once and self._clock() - credited_s > WINDOW_S + _BIN_S:
            return False
        room = self.per_minute + max(0.0, self.burst - amount) - (at_once if amount > at_once else 0.0)
        return self._use.total > room

    def give_back(self, amount: float) -> None:
        """A refund of what never was admitted; negative is a debt, bounded: a broken counter must not stop a run."""
        if amount > 0 and self._still_owed > 0:
            off = min(amount, self._still_owed)
            self._owed -= off
            amount -= off
            self._eased.set()
        owed = MOST_OWED_MIN * self.per_minute
        self._balance = _grains(max(min(self._balance + amount, self._largest), -owed))
        if self._balance > 0 and self._paying is not None:
            self._paying.cancel()

    def correct(self, amount: float, paid_s: float | None = None) -> None:
        """A refund of what was admitted at `paid_s` (None: just now), or a debt; it also corrects what `used` reports.

        What has left the window by now is no credit: the server has forgotten it as well. It pays off a debt.
        """
        if amount < 0:
            debt = min(-amount, MOST_OWED_MIN * self.per_minute)
            self._use.add(debt)
            self.give_back(-debt)
            return
        counted = self._use.take_back(amount, self._clock() if paid_s is None else paid_s)
        self.give_back(max(counted, min(amount, self._still_owed - self._balance)))
        self._eased.set()

    # ── The server's view ────────────────────────────────────────────────────────────────────────────────────────

    def observe(
        self, remaining: float, *, age_s: float, taken_since: float, per_minute: float | None = None, of: str = ""
    ) -> None:
        """The server said what was left: `age_s` ago at most, and `taken_since` was admitted after that.

        `of` names the limit where the server counts several that all must have room, each with its own `per_minute`.
        """
        limit = self.per_minute if per_minute is None else max(per_minute, LEAST_PER_MINUTE)
        rate = limit / 60
        # A second's worth below zero at most: what was taken since may have been counted by the server already.
        level = max(remaining + rate * age_s - taken_since, -rate)
        self._server.setdefault(of, _ServerCount(self._clock)).set(level, limit)

    @property
    def used(self) -> float:
        """Net use in the last 60 s, to a fraction of a second; what was used under another limit in proportion."""
        return self._use.total

    @property
    def lives_on_refunds(self) -> bool:
        """Whether more was reserved lately than a server lets through that gives nothing back."""
        minutes = min(1.0, (self._clock() - self._since_s) / WINDOW_S)
        return self._reserved.total > self.burst + BEYOND * self.per_minute * minutes

    @property
    def free(self) -> float:
        """The part of a minute's allowance that is unspent as of now, 0 to 1, by our count and by the server's."""
        return max(0.0, min(1 - self.used / self.per_minute, *(count.free for count in self._server.values()), 1.0))


def _at_once(paying: Coroutine[Any, Any, None]) -> None:
    """Runs what has nothing to wait for, without a task."""
    for _ in paying.__await__():
        raise AssertionError("it waits")


def _grains(amount: float) -> float:
    return math.floor(amount * _GRAIN) / _GRAIN


class Sliding:
    """A sum over the last WINDOW_S, kept in bins; what is in it is never forgotten early."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._bins: OrderedDict[float, float] = OrderedDict()  # by number, the oldest first
        self._latest = -math.inf  # number of the bin in which it was looked through last
        self._sum = 0.0

    def add(self, amount: float) -> None:
        """Counts it as of now."""
        number = self._clock() // _BIN_S
        if number != self._latest:  # else what was let in since then is younger
            self._forget(number)
        self._bins[number] = self._bins.get(number, 0.0) + amount
        self._sum += amount

    def take_back(self, amount: float, at_s: float) -> float:
        """Takes back what was added at `at_s`, or last before it; returns how much of it was still counted."""
        self._forget(self._clock() // _BIN_S)
        missing, number, oldest = amount, at_s // _BIN_S, next(iter(self._bins), math.inf)
        while missing > 0 and number >= oldest:
            taken = min(missing, self._bins.get(number, 0.0))
            if taken > 0:
                self._bins[number] -= taken
                missing -= taken
            number -= 1
        self._sum -= amount - missing
        return amount - missing

    def scale(self, factor: float) -> None:
        """Everything in it counts `factor` times from now on."""
        for number in self._bins:
            self._bins[number] *= factor
        self._sum = sum(self._bins.values())

    def _forget(self, number: float) -> None:
        """Drops what has left the window, which ends in the bin of this number."""
        self._latest, bins = number, self._bins
        oldest = number - WINDOW_S / _BIN_S  # part of this one may be younger than the window
        if bins and next(iter(bins)) < oldest:
            while bins and next(iter(bins)) < oldest:
                bins.popitem(last=False)
            self._sum = sum(bins.values())  # so that no rounding error outlives its bin

    @property
    def total(self) -> float:
        """Never below zero."""
        number = self._clock() // _BIN_S
        if number != self._latest:
            self._forget(number)
        return max(0.0, self._sum)

    @property
    def changes_in_s(self) -> float:
        """When the oldest bin will be forgotten; inf when it is empty."""
        if not self._bins:
            return math.inf
        return max(1e-3, (next(iter(self._bins)) + 1) * _BIN_S + WINDOW_S - self._clock())


class _ServerCount:
    """What the server has left, as of its last word, plus what has come since at its rate, less what we took."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._limit = 1.0
        self._level = 0.0
        self._at = clock()
        self._changed = anyio.Event()

    def set(self, level: float, per_minute: float) -> None:
        self._level, self._at, self._limit = level, self._clock(), per_minute
        self._changed.set()
        self._changed = anyio.Event()

    async def take(self, amount: float) -> None:
        """Waits until it is there: a minute at most, when any limit of a minute is full again, whatever was said."""
        end = self._clock() + WINDOW_S
        while (missing := amount - self._now()) > 0 and (left_s := end - self._clock()) > 0:
            with anyio.move_on_after(min(max(missing * 60 / self._limit, 1e-3), left_s)):
                await self._changed.wait()
        self.pay(amount)

    def lacks(self, amount: float) -> bool:
        """Whether it would have to be waited for."""
        return amount > self._now()

    def pay(self, amount: float) -> None:
        """Takes it, as far as it is there."""
        self._level = max(0.0, self._now() - amount)
        self._at = self._clock()

    def _now(self) -> float:
        return min(self._limit, self._level + (self._clock() - self._at) * self._limit / 60)

    @property
    def free(self) -> float:
        """The part of it that is left, 0 to 1."""
        return max(0.0, self._now() / self._limit)
