"""The door before every attempt: which lane a job stands in, and what is known of all of them.

A lane is one limit group (`lanes`): the jobs of one model, or of the models that one entry of the configured limits
covers. All lanes share one gate (`gate`): concurrency, and the limits that the user gave for the whole run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import anyio
from anyio.abc import TaskGroup

from runner.buckets import Bucket
from runner.concurrency import Concurrency
from runner.gate import Gate
from runner.lanes import Lane
from runner.limits import MAX_LANES
from runner.outcome import Usage
from runner.ratelimits import RateLimits
from runner.settings import ModelLimits, limits_of
from runner.tickets import AdmissionClosed, Need, NeverFits, Ticket


class AdmissionStatistics(NamedTuple):
    """What the live view and the summary read."""

    waiting: int = 0  # attempts in a queue
    in_flight: int = 0  # attempts admitted and not released
    limit: int = 0  # slots as of now
    cooldown_remaining_s: float = 0.0  # the longest of the lanes'; 0 when there is none
    rpm_allowed: float | None = None  # for the whole run, else the sum of the lanes' limits; None: unknown
    rpm_used: float = 0.0  # in the last 60 s
    tpm_allowed: float | None = None
    tpm_used: float = 0.0  # in the last 60 s, net of refunds
    blocked_s: Mapping[str, float] = MappingProxyType({})  # how long the first in line waited, by what for


class Admission:
    """See the module. All methods are for one event loop."""

    def __init__(
        self,
        *,
        rpm: float | None,
        tpm: float | None,
        concurrency: Concurrency,
        clock: Callable[[], float],
        limits: Mapping[str, ModelLimits] | None = None,
    ) -> None:
        self._clock = clock
        self._limits = limits or {}
        self._gate = Gate(rpm=rpm, tpm=tpm, concurrency=concurrency, clock=clock)
        self._lanes: dict[str, Lane] = {}
        self._waiting = 0
        self._tasks: TaskGroup | None = None
        self._ended = anyio.Event()

    async def run(self) -> None:
        """Admits until closed."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            for lane in self._lanes.values():
                tasks.start_soon(lane.run)
            await self._ended.wait()

    # ── For workers ──────────────────────────────────────────────────────────────────────────────────────────────

    async def acquire(self, model: str | None, need: Need) -> Ticket:
        """Waits for this attempt's turn.

        Raises:
            NeverFits: it needs more than a whole window's allowance.
            AdmissionClosed: the run drains.
        """
        if self._gate.closed:
            raise AdmissionClosed
        lane = self._lane(model)
        lane.refuse_what_never_fits(need)
        if self._gate.tokens is not None and need.tokens > self._gate.tokens.per_minute:
            limit = self._gate.tokens.per_minute
            raise NeverFits(f"needs about {need.tokens} tokens, and the limit is {limit:g} a minute")
        self._waiting += 1
        try:
            return await lane.acquire(need)
        finally:
            self._waiting -= 1

    def answered(self, ticket: Ticket, said: RateLimits) -> None:
        """An answer came with a good status and these headers."""
        self._gate.concurrency.answered(self._gate.in_flight, self._clock())
        ticket.lane.answered(ticket, said)
        self._gate.wake()

    def throttled(self, ticket: Ticket, said: RateLimits, wait_s: float | None, *, ramp: bool = False) -> None:
        """An answer asked everybody to slow down; `wait_s` is the server's advice, a floor.

        `ramp`: it asked for slow growth (slow_down).
        """
        if ticket.lane.throttled(ticket, said, wait_s, ramp=ramp):
            self._gate.concurrency.throttled(self._clock())

    def received(self, chunks: int = 1) -> None:
        """So many chunks (or tokens of a whole answer) arrived: what adaptive concurrency measures."""
        self._gate.concurrency.work += chunks

    def settle(self, ticket: Ticket, used: Usage | None) -> None:
        """Gives back what was reserved beyond the real usage, or takes what is missing. None: the estimate stands."""
        ticket.lane.settle(ticket, used)

    def release(self, ticket: Ticket) -> None:
        """Frees the slot; the second time it does nothing."""
        ticket.lane.release(ticket)

    def close(self) -> None:
        """Nobody is admitted any more; those who wait get AdmissionClosed, and `run` returns."""
        self._gate.close()
        for lane in self._lanes.values():
            lane.close()
        self._ended.set()

    # ── Lanes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _lane(self, model: str | None) -> Lane:
        name, limits = limits_of(model, self._limits)
        lane = self._lanes.get(name)
        if lane is None:
            if len(self._lanes) >= MAX_LANES:
                return next(iter(self._lanes.values()))
            lane = self._lanes[name] = Lane(name, limits, self._gate, self._clock)
            if self._tasks is not None:
                self._tasks.start_soon(lane.run)
        return lane

    # ── Statistics ───────────────────────────────────────────────────────────────────────────────────────────────

    def statistics(self) -> AdmissionStatistics:
        """A snapshot."""
        now = self._clock()
        rpm_allowed, rpm_used = self._use(self._gate.requests, "rpm")
        tpm_allowed, tpm_used = self._use(self._gate.tokens, "tpm")
        return AdmissionStatistics(
            waiting=self._waiting,
            in_flight=sum(lane.in_flight for lane in self._lanes.values()),
            limit=self._gate.concurrency.limit,
            cooldown_remaining_s=max([0.0, *(lane.cool_until - now for lane in self._lanes.values())]),
            rpm_allowed=rpm_allowed,
            rpm_used=rpm_used,
            tpm_allowed=tpm_allowed,
            tpm_used=tpm_used,
            blocked_s=dict(self._gate.blocked),
        )

    def _use(self, whole: Bucket | None, name: str) -> tuple[float | None, float]:
        """What is allowed a minute, and what was used in the last."""
        if whole is not None:
            return whole.per_minute, whole.used
        buckets = [lane.buckets.get(name) for lane in self._lanes.values()]
        known = [bucket for bucket in buckets if isinstance(bucket, Bucket)]
        if not known or len(known) < len(buckets):
            return None, sum(bucket.used for bucket in known)
        return sum(bucket.per_minute for bucket in known), sum(bucket.used for bucket in known)
