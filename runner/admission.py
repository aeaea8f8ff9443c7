"""The door before every attempt: which endpoint takes it, when, and what is known of all of them.

A lane is one limit group at one endpoint (`lanes`): the jobs of one model, or of the models that one entry of the
configured limits covers. Attempts wait in `queues`, one for each set of lanes that can take them. The lanes of an
endpoint share its gate (`gate`): concurrency and limits of the endpoint; with several endpoints a gate round theirs has
what holds for the whole run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import anyio
from anyio.abc import TaskGroup

from runner.buckets import Bucket
from runner.concurrency import Concurrency
from runner.endpoints import Endpoint, favourite
from runner.faults import Fault, FaultKind
from runner.gate import Gate
from runner.lanes import Lane
from runner.limits import MAX_LANES
from runner.outcome import Usage
from runner.queues import Queues, Waiter
from runner.ratelimits import RateLimits
from runner.settings import ModelLimits, limits_of
from runner.tickets import AdmissionClosed, AllDisabled, Need, NeverFits, NotServed, Ticket


class AdmissionStatistics(NamedTuple):
    """What the live view and the summary read."""

    waiting: int = 0  # attempts in a queue
    in_flight: int = 0  # attempts admitted and not released
    limit: int = 0  # slots as of now
    cooldown_remaining_s: float = 0.0  # the longest of the lanes'; 0 when there is none
    rpm_allowed: float | None = None  # for the whole run, else the sum of what is known; None: not all of it is
    rpm_used: float = 0.0  # in the last 60 s
    tpm_allowed: float | None = None
    tpm_used: float = 0.0  # in the last 60 s, net of refunds
    blocked_s: Mapping[str, float] = MappingProxyType({})  # how long the first in line waited, by what for
    endpoints: Mapping[str, Mapping[str, Any]] = MappingProxyType({})  # of several: state, requests, in_flight


class Admission:
    """See the module. All methods are for one event loop."""

    def __init__(self, endpoints: Sequence[Endpoint], *, clock: Callable[[], float], whole: Gate | None = None) -> None:
        """`whole` is the gate round those of several endpoints; one endpoint's own gate is all there is."""
        self._clock = clock
        self._endpoints = {endpoint.name: endpoint for endpoint in endpoints}
        self._whole = whole or endpoints[0].gate
        self._queues = Queues(clock)
        self._routes: dict[str | None, tuple[Lane, ...]] = {}
        self._waiting: set[Waiter] = set()
        self._tasks: TaskGroup | None = None
        self._closed = False  # as `_ended` is set; asked for each request, and an event's own answer takes three calls
        self._ended = anyio.Event()

    @classmethod
    def of_one(
        cls,
        *,
        rpm: float | None,
        tpm: float | None,
        concurrency: Concurrency,
        clock: Callable[[], float],
        limits: Mapping[str, ModelLimits] | None = None,
        name: str = "endpoint",
    ) -> Admission:
        """For a single endpoint."""
        gate = Gate(rpm=rpm, tpm=tpm, concurrency=concurrency, clock=clock)
        return cls([Endpoint(name, gate, limits or {})], clock=clock)

    async def run(self) -> None:
        """Admits until closed."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            for lane in self._lanes():
                tasks.start_soon(lane.run)
            await self._ended.wait()
            tasks.cancel_scope.cancel()

    # ── For workers ──────────────────────────────────────────────────────────────────────────────────────────────

    async def acquire(
        self,
        model: str | None,
        need: Need,
        *,
        key: str | None = None,
        avoid: Endpoint | None = None,
        only: str | None = None,
        again: Ticket | None = None,
    ) -> Ticket:
        """Waits for this attempt's turn. `key`: attempts with the same one go to the same endpoint, if it can be.

        `avoid` is where the attempt before failed: another is taken, if one is as free. `only` names the one endpoint
        that can serve it. `again`: the job's attempt before, whose place in line it has.

        Raises:
            NeverFits: it needs more than a whole window's allowance.
            NotServed: no endpoint serves the model.
            AllDisabled: none of those that serve it can be used any more.
            AdmissionClosed: the run drains.
        """
        if self._closed:
            raise AdmissionClosed
        lanes, need = _fitting(self._serving(model, only), need)
        if self._tasks is not None and len(lanes) == 1 and again is None and not self._waiting:
            # Nobody is there to be overtaken: where nothing has to be waited for either, no task is switched.
            ticket = lanes[0].admit_now(need)
            if ticket is not None:
                return ticket
        waiter = self._queues.put(need, lanes, _preferred(lanes, key), _lane_of(lanes, avoid), again)
        self._waiting.add(waiter)
        try:
            return await waiter.turn
        except asyncio.CancelledError:
            self._give_up(waiter)
            raise
        finally:
            self._waiting.discard(waiter)

    def _give_up(self, waiter: Waiter) -> None:
        """Its job was cancelled. In a queue it stays until its turn comes, and is passed over then."""
        turn = waiter.turn
        if turn.done() and not turn.cancelled() and turn.exception() is None:
            # Granted and cancelled in the same step of the loop.
            self.settle(turn.result(), Usage(0, 0))
            self.release(turn.result())
            return
        turn.cancel()
        if waiter.lane is not None:
            waiter.lane.abandon()

    def answered(self, ticket: Ticket, said: RateLimits) -> None:
        """An answer came with a good status and these headers."""
        lane = ticket.lane
        gate = lane.endpoint.gate
        more_slots = gate.concurrency.answered(gate.in_flight, self._clock())
        lane.answered(ticket, said)
        if more_slots:
            gate.wake()

    def throttled(self, ticket: Ticket, said: RateLimits, wait_s: float | None, *, ramp: bool = False) -> None:
        """An answer asked everybody to slow down; `wait_s` is the server's advice, a floor.

        `ramp`: it asked for slow growth (slow_down).
        """
        ticket.lane.refused(ticket, said, wait_s, ramp=ramp)

    def received(self, ticket: Ticket, chunks: int = 1) -> None:
        """So many chunks (or one whole answer) arrived: what adaptive concurrency measures."""
        lane = ticket.lane
        gate = lane.endpoint.gate
        if gate.concurrency.received(chunks, gate.in_flight, self._clock()):
            gate.wake()
        if not ticket.accepted:
            lane.accepted(ticket)

    def concluded(self, ticket: Ticket, fault: Fault | None) -> None:
        """How the attempt ended: what decides whether its endpoint works, where there are others.

        A server that says that it has too much to do has said so to this attempt; whether it means all is found out.
        """
        if fault is not None and _is_overload(fault):
            ticket.lane.refused(ticket, fault.limits, fault.retry_after_s, overloaded=True)
        if len(self._endpoints) == 1:
            return
        breaker, changed = ticket.endpoint.breaker, False
        if fault is None:
            changed = breaker.succeeded(ticket)
        elif fault.retry and not fault.row.throttle and fault.row.whose in ("server", "network"):
            changed = breaker.failed(ticket, self._clock())
        if changed:
            self._stir(ticket.endpoint)

    def disable(self, endpoint: Endpoint, fault: Fault, model: str | None) -> bool:
        """Nothing more is sent there; False if that leaves none for the model.

        Who waits for nothing else gets AllDisabled.
        """
        endpoint.fault = fault
        self._stir(endpoint)
        for waiter in self._waiting:
            if all(lane.endpoint.disabled for lane in waiter.queue.lanes) and not waiter.turn.done():
                waiter.turn.set_exception(AllDisabled(fault))
        return any(each.serves(model) and not each.disabled for each in self._endpoints.values())

    def _stir(self, endpoint: Endpoint) -> None:
        for lane in endpoint.lanes.values():
            if endpoint.state != "ok":
                lane.abandon()
            self._queues.stir_all(lane)

    def settle(self, ticket: Ticket, used: Usage | None) -> None:
        """Gives back what was reserved beyond the real usage, or takes what is missing. None: the estimate stands."""
        ticket.lane.settle(ticket, used)

    def release(self, ticket: Ticket) -> None:
        """Frees the slot; the second time it does nothing."""
        lane = ticket.lane
        lane.release(ticket)
        breaker = lane.endpoint.breaker
        if not breaker.closed:
            breaker.ended(ticket)
            self._queues.stir_all(lane)

    def close(self) -> None:
        """Nobody is admitted any more; those who wait get AdmissionClosed, and `run` returns."""
        self._closed = True
        self._ended.set()
        for waiter in self._waiting:
            if not waiter.turn.done():
                waiter.turn.set_exception(AdmissionClosed())

    # ── Lanes ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _lanes(self) -> list[Lane]:
        return [lane for endpoint in self._endpoints.values() for lane in endpoint.lanes.values()]

    def _serving(self, model: str | None, only: str | None) -> tuple[Lane, ...]:
        """The lanes for a model, one of each endpoint that serves it and isn't disabled: of `only` where that must."""
        route = self._routes.get(model)
        if route is None:
            route = tuple(self._lane(each, model) for each in self._endpoints.values() if each.serves(model))
            if len(self._routes) < MAX_LANES:
                self._routes[model] = route
        if not route:
            raise NotServed(f"no endpoint serves the model {model}" if model else "no endpoint serves unnamed models")
        if len(route) == 1 and route[0].endpoint.fault is None and only is None:
            return route
        usable = tuple(lane for lane in route if not lane.endpoint.disabled)
        if not usable:
            raise AllDisabled(next(lane.endpoint.fault for lane in reversed(route) if lane.endpoint.fault is not None))
        if only is None or len(self._endpoints) == 1:
            return usable
        found = tuple(lane for lane in usable if lane.endpoint.name == only)
        if not found:
            raise AllDisabled(Fault(FaultKind.NOT_SERVED, f"{only} can't be used any more"))
        return found

    def _lane(self, endpoint: Endpoint, model: str | None) -> Lane:
        name, limits = limits_of(model, endpoint.limits)
        lane = endpoint.lanes.get(name)
        if lane is None:
            if len(endpoint.lanes) >= MAX_LANES and name not in endpoint.limits:
                return next(iter(endpoint.lanes.values()))
            lane = endpoint.lanes[name] = Lane(name, limits, endpoint, self._queues, self._clock)
            if self._tasks is not None:
                self._tasks.start_soon(lane.run)
        return lane

    @property
    def usable(self) -> bool:
        """Whether any endpoint can be used."""
        return not all(endpoint.disabled for endpoint in self._endpoints.values())

    # ── Statistics ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def room_for_others(self) -> bool:
        """Whether slots are free that attempts in other queues than those that wait could use."""
        return self._whole.has_room and self._queues.one_is_idle

    @property
    def limit(self) -> int:
        """Slots as of now, of all endpoints."""
        return min(self._whole.concurrency.limit, sum(each.gate.concurrency.limit for each in self._endpoints.values()))

    def statistics(self) -> AdmissionStatistics:
        """A snapshot."""
        now = self._clock()
        endpoints = self._endpoints.values()
        rpm_allowed, rpm_used = self._use("rpm")
        tpm_allowed, tpm_used = self._use("tpm")
        several = endpoints if len(endpoints) > 1 else ()
        return AdmissionStatistics(
            waiting=len(self._waiting),
            in_flight=self._whole.in_flight,
            limit=self.limit,
            cooldown_remaining_s=max([0.0, *(lane.cooldown.until_s - now for lane in self._lanes())]),
            rpm_allowed=rpm_allowed,
            rpm_used=rpm_used,
            tpm_allowed=tpm_allowed,
            tpm_used=tpm_used,
            blocked_s=dict(self._whole.blocked),
            endpoints={
                each.name: {"state": each.state, "requests": each.admitted, "in_flight": each.gate.in_flight}
                for each in several
            },
        )

    def _use(self, name: str) -> tuple[float | None, float]:
        """What is allowed a minute, and what was used in the last: of the run, else of the endpoints, else of lanes."""
        whole = self._whole.bucket(name)
        if whole is not None:
            return whole.per_minute, whole.used
        found: list[Bucket | None] = []
        for endpoint in self._endpoints.values():
            own = endpoint.gate.bucket(name)
            lanes = [lane.limits.buckets.get(name) for lane in endpoint.lanes.values()]
            found += [own] if own is not None else [each if isinstance(each, Bucket) else None for each in lanes]
        known = [bucket for bucket in found if bucket is not None]
        used = sum(bucket.used for bucket in known)
        return (sum(bucket.per_minute for bucket in known) if known and len(known) == len(found) else None), used


