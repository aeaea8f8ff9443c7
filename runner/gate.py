"""Slots and limits that several lanes share: those of one endpoint, and round them those of the whole run.

A lane's head enters when its own limits are paid; here it is first come, first served again, one at a time: a slot is
free → its tokens are paid → its request is paid. With several endpoints each has a gate of its own, and what holds for
the whole run stands in the gate round them (`outer`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio

from runner.buckets import Bucket
from runner.concurrency import Concurrency
from runner.wakeup import Wakeup

if TYPE_CHECKING:
    from runner.lanes import Lane


class Gate:
    """The last door before sending. All methods are for one event loop."""

    def __init__(
        self,
        *,
        rpm: float | None,
        tpm: float | None,
        concurrency: Concurrency,
        clock: Callable[[], float],
        outer: Gate | None = None,
    ) -> None:
        self.requests = None if rpm is None else Bucket(rpm, clock)
        self.tokens = None if tpm is None else Bucket(tpm, clock)
        self.concurrency = concurrency
        self.outer = outer
        limits = tpm, None if outer is None else outer.token_limit
        self.token_limit: float | None = min((limit for limit in limits if limit is not None), default=None)
        """The lowest limit of tokens a minute for what passes here."""
        self.in_flight = 0
        self.blocked: defaultdict[str, float] = outer.blocked if outer is not None else defaultdict(float)
        """Seconds that heads of lanes waited, by what for; one for all gates of a run."""
        self._clock = clock
        self._turn = anyio.Lock(fast_acquire=True)
        self._changed = Wakeup()
        self._lanes: dict[Lane, None] = {}  # that wait for a slot, in order
        self._offered: set[Lane] = set()  # that one is free for

    @property
    def knows_requests(self) -> bool:
        """Whether the endpoint's limit of requests is known. The run's own says nothing of what an endpoint bears."""
        return self.requests is not None

    @property
    def load(self) -> float:
        """The part that is in use of its slots or limits, whichever is used more: 0 to 1, where somebody pays."""
        if self._turn.locked():
            return 1.0
        return max(
            self.in_flight / self.concurrency.limit,
            *(1 - bucket.free for bucket in (self.requests, self.tokens) if bucket is not None),
            0.0,
        )

    @property
    def has_room(self) -> bool:
        """Whether a slot is free."""
        return self.in_flight < self.concurrency.limit and (self.outer is None or self.outer.has_room)

    @property
    def lives_on_refunds(self) -> bool:
        """Whether more tokens were reserved than a server lets through that gives nothing back."""
        return self.tokens is not None and self.tokens.lives_on_refunds

    def be_careful(self) -> None:
        """The server refused what should have been within its limits."""
        if self.tokens is not None:
            self.tokens.careful = True

    def bucket(self, name: str) -> Bucket | None:
        """Its own limit, "rpm" or "tpm"."""
        return self.requests if name == "rpm" else self.tokens

    def per_s(self, tokens: int) -> float | None:
        """Requests a second of so many tokens that its own limits let through; None where it has none."""
        limits = (self.requests, 1), (self.tokens, tokens)
        return min((bucket.per_s(each) for bucket, each in limits if bucket is not None), default=None)

    async def enter(self, tokens: int) -> float:
        """Takes a slot and pays for one request of so many tokens; returns how long it waited for limits.

        Cancelled, it has taken nothing.
        """
        async with self._turn:
            await self._slot()
            self.in_flight += 1
            paid: list[Bucket] = []
            try:
                waited = await self._pay(tokens, paid)
                if self.outer is not None:
                    waited += await self.outer.enter(tokens)
            except BaseException:
                for bucket in paid:
                    bucket.correct(1 if bucket is self.requests else tokens)
                self.in_flight -= 1
                self.wake()
                raise
            if self.tokens is not None:
                self.tokens.went()
            return waited

    def is_free_for(self, tokens: int) -> bool:
        """Whether `enter` would have nothing to wait for: then `enter_now` does the same."""
        return (
            not self._turn.locked()
            and self.in_flight < self.concurrency.limit
            and (self.tokens is None or self.tokens.has(tokens))
            and (self.requests is None or self.requests.has(1))
            and (self.outer is None or self.outer.is_free_for(tokens))
        )

    def enter_now(self, tokens: int) -> None:
        """Takes what `is_free_for` said is free."""
        self.in_flight += 1
        if self.tokens is not None:
            self.tokens.pay(tokens)
        if self.requests is not None:
            self.requests.pay(1)
        if self.outer is not None:
            self.outer.enter_now(tokens)

    async def _slot(self) -> None:
        start = self._clock()
        while self.in_flight >= self.concurrency.limit:
            self._changed.forget()
            await self._changed.wait(math.inf)
        self.blocked["concurrency"] += self._clock() - start

    async def _pay(self, tokens: int, paid: list[Bucket]) -> float:
        waited = 0.0
        for what, bucket, amount in (("tokens", self.tokens, tokens), ("requests", self.requests, 1)):
            if bucket is not None:
                waited += await self.timed(what, bucket.acquire(amount))
                paid.append(bucket)
        return waited

    def leave(self) -> None:
        """Gives the slot back."""
        self.in_flight -= 1
        self.wake()
        if self.outer is not None:
            self.outer.leave()

    def wake(self) -> None:
        """A slot is free, or there may be more of them."""
        self._changed.ring()
        if self._lanes:
            self._offer()

    def correct(self, tokens: int, paid_s: float) -> None:
        """Gives tokens back that were paid at a time; negative takes what is missing."""
        if self.tokens is not None:
            self.tokens.correct(tokens, paid_s)
        if self.outer is not None:
            self.outer.correct(tokens, paid_s)

    def unpay(self, tokens: int) -> None:
        """What has just been paid wasn't sent: gives back its tokens and its request."""
        if self.tokens is not None:
            self.tokens.correct(tokens)
        if self.requests is not None:
            self.requests.correct(1)
        if self.outer is not None:
            self.outer.unpay(tokens)

    # ── Lanes that wait for a slot before they take anybody: one after the other, as they came ─────────────────────

    def open_to(self, lane: Lane) -> bool:
        """Whether a slot is free for it: one that was offered to it, or one that nobody waits for."""
        return self._has_one_for(lane) and (self.outer is None or self.outer.open_to(lane))

    def _has_one_for(self, lane: Lane) -> bool:
        free = self.in_flight + len(self._offered) < self.concurrency.limit
        return (free and not self._lanes) or lane in self._offered

    def when_open(self, lane: Lane) -> None:
        """Wakes the lane when a slot is free and it is its turn."""
        if self._has_one_for(lane):
            # It is the gate round this one that has none. Kept meanwhile: whoever else comes here would wait there too.
            self._offered.add(lane)
            assert self.outer is not None
            self.outer.when_open(lane)
        else:
            self._lanes.setdefault(lane)
            if self.outer is not None:
                self.outer.decline(lane)  # the run's slots are for who can use them now

    def decline(self, lane: Lane) -> None:
        """The lane doesn't wait any more for the slot that it may have been offered."""
        self._offered.discard(lane)
        if self._lanes:
            self._offer()
        if self.outer is not None:
            self.outer.decline(lane)

    def _offer(self) -> None:
        while self._lanes and self.in_flight + len(self._offered) < self.concurrency.limit:
            lane = next(iter(self._lanes))
            del self._lanes[lane]
            self._offered.add(lane)
            lane.wake()

    async def timed(self, what: str, waiting: Awaitable[None]) -> float:
        """Counts how long something is waited for."""
        start = self._clock()
        try:
            await waiting
        finally:
            waited = self._clock() - start
            self.blocked[what] += waited
        return waited
