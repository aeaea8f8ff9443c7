"""One limit group: the jobs of one model (or family) in line, its buckets, its cool-down, what was learned of it.

Only the head of a lane waits for anything, in this order: the cool-down is over → a slot of the lane is free → its
tokens are paid → its request is paid → the run's own gate → it goes. So nobody is overtaken within a lane, a big job
gets in behind small ones after its own payment and no later, and aiolimiter has one waiter. Waiting costs no CPU.

After a 429 the lane stops for as long as the server says (or a doubling default). Then one probe goes; the rest stay
until it is answered. A probe that meets another 429 begins the next cool-down, one that ends otherwise lets the rest
go: it can't freeze.

Limits come from the configuration and from the server's headers; where nobody names them, a pace finds out what the
server bears. A header lowers a limit at once and raises it when several answers agree; it never raises it above the
configuration.

Accepted: a lane's head pays before it waits for a slot of the run, so one job a lane may be paid for early.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio

from runner.buckets import Bucket, Quota, Sliding
from runner.pace import Pace
from runner.ratelimits import Allowance, RateLimits
from runner.tickets import BY_NAME, MEASURES, AdmissionClosed, Measure, Need, NeverFits, Ticket

if TYPE_CHECKING:
    from runner.gate import Gate
    from runner.outcome import Usage
    from runner.settings import ModelLimits

COOLDOWN_START_S: Final = 1.0
"""The first cool-down where the server names none; it doubles for each probe that meets another 429."""
COOLDOWN_MAX_S: Final = 60.0
"""…up to a minute, the longest window that a per-minute limit can need. The server's own advice may be longer."""
RAISE_AFTER: Final = 3
"""So many answers in a row must name a higher limit before it is believed."""
FIRST_STREAMS: Final = 4
"""Streams at once until the first answer shows whether the server names its limits, where nobody else does."""
FIRST_WAIT_S: Final = 2.0
"""…but no longer than this: a slow model answers in minutes, and its headers may come with its first token."""
NO_REFUNDS_S: Final = 300.0
"""How long after a 429 nothing is given back: a server that charges up front doesn't either."""
RAMP_ABOVE_TPM: Final = 1_000_000
"""Input tokens a minute above which slow_down asks for a slow ramp (the API's guide to errors)."""
CATCH_UP_S: Final = 0.05
"""A pace makes up for what a late timer lost, up to this."""


@dataclass(slots=True, eq=False)
class _Waiter:
    need: Need
    limited_before_s: float
    since_s: float
    turn: asyncio.Future[Ticket]


