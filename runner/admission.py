"""The gate before every attempt: one FIFO loop for concurrency, RPM, TPM and the shared cool-down.

Only the head of the queue waits for anything, in this order: the cool-down is over → a slot is free → its tokens are
paid → its request is paid → it goes. So nobody is overtaken, a big job gets in behind small ones after its own payment
and no later, no request is spent while tokens are awaited, and aiolimiter has one waiter. Waiting costs no CPU.

After a 429 everything stops for as long as the server says (or a doubling default). Then one probe goes; the rest stay
until it is answered. A probe that meets another 429 begins the next cool-down, one that ends otherwise lets the rest
go: it can't freeze.

Accepted: tokens are paid before the request is, so a bucket of requests that is empty holds them for one spacing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import anyio

from runner.buckets import Bucket
from runner.concurrency import Concurrency

COOLDOWN_START_S: Final = 1.0
"""The first cool-down where the server names none; it doubles for each probe that meets another 429."""
COOLDOWN_MAX_S: Final = 60.0
"""…up to a minute, the longest window that a per-minute limit can need. The server's own advice may be longer."""


class AdmissionClosed(Exception):
    """Raised to those who wait for admission when the run drains."""


class NeverFits(Exception):
    """Raised when a job needs more tokens than the limit gives in a whole minute."""


@dataclass(slots=True)
class Ticket:
    """One admitted attempt. Settle it once with the real usage, and release it."""

    tokens: int
    limiter_wait_s: float
    """Time spent, as the head of the queue, on limits and cool-down."""
    probe: bool = False
    settled: bool = False
    released: bool = False


class AdmissionStatistics(NamedTuple):
    """What the live view and the summary read."""

    waiting: int  # attempts in the queue
    in_flight: int  # attempts admitted and not released
    limit: int  # slots as of now
    cooldown_remaining_s: float  # 0 when there is none
    rpm_allowed: float | None
    rpm_used: float  # in the last 60 s
    tpm_allowed: float | None
    tpm_used: float  # in the last 60 s, net of refunds
    blocked_slot_s: float  # how long the head of the queue waited for a slot
    blocked_requests_s: float  # … for RPM
    blocked_tokens_s: float  # … for TPM
    blocked_cooldown_s: float  # … for a cool-down or its probe


@dataclass(slots=True, eq=False)
class _Waiter:
    tokens: int
    turn: asyncio.Future[Ticket]