def _fitting(lanes: tuple[Lane, ...], need: Need) -> tuple[tuple[Lane, ...], Need]:
    """The lanes whose limits an attempt fits in, and what it reserves in all of them."""
    if len(lanes) == 1:
        return lanes, lanes[0].limits.fitted(need)
    needs: dict[Lane, Need] = {}
    refusal: NeverFits | None = None
    for lane in lanes:
        try:
            needs[lane] = lane.limits.fitted(need)
        except NeverFits as error:
            refusal = error
    if not needs:
        assert refusal is not None
        raise refusal
    # A guess is cut for the narrower ones only where it fits in none as it is.
    most = max(needs.values(), key=lambda each: each.tokens)
    return tuple(lane for lane in lanes if needs.get(lane) == most), most


def _preferred(lanes: tuple[Lane, ...], key: str | None) -> Lane | None:
    if key is None or len(lanes) == 1:
        return None
    name = favourite(key, (lane.endpoint.name for lane in lanes))
    return next(lane for lane in lanes if lane.endpoint.name == name)


def _lane_of(lanes: tuple[Lane, ...], endpoint: Endpoint | None) -> Lane | None:
    if endpoint is None:
        return None
    return next((lane for lane in lanes if lane.endpoint is endpoint), None)


def _is_overload(fault: Fault) -> bool:
    """Whether the server had too much to do. 503 says it by its meaning (RFC 9110), the other statuses by a code."""
    return fault.kind is FaultKind.OVERLOADED or (fault.kind is FaultKind.SERVER_ERROR and fault.status == 503)
