"""One limit group at one endpoint: the jobs of one model (or family), its buckets, cool-down, what was learned of it.

A lane is at work on one attempt at a time, in this order: the cool-down is over → its pace allows one → a slot is free
→ it takes the first in its queues → its tokens are paid → its request is paid → the gates → it goes. So nobody is
overtaken within a queue, a big job gets in behind small ones after its own payment and no later, and aiolimiter has one
waiter. Waiting costs no CPU. A cool-down that begins in between puts the attempt back and its payment with it.

A server refuses because a limit is reached (429), because it has too much to do (503, 529), or by chance: one replica
of many is ill. A refusal that comes alone is its attempt's business. Many begin an episode: the lane stops for as long
as the server says, or a doubling default, and then sends a probe (`cooldown`). A server that refuses inside its 200
answers is believed at the first content only.

Limits come from the configuration and from the server's headers (`lane_limits`); where nobody names them, a pace finds
out what the server bears (`pace`), and of one that has too much to do how many at once (`capacity`). Refusals that go
on whatever is sent have nothing to do with it (or are every job's first: `habit`); what they led to is taken back.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import anyio

from runner.buckets import Sliding
from runner.capacity import Capacity
from runner.chance import ALONE
from runner.cooldown import Cooldown
from runner.habit import Habit
from runner.lane_limits import LaneLimits
from runner.pace import Pace
from runner.ratelimits import UNKNOWN, RateLimits
from runner.tickets import Need, NeverFits, Ticket
from runner.turn import Turn
from runner.wakeup import Wakeup

if TYPE_CHECKING:
    from runner.endpoints import Endpoint
    from runner.outcome import Usage
    from runner.queues import Queue, Queues, Waiter
    from runner.settings import ModelLimits

FIRST_STREAMS: Final = 4
"""Streams at once until the first answer shows whether the server names its limits, where nobody else does."""
FIRST_WAIT_S: Final = 2.0
"""…but no longer than this: a slow model answers in minutes, and its headers may come with its first token."""
NO_REFUNDS_S: Final = 300.0
"""How long after a 429 nothing is given back: a server that charges up front doesn't either."""
RAMP_ABOVE_TPM: Final = 1_000_000
"""Input tokens a minute above which slow_down asks for a slow ramp (the API's guide to errors)."""
EXCUSED: Final = 8
"""Refusals of one episode that may be an accident."""