class Admission:
    """See the module. All methods are for one event loop."""

    def __init__(
        self, *, rpm: float | None, tpm: float | None, concurrency: Concurrency, clock: Callable[[], float]
    ) -> None:
        self._requests = None if rpm is None else Bucket(rpm, clock)
        self._tokens = None if tpm is None else Bucket(tpm, clock)
        self._concurrency = concurrency
        self._clock = clock
        self._queue: deque[_Waiter] = deque()
        self._waiting = 0
        self._in_flight = 0
        self._closed = False
        self._changed = anyio.Event()
        self._cool_until = 0.0
        self._cool_next_s = COOLDOWN_START_S
        self._probing = False  # the cool-down is over, and its probe isn't answered yet
        self._probe: Ticket | None = None
        self._blocked = {"slot": 0.0, "requests": 0.0, "tokens": 0.0, "cooldown": 0.0}

    # ── For workers ──────────────────────────────────────────────────────────────────────────────────────────────

    async def acquire(self, tokens: int) -> Ticket:
        """Waits for this attempt's turn.

        Raises:
            NeverFits: `tokens` is more than a minute's allowance.
            AdmissionClosed: the run drains.
        """
        if self._closed:
            raise AdmissionClosed
        if self._tokens is not None and tokens > self._tokens.per_minute:
            raise NeverFits(f"needs about {tokens} tokens, and the limit is {self._tokens.per_minute:g} a minute")
        waiter = _Waiter(tokens, asyncio.get_running_loop().create_future())
        self._queue.append(waiter)
        self._waiting += 1
        self._wake()
        try:
            return await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.done() and not waiter.turn.cancelled() and waiter.turn.exception() is None:
                # Granted and cancelled in the same step of the loop.
                ticket = waiter.turn.result()
                self.settle(ticket, 0)
                self.release(ticket)
            else:
                # It stays in the queue until its turn comes, and is passed over then.
                waiter.turn.cancel()
                self._wake()
            raise
        finally:
            self._waiting -= 1

    def settle(self, ticket: Ticket, used_tokens: int | None) -> None:
        """Gives back what was reserved beyond the real usage, or takes what is missing. None: the estimate stands."""
        if ticket.settled:
            return
        ticket.settled = True
        if self._tokens is not None and used_tokens is not None:
            self._tokens.correct(ticket.tokens - used_tokens)

    def release(self, ticket: Ticket) -> None:
        """Frees the slot; the second time it does nothing."""
        if ticket.released:
            return
        ticket.released = True
        self._in_flight -= 1
        if ticket is self._probe:
            # Answered or not, it is over: if it met a 429, `throttled` has begun the next cool-down already.
            self._probe = None
            self._probing = self._clock() < self._cool_until
        self._wake()

    def throttled(self, wait_s: float | None) -> None:
        """An answer asked everybody to slow down; `wait_s` is the server's advice, a floor."""
        now = self._clock()
        new_episode = now >= self._cool_until
        if new_episode:
            self._concurrency.throttled()
            repeated = self._cool_next_s > COOLDOWN_START_S
            # The server's advice is enough the first time; when its probe meets another 429, it was too short.
            pause = wait_s if wait_s is not None and not repeated else max(wait_s or 0.0, self._cool_next_s)
            self._cool_next_s = min(2 * self._cool_next_s, COOLDOWN_MAX_S)
        else:
            pause = wait_s or 0.0
        self._cool_until = max(self._cool_until, now + pause)
        self._probing = True
        self._wake()

    def succeeded(self) -> None:
        """An answer came with a good status."""
        self._concurrency.succeeded(self._in_flight)
        if self._clock() >= self._cool_until:
            self._probing = False
            self._cool_next_s = COOLDOWN_START_S
        self._wake()

    def close(self) -> None:
        """Nobody is admitted any more; those who wait get AdmissionClosed, and `run` returns."""
        self._closed = True
        while self._queue:
            waiter = self._queue.popleft()
            if not waiter.turn.done():
                waiter.turn.set_exception(AdmissionClosed())
        self._wake()

    # ── The loop ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Admits one after the other until closed."""
        while not self._closed:
            self._changed = anyio.Event()
            while self._queue and self._queue[0].turn.done():
                self._queue.popleft()  # cancelled
            if not self._queue:
                await self._changed.wait()
                continue
            await self._admit(self._queue[0])

    async def _admit(self, head: _Waiter) -> None:
        """Sees the head of the queue through, unless it is cancelled on the way."""
        waited = 0.0
        waited += await self._timed("cooldown", self._cooled, head)
        await self._timed("slot", self._slot_free, head)
        if self._tokens is not None:
            waited += await self._timed_payment("tokens", self._tokens, head.tokens, head)
        if self._requests is not None:
            waited += await self._timed_payment("requests", self._requests, 1, head)
        if self._cooling():
            waited += await self._timed("cooldown", self._cooled, head)
        if head.turn.done():  # cancelled meanwhile; the request it paid for is lost, its tokens aren't
            if self._tokens is not None:
                self._tokens.correct(head.tokens)
            return
        self._queue.popleft()
        self._in_flight += 1
        ticket = Ticket(head.tokens, waited, probe=self._probing)
        if self._probing:
            self._probe = ticket
        head.turn.set_result(ticket)

    async def _timed(self, what: str, ready: Callable[[], float | None], head: _Waiter) -> float:
        """Waits until `ready` says None; a number is how long to wait at most before asking again."""
        start = self._clock()
        while (pause := ready()) is not None and not head.turn.done() and not self._closed:
            self._changed = anyio.Event()
            with anyio.move_on_after(pause):
                await self._changed.wait()
        waited = self._clock() - start
        self._blocked[what] += waited
        return waited

    async def _timed_payment(self, what: str, bucket: Bucket, amount: float, head: _Waiter) -> float:
        if head.turn.done() or self._closed:
            return 0.0
        start = self._clock()
        await bucket.acquire(amount)
        waited = self._clock() - start
        self._blocked[what] += waited
        return waited

    def _cooling(self) -> bool:
        return self._clock() < self._cool_until or (self._probing and self._probe is not None)

    def _cooled(self) -> float | None:
        remaining = self._cool_until - self._clock()
        if remaining > 0:
            return remaining
        return float("inf") if self._probing and self._probe is not None else None

    def _slot_free(self) -> float | None:
        return None if self._in_flight < self._concurrency.limit else float("inf")

    def _wake(self) -> None:
        self._changed.set()

    def statistics(self) -> AdmissionStatistics:
        """A snapshot."""
        return AdmissionStatistics(
            waiting=self._waiting,
            in_flight=self._in_flight,
            limit=self._concurrency.limit,
            cooldown_remaining_s=max(0.0, self._cool_until - self._clock()),
            rpm_allowed=self._requests.per_minute if self._requests else None,
            rpm_used=self._requests.used if self._requests else 0.0,
            tpm_allowed=self._tokens.per_minute if self._tokens else None,
            tpm_used=self._tokens.used if self._tokens else 0.0,
            blocked_slot_s=self._blocked["slot"],
            blocked_requests_s=self._blocked["requests"],
            blocked_tokens_s=self._blocked["tokens"],
            blocked_cooldown_s=self._blocked["cooldown"],
        )