class Lane:
    """See the module. All methods are for one event loop."""

    def __init__(self, name: str, limits: ModelLimits, gate: Gate, clock: Callable[[], float]) -> None:
        self.name = name
        self._gate = gate
        self._clock = clock
        self._configured = limits
        self.buckets: dict[str, Bucket | Quota] = {}
        for measure in MEASURES:
            limit = getattr(limits, measure.name)
            if limit is not None:
                self.buckets[measure.name] = (
                    Bucket(limit, clock) if measure.window_s == 60 else Quota(limit, clock, window_s=measure.window_s)
                )
        self._queue: deque[_Waiter] = deque()
        self.in_flight = 0
        self._admitted = 0
        self._admitted_tokens = 0
        self._changed = anyio.Event()
        self.cool_until = 0.0
        self._cool_next_s = COOLDOWN_START_S
        self._probing = False  # the cool-down is over, and its probe isn't answered yet
        self._probe: Ticket | None = None
        self._answered = False
        self._higher: dict[str, int] = {}  # answers in a row that named a higher limit
        self._pace = Pace(clock)
        self._paced_until = 0.0
        self._no_refunds_until_s = -math.inf
        self._first_s = math.inf
        """When the first attempt was admitted."""
        self._limited_s = 0.0
        """How long heads of this lane have waited for limits and cool-downs."""
        self._episode_s = -math.inf
        self._input = Sliding(clock)
        if "rpm" in self.buckets or gate.requests is not None:
            self._pace.know()

    # ── For workers ──────────────────────────────────────────────────────────────────────────────────────────────

    def refuse_what_never_fits(self, need: Need) -> None:
        """Raises NeverFits where one job needs more than a whole window gives."""
        for measure, bucket in self._limits():
            amount = measure.of(need)
            limit = bucket.limit if isinstance(bucket, Quota) else bucket.per_minute
            if amount > limit and amount > 1:
                window = "a day" if isinstance(bucket, Quota) else "a minute"
                raise NeverFits(f"needs about {amount:g} tokens, and the limit is {limit:g} {window}")

    async def acquire(self, need: Need) -> Ticket:
        """Waits for this attempt's turn.

        Raises:
            AdmissionClosed: the run drains.
        """
        waiter = _Waiter(need, self._limited_s, self._clock(), asyncio.get_running_loop().create_future())
        self._queue.append(waiter)
        self.wake()
        try:
            return await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is None:
                # Granted and cancelled in the same step of the loop.
                ticket = waiter.turn.result()
                self.settle(ticket, Need(0, 0))
                self.release(ticket)
            else:
                # It stays in the queue until its turn comes, and is passed over then.
                waiter.turn.cancel()
                self.wake()
                self._gate.wake()
            raise

    def settle(self, ticket: Ticket, used: Usage | Need | None) -> None:
        """Gives back what was reserved beyond the real usage, or takes what is missing. None: the estimate stands."""
        if ticket.settled:
            return
        ticket.settled = True
        if used is None:
            return
        need, real = ticket.need, Need(used.input_tokens, used.output_tokens)
        refunds = self._clock() >= self._no_refunds_until_s
        for measure, bucket in self._limits():
            difference = measure.of(need) - measure.of(real)
            if difference < 0 or (difference > 0 and refunds):
                bucket.correct(difference)
        if need.tokens < real.tokens or refunds:
            self._gate.correct(need.tokens - real.tokens)

    def release(self, ticket: Ticket) -> None:
        """Frees the slot; the second time it does nothing."""
        if ticket.released:
            return
        ticket.released = True
        self.in_flight -= 1
        self._gate.leave()
        if ticket is self._probe:
            # Answered or not, it is over: if it met a 429, `throttled` has begun the next cool-down already.
            self._probe = None
            self._probing = self._clock() < self.cool_until
        self.wake()

    # ── What the server says ─────────────────────────────────────────────────────────────────────────────────────

    def answered(self, ticket: Ticket, said: RateLimits) -> None:
        """An answer came with a good status and these headers."""
        self._learn(ticket, said)
        self._answered = True
        if ticket.granted_s >= self._episode_s:  # what was sent before a refusal says nothing of the rate since
            self._pace.bore()
        if ticket.granted_s >= self.cool_until:  # what was sent before the cool-down proves nothing
            self._probing = False
            self._probe = None  # its stream may go on for long: a later cool-down isn't its business
            self._cool_next_s = COOLDOWN_START_S
        self.wake()

    def throttled(self, ticket: Ticket, said: RateLimits, wait_s: float | None, *, ramp: bool) -> bool:
        """An answer asked to slow down; `wait_s` is the server's advice, a floor. True for a new episode.

        `ramp`: it asked to grow slowly (slow_down), whatever its limits.
        """
        now = self._clock()
        lowered = self._learn(ticket, said)
        self._answered = True
        # Whatever was sent before the last episode began belongs to it.
        new_episode = now >= self.cool_until and ticket.granted_s >= self._episode_s
        if new_episode:
            repeated = self._cool_next_s > COOLDOWN_START_S
            # The server's advice is enough the first time; when its probe meets another 429, it was too short.
            pause = wait_s if wait_s is not None and not repeated else max(wait_s or 0.0, self._cool_next_s)
            self._cool_next_s = min(2 * self._cool_next_s, COOLDOWN_MAX_S)
        else:
            pause = wait_s or 0.0
        self.cool_until = max(self.cool_until, now + pause)
        if new_episode:
            self._slow_down(pause, lowered=lowered, gently=ramp and self._input.total > RAMP_ABOVE_TPM)
        self._probing = True
        self.wake()
        return new_episode

    def _slow_down(self, pause_s: float, *, lowered: bool, gently: bool) -> None:
        """An episode of 429 begins: find out what the server bears, unless it has just told us.

        One episode under limits that are known may be an accident; a second one within a minute is not.
        """
        now = self._clock()
        known = "rpm" in self.buckets or self._gate.requests is not None
        seldom = now - self._episode_s > 60
        self._episode_s = now
        # By our count there was room: what we give back after an answer, this server may not.
        if not lowered:
            self._no_refunds_until_s = now + NO_REFUNDS_S
        if gently or not (lowered or (known and seldom)):
            self._pace.exceeded(pause_s, gently=gently)

    def _learn(self, ticket: Ticket, said: RateLimits) -> bool:
        """Takes over what the headers say; True when a limit is lower than we knew."""
        age_s = self._clock() - ticket.granted_s
        requests = self._learn_one("rpm", said.requests, age_s, self._admitted - ticket.nth)
        tokens = self._learn_one("tpm", said.tokens, age_s, self._admitted_tokens - ticket.nth_token)
        return requests or tokens

    def _learn_one(self, name: str, said: Allowance, age_s: float, taken_since: float) -> bool:
        named = said.per_minute
        if named is None:
            return False
        ceiling = getattr(self._configured, name)
        limit = named if ceiling is None else min(named, ceiling)
        bucket = self.buckets.get(name)
        before = bucket.per_minute if isinstance(bucket, Bucket) else math.inf
        if not isinstance(bucket, Bucket):
            bucket = self.buckets[name] = Bucket(limit, self._clock)
        self._adopt(name, bucket, limit)
        if bucket.per_minute != before and name == "rpm":
            self._pace.know()
        contradiction = said.remaining == 0 and said.reset_s == 0
        if said.remaining is not None and not contradiction:
            bucket.observe(said.remaining, age_s=age_s, taken_since=taken_since)
        return bucket.per_minute < before

    def _adopt(self, name: str, bucket: Bucket, limit: float) -> None:
        """Downwards at once, upwards when several answers in a row say so."""
        self._higher[name] = self._higher.get(name, 0) + 1 if limit > bucket.per_minute else 0
        if limit <= bucket.per_minute or self._higher[name] >= RAISE_AFTER:
            bucket.resize(limit)

    # ── The loop ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Admits one after the other until the gate is closed."""
        while not self._gate.closed:
            self._changed = anyio.Event()
            while self._queue and self._queue[0].turn.done():
                self._queue.popleft()  # cancelled
            if not self._queue:
                await self._changed.wait()
                continue
            await self._admit(self._queue[0])

    async def _admit(self, head: _Waiter) -> None:
        """Sees the head of the queue through, unless it is cancelled on the way."""
        await self._until("server", self._cooled, head)
        await self._until("concurrency", self._room, head)
        await self._until("slow start" if self._pace.searching else "server", self._paced, head)
        paid = await self._pay(head)
        entry = await self._gate.enter(head.need.tokens, head.turn.done)
        self._limited_s += entry.waited_s
        while self._cooled() is not None and not head.turn.done() and not self._gate.closed:
            self._gate.leave()  # the slot is for another lane meanwhile
            await self._until("server", self._cooled, head)
            await self._gate.enter(None, head.turn.done)
        if head.turn.done() or self._gate.closed:
            self._return(head.need, paid)
            if entry.paid:
                self._gate.correct(head.need.tokens)
            self._gate.leave()
            return
        self._queue.popleft()
        head.turn.set_result(self._grant(head))

    async def _pay(self, head: _Waiter) -> list[str]:
        """Pays the lane's own limits; returns which."""
        paid: list[str] = []
        for measure in MEASURES:
            bucket = self.buckets.get(measure.name)
            if bucket is not None and not head.turn.done() and not self._gate.closed:
                self._limited_s += await self._gate.timed(measure.label, bucket.acquire(measure.of(head.need)))
                paid.append(measure.name)
        return paid

    def _return(self, need: Need, paid: list[str]) -> None:
        """The head was cancelled at the door: what it paid in tokens is for the next; its request is lost."""
        for name in paid:
            if name not in ("rpm", "rpd"):
                self.buckets[name].correct(BY_NAME[name].of(need))

    def _grant(self, head: _Waiter) -> Ticket:
        need, now = head.need, self._clock()
        # A wait that had begun before it came counts in part only.
        waited = min(self._limited_s - head.limited_before_s, now - head.since_s)
        self.in_flight += 1
        self._first_s = min(self._first_s, now)
        self._admitted += 1
        self._admitted_tokens += need.tokens
        self._input.add(need.input_tokens)
        ticket = Ticket(need, self, waited, now, self._admitted, self._admitted_tokens, probe=self._probing)
        if self._probing:
            self._probe = ticket
        return ticket

    async def _until(self, what: str, ready: Callable[[], float | None], head: _Waiter) -> None:
        """Waits until `ready` says None; a number is how long to wait at most before asking again."""
        start = self._clock()
        while (pause := ready()) is not None and not head.turn.done() and not self._gate.closed:
            self._changed = anyio.Event()
            with anyio.move_on_after(pause):
                await self._changed.wait()
        waited = self._clock() - start
        self._gate.blocked[what] += waited
        if what != "concurrency":
            self._limited_s += waited

    def _cooled(self) -> float | None:
        remaining = self.cool_until - self._clock()
        if remaining > 0:
            return remaining
        return math.inf if self._probing and self._probe is not None else None

    def _paced(self) -> float | None:
        per_s = self._pace.per_s
        if per_s == math.inf:
            return None
        wait_s = self._paced_until - self._clock()
        if wait_s > 0:
            return wait_s
        self._paced_until = max(self._paced_until, self._clock() - CATCH_UP_S) + 1 / per_s
        return None

    def _room(self) -> float | None:
        limit = self._configured.concurrency
        if limit is not None and self.in_flight >= limit:
            return math.inf
        unknown = not self._answered and "rpm" not in self.buckets and self._gate.requests is None
        if unknown and self.in_flight >= FIRST_STREAMS:
            wait_s = self._first_s + FIRST_WAIT_S - self._clock()
            return wait_s if wait_s > 0 else None
        return None

    def wake(self) -> None:
        """Something changed that the head may wait for."""
        self._changed.set()

    def close(self) -> None:
        """Sends everybody away who waits."""
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.turn.done():
                waiter.turn.set_exception(AdmissionClosed())
        self.wake()

    def _limits(self) -> list[tuple[Measure, Bucket | Quota]]:
        return [(BY_NAME[name], bucket) for name, bucket in self.buckets.items()]