class Lane:
    """See the module. All methods are for one event loop."""

    def __init__(
        self, name: str, limits: ModelLimits, endpoint: Endpoint, queues: Queues, clock: Callable[[], float]
    ) -> None:
        self.name = name
        self.endpoint = endpoint
        self.queues: list[Queue] = []
        self._waiting = queues
        self._gate = endpoint.gate
        self._clock = clock
        self.limits = LaneLimits(limits, clock, endpoint.gate.token_limit)
        self._admitted = self._admitted_tokens = 0
        self._changed = Wakeup()
        self._serving: anyio.CancelScope | None = None  # while an attempt waits in order to pay
        self.cooldown = Cooldown()
        self._capacity = Capacity()
        self._habit = Habit()
        self._under_way: set[int] = set()  # attempts in flight, by their number
        self._answered = self._refuses_late = False  # …late: in its 200 answers
        self._pace = Pace(clock)
        self._turn = Turn()
        self._no_refunds_until_s = self._episode_s = -math.inf
        self._first_s = math.inf  # when the first attempt was admitted
        self.limited_s = 0.0
        """How long heads of this lane have waited for limits and cool-downs."""
        self._excused = 0  # refusals of this episode, while it may be an accident
        self._input = Sliding(clock)
        if self._knows_requests:
            self._pace.know()

    # ── For workers ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def in_flight(self) -> int:
        """Attempts admitted and not released."""
        return len(self._under_way)

    @property
    def _knows_requests(self) -> bool:
        return "rpm" in self.limits.buckets or self._gate.knows_requests

    def abandon(self) -> None:
        """The attempt it is at work on isn't wanted any more, or can't be sent here now."""
        if self._serving is not None:
            self._serving.cancel()

    def settle(self, ticket: Ticket, used: Usage | Need | None) -> None:
        """Gives back what was reserved beyond the real usage, or takes what is missing. None: the estimate stands."""
        if ticket.settled:
            return
        ticket.settled = True
        if used is None:
            return
        need, refunds = ticket.need, self._clock() >= self._no_refunds_until_s
        if self.limits.buckets:
            real = Need(used.input_tokens, used.output_tokens)
            self.limits.correct(need, real, ticket.granted_s, refunds=refunds)
        unused = need.tokens - used.input_tokens - used.output_tokens
        if refunds or unused < 0:
            self._gate.correct(unused, ticket.granted_s)

    def release(self, ticket: Ticket) -> None:
        """Frees the slot; the second time it does nothing."""
        if ticket.released:
            return
        ticket.released = True
        self._under_way.discard(ticket.nth)
        self._gate.leave()
        if ticket is self.cooldown.probe:
            self.cooldown.probe_ended(self._clock())
        self._look_again()

    # ── What the server says ─────────────────────────────────────────────────────────────────────────────────────

    def answered(self, ticket: Ticket, said: RateLimits) -> None:
        """An answer came with a good status and these headers."""
        if said is not UNKNOWN:
            self._learn(ticket, said)
        self._answered = ticket.answered = True
        if self._refuses_late or ticket.accepted:
            self._look_again()
        else:
            self.accepted(ticket)

    def accepted(self, ticket: Ticket) -> None:
        """The server has let it in: a good status says so, or the first content where it refuses later than that."""
        if ticket.accepted:
            return
        ticket.accepted = True
        self._habit.took(ticket.attempt)
        self._capacity.accepted(len(self._under_way))
        # What was sent before a refusal says nothing of the rate since.
        if self._excused or ticket.granted_s >= self._episode_s:
            self._pace.bore()
        if self.cooldown.in_vain:
            self.cooldown.accepted(ticket)
        self._look_again()

    def refused(
        self, ticket: Ticket, said: RateLimits, wait_s: float | None, *, overloaded: bool = False, ramp: bool = False
    ) -> None:
        """The server didn't let an attempt in; `wait_s` is its advice, a floor. The second time it does nothing.

        `overloaded`: it said that it has too much to do, not that we ask for too much; its advice is that attempt's.
        `ramp`: it asked to grow slowly (slow_down), whatever its limits.
        """
        if ticket.refused:
            return
        ticket.refused = self._answered = True
        self._habit.refused(ticket.attempt)
        self._refuses_late |= ticket.answered
        lowered, advice_s = self._learn(ticket, said), None if overloaded else wait_s
        was_free, gently = self._pace.is_free, ramp and self._input.total > RAMP_ABOVE_TPM
        expected = overloaded and not was_free and self._is_full(ticket)
        if ticket.granted_s <= self._episode_s:  # it was sent before the last episode began, and is a part of it
            self.cooldown.extend(self._clock(), advice_s)
            self._excused += bool(self._excused)
        elif self._habit.explains:
            self.cooldown.extend(self._clock(), advice_s)
            self._pace.set_free()
        elif not expected:
            self._pace.refused()
            # A pause that it asks for is due each time, and one when nothing has been heard of it yet.
            many = 1 if not overloaded and (advice_s or self._pace.is_new) else ALONE
            if not (lowered or gently or self.cooldown.in_vain) and self._pace.excuses(many):
                self.cooldown.extend(self._clock(), advice_s)
            else:
                self._episode(advice_s, lowered=lowered, gently=gently, overloaded=overloaded)
        if self._pace.is_free and not was_free:
            self._acquit()
        self.abandon()
        self._waiting.stir_all(self)

    def _is_full(self, ticket: Ticket) -> bool:
        """Whether an overloaded server has as many under way as it is known to bear."""
        before = sum(nth < ticket.nth for nth in self._under_way)
        return self._capacity.refused(before, new=ticket.granted_s > self._episode_s)

    def _episode(self, advice_s: float | None, *, lowered: bool, gently: bool, overloaded: bool) -> None:
        repeated, expected = self.cooldown.in_vain, self._pace.expects_refusal
        pause_s = self.cooldown.begin(self._clock(), advice_s)
        if overloaded and not self._pace.is_free:
            self._capacity.begin()
        self._slow_down(pause_s, lowered=lowered, probe=repeated, gently=gently, careful=not overloaded)
        if not expected:  # else it is the rate that was refused, and not the streams
            self._gate.concurrency.throttled(self._clock())

    def _acquit(self) -> None:
        """Refusals turned out to have nothing to do with what is sent: takes back what they led to."""
        self._no_refunds_until_s = -math.inf
        self._capacity.forget()
        self._gate.concurrency.acquitted()
        self._gate.wake()

    def _slow_down(self, pause_s: float, *, lowered: bool, probe: bool, gently: bool, careful: bool) -> None:
        """An episode of 429 begins: find out what the server bears, unless it has just told us.

        One episode under limits that are known may be an accident; a second one within a minute is not, nor is one of
        many refusals: the limits that we were told aren't the server's.
        """
        now = self._clock()
        known = self._knows_requests
        seldom = now - self._episode_s > 60
        self._episode_s = now
        # By our count there was room: what we give back after an answer, this server may not, unless it has done so.
        careful &= not lowered
        if careful and not (probe or (seldom and (self.limits.live_on_refunds or self._gate.lives_on_refunds))):
            self._no_refunds_until_s = now + NO_REFUNDS_S
        if careful:
            self.limits.be_careful()
            self._gate.be_careful()
        self._excused = 0
        if gently or not (lowered or (known and seldom)):
            self._pace.exceeded(pause_s, gently=gently)
        elif not lowered:
            self._excused = 1

    def _learn(self, ticket: Ticket, said: RateLimits) -> bool:
        """Takes over what the headers say; True when a limit is lower than we knew."""
        limits, age_s = self.limits, self._clock() - ticket.granted_s
        tokens_since = self._admitted_tokens - ticket.nth_token
        requests = limits.learn("rpm", said.requests, age_s=age_s, taken_since=self._admitted - ticket.nth)
        tokens = limits.learn("tpm", said.tokens, age_s=age_s, taken_since=tokens_since)
        limits.learn_more(said.more_tokens, age_s=age_s, taken_since=tokens_since)
        if requests:
            self._pace.know()
        if limits.newly_agreed():
            self.abandon()
        return requests < 0 or tokens < 0

    # ── Admitting ────────────────────────────────────────────────────────────────────────────────────────────────

    def admit_now(self, need: Need) -> Ticket | None:
        """Does for an attempt before which nobody waits what `run` would do next; None where it would have to wait."""
        if self._turn.is_over(self._gate.in_flight) or not (self.ready_for(need) and self._affords(need)):
            return None
        self._pace.sent()
        self._pay_now(need)
        return self._grant(need, 0.0, self._waiting.pass_by(self), 0)

    def _affords(self, need: Need) -> bool:
        return self.limits.have(need) and self._gate.is_free_for(need.tokens)

    def _pay_now(self, need: Need) -> None:
        self.limits.pay(need)
        self._gate.enter_now(need.tokens)
        self._gate.decline(self)

    async def run(self) -> None:
        """Admits one after the other until it is cancelled."""
        while True:
            self._changed.forget()
            first, pause_s = self._waiting.first_for(self)
            if first is None:
                self._gate.decline(self)
                await self._changed.wait(pause_s)
                continue
            what, pause_s = self._hindrance(first.need)
            if what is not None:
                await self._hindered(first, what, pause_s)
                continue
            best = self._waiting.best_for(first, self)
            if best is not self:
                best.wake()
                self._gate.decline(self)
                await self._changed.wait(math.inf)
                continue
            if not self._serve(first):
                await self._serve_in_turn(first)
            if self._turn.is_over(self._gate.in_flight):
                await anyio.lowlevel.checkpoint()

    async def _hindered(self, first: Waiter, what: str, pause_s: float) -> None:
        """Waits for what keeps it from taking the first in line, unless another lane can."""
        if what == "slot":
            known_per_s = self.limits.per_s(first.need), self._gate.per_s(first.need.tokens)
            if self._gate.concurrency.begin_with(min((each for each in known_per_s if each is not None), default=0.0)):
                self._gate.wake()
                return
            self._gate.when_open(self)
            what = "concurrency"
        else:
            self._gate.decline(self)
        self._waiting.pass_on(self)
        start = self._clock()
        await self._changed.wait(pause_s)
        waited_s = max(0.0, min(self._clock(), first.taken_s) - start)
        self._gate.blocked[what] += waited_s
        if what != "concurrency":
            self.limited_s += waited_s

    def _serve(self, waiter: Waiter) -> bool:
        """Takes the first in line, pays for it and lets it go; False where something has to be waited for."""
        try:
            waiter.need = self.limits.fitted(waiter.need)  # the limits may be others by now
        except NeverFits as refusal:
            self._waiting.reroute(waiter, self, refusal)
            return True
        self._pace.sent()
        if not self._affords(waiter.need):
            return False
        self._waiting.take(waiter, self)
        self._pay_now(waiter.need)
        waiter.turn.set_result(self._grant_to(waiter))
        return True

    async def _serve_in_turn(self, waiter: Waiter) -> None:
        """The same, waiting for what has to be waited for; puts it back where it can't be sent."""
        paid: list[str] = []
        entered = False
        scope = self._serving = anyio.CancelScope()
        with scope:
            self._waiting.take(waiter, self)
            # Where it has to wait in order to pay, the slot that it was offered is for who can go first.
            waits = asyncio.get_running_loop().call_soon(self._gate.decline, self)
            try:
                await self.limits.acquire(waiter.need, paid, self._timed)
                self.limited_s += await self._gate.enter(waiter.need.tokens)
                entered = True
            finally:
                self._serving = None
                waits.cancel()
                self._gate.decline(self)
        if entered and not scope.cancel_called and not waiter.turn.done():
            self.limits.went()
            waiter.turn.set_result(self._grant_to(waiter))
            return
        if entered:
            self._gate.leave()
            self._gate.unpay(waiter.need.tokens)
        self.limits.give_back(waiter.need, paid)
        if not waiter.turn.done():
            self._waiting.put_back(waiter)

    def _grant_to(self, waiter: Waiter) -> Ticket:
        return self._grant(waiter.need, waiter.limited_s(self, self._clock()), waiter.nth, waiter.attempt)

    def _grant(self, need: Need, waited_s: float, place: int, attempt: int) -> Ticket:
        now, endpoint = self._clock(), self.endpoint
        if not self._admitted:
            self._first_s = now
        self._admitted += 1
        self._under_way.add(self._admitted)
        self._admitted_tokens += need.tokens
        self._input.add(need.input_tokens)
        endpoint.admitted += 1
        ticket = Ticket(need, self, endpoint, waited_s, now, self._admitted, self._admitted_tokens, place, attempt)
        if not endpoint.breaker.closed:
            endpoint.breaker.sent(ticket)
        self._turn.count()
        if self.cooldown.probing:
            self.cooldown.sent(ticket)
            if self._excused > EXCUSED:
                self._pace.exceeded(0.0, since_s=self._episode_s)
            self._excused = 0
        return ticket

    async def _timed(self, what: str, waiting: Awaitable[None]) -> None:
        self.limited_s += await self._gate.timed(what, waiting)

    # ── What keeps it ────────────────────────────────────────────────────────────────────────────────────────────

    def _hindrance(self, need: Need) -> tuple[str | None, float]:
        """What has to be waited for before anybody is taken, and for how long at most; None if nothing has."""
        now = self._clock()
        if now < self.cooldown.until_s:
            return "server", self.cooldown.until_s - now
        if self.cooldown.probe is not None:
            return "server", math.inf
        if self.limits.concurrency is not None and self.in_flight >= self.limits.concurrency:
            return "concurrency", math.inf
        if len(self._under_way) >= self._capacity.limit:
            return "server", math.inf
        if not self._answered and (wait_s := self._first_wait_s(now)) > 0:
            return "concurrency", wait_s
        if (wait_s := self._pace.opens_in(now)) > 0:
            return ("slow start" if self._pace.searching else "server"), wait_s
        what, wait_s = self.limits.used_up(need)
        if what is not None:
            return what, wait_s
        return (None, 0.0) if self._gate.open_to(self) else ("slot", math.inf)

    def _first_wait_s(self, now_s: float) -> float:
        if self._knows_requests or self.in_flight < FIRST_STREAMS:
            return 0.0
        return self._first_s + FIRST_WAIT_S - now_s

    def ready_for(self, need: Need) -> bool:
        """Whether it could take such an attempt at once."""
        return self._serving is None and self.endpoint.fault is None and self._hindrance(need)[0] is None

    def wake(self) -> None:
        """Something changed that it may be waiting for."""
        self._changed.ring()

    def _look_again(self) -> None:
        """The same, where somebody waits whom it may take now."""
        for queue in self.queues:
            if queue.waiters:
                self._changed.ring()
