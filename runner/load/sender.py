"""One process's share of one level: when each request goes out, and what came of all of them.

- Closed loop: so many lanes, each sends its next request when the answer to the last is in. They begin one after
  another, spread over the warm-up: lanes that begin together end together, again and again, and two hundred requests
  in one instant would measure this client's own queue.
  A lane whose request failed at once backs off before its next one, or it would hammer a dead server thousands of
  times a second; how often and how long is counted. A 429 is an answer like any other: limits are what --rpm is for.
- Open loop: requests go out at their times, whatever the server does. What is due while `max_in_flight` are on their
  way is dropped and counted: to hold it back would be a hidden closed loop.

A conversation is one request of the arrival process; its later turns are due when the user has thought.

Sending ends with the level's time or number; requests on their way are waited for, since a slow answer must not leave
by the back door, but not for ever: at most `drain_s` after the last one went out, where waiting for the user's own
limits doesn't count. `stop` ends the sending early and waits for the grace period, `cut` ends the waiting too. What is
on its way then counts as in flight: no answer, hence no objective kept.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final, NamedTuple, Protocol

import anyio

from runner.load.arrivals import Replay
from runner.load.conversations import Conversation, Conversations, Turn
from runner.load.engine import Answer, Request
from runner.load.prompts import Supply
from runner.load.samples import Ending, RequestSample
from runner.load.slo import Slo
from runner.load.spec import LevelSpec

MIN_LANE_GAP_S: Final = 0.001
MAX_LANE_GAP_S: Final = 0.1
"""Few lanes need no more to be apart."""
LAG_EVERY_S: Final = 0.01
"""How long the sleep is whose lateness is the loop's lag."""
FIRST_PAUSE_S: Final = 0.01
MAX_PAUSE_S: Final = 1.0
"""From one request of a lane to the next when the first has failed: doubled while they go on failing. A failure that
took as long by itself isn't waited for."""
CHECK_S: Final = 1.0
"""How often it is looked whether requests wait for limits, after the last one was due."""
MIN_CPU_S: Final = 0.1
"""The CPU share of less time says nothing: that of a process without a lane would be its own start."""


class Part(NamedTuple):
    """Which part of the level this process sends."""

    number: int = 0
    of: int = 1


WHOLE: Final = Part()


class Workload(NamedTuple):
    """What is sent: one of the first two, and the times of a trace where there is one."""

    supply: Supply | None
    conversations: Conversations | None = None
    trace: Replay | None = None


class Waits(Protocol):
    """A pacer."""

    async def until(self, moment_s: float) -> None:
        """Returns at a moment of the clock."""


class Means(Protocol):
    """What is sent with: an engine."""

    @property
    def pacer(self) -> Waits:
        """Waits for the moment to send."""

    @property
    def lead_s(self) -> float:
        """How long before its moment a request is to be handed to `send`, which keeps it until then."""

    @property
    def grace_s(self) -> float:
        """How long requests on their way may go on after a stop."""

    @property
    def waiting(self) -> int:
        """How many requests wait for the user's own limits."""

    @property
    def is_stopped(self) -> bool:
        """Whether nothing more may be sent."""

    def clock(self) -> float:
        """Monotonic seconds."""

    async def stopped(self) -> None:
        """Returns when nothing more may be sent."""

    async def send(self, request: Request, level: dict[str, Any], zero_s: float) -> Answer | None:
        """Sends one request and reads its answer; None: nothing more was sent when its moment came."""


_FAILURES: Final = frozenset({"failed", "dropped"})
"""Endings after which a lane backs off; dropped is what the user's own limits can never let through."""


class _Begun(NamedTuple):
    """A request or conversation that is ready to go."""

    first: Turn
    talk: Conversation | None


class Sender:
    """See the module. For one level."""

    def __init__(
        self, means: Means, workload: Workload, spec: LevelSpec, slo: Slo | None, zero_s: float, part: Part = WHOLE
    ) -> None:
        self._means = means
        self._clock = means.clock
        self._workload = workload
        self._spec = spec
        self._part = part
        self._zero_s = zero_s
        self._taken = 0
        self.numbers = 0
        """One more than the highest number that was begun."""
        self._about = {"level": spec.label, "repeat": spec.repeat, "run": spec.run}
        self._stopped = anyio.Event()
        self._all_begun = anyio.Event()
        self._last_s = 0.0
        """When the last request was sent, as far as that is known here."""
        self._sending = anyio.CancelScope()
        self._waiting = anyio.CancelScope()
        self.statistics = spec.statistics(slo)
        self.in_flight = 0

    @property
    def now_s(self) -> float:
        """Seconds since the level's start."""
        return self._clock() - self._zero_s

    @property
    def complete(self) -> bool:
        """Whether nothing cut it short."""
        return not self._stopped.is_set()

    def stop(self) -> None:
        """Sends nothing more."""
        self._stopped.set()
        self._sending.cancel()

    def cut(self) -> None:
        """Waits for nothing more."""
        self.stop()
        self._waiting.cancel()

    async def run(self) -> None:
        """Sends it all, and returns when the last answer is in."""
        await self._means.pacer.until(self._zero_s)
        cpu_s, began = time.process_time(), self._clock()
        async with anyio.create_task_group() as services:
            services.start_soon(self._watch_lag)
            services.start_soon(self._watch_drain)
            services.start_soon(self._watch_answers)
            services.start_soon(self._watch_grace)
            with self._waiting:
                await (self._closed() if self._spec.kind == "closed" else self._open())
            services.cancel_scope.cancel()
        if (elapsed_s := self._clock() - began) > MIN_CPU_S:
            self.statistics.add_cpu((time.process_time() - cpu_s) / elapsed_s)

    async def _watch_lag(self) -> None:
        while True:
            before = self._clock()
            await asyncio.sleep(LAG_EVERY_S)
            lag_s = self._clock() - before - LAG_EVERY_S
            self.statistics.add_lag(before - self._zero_s, max(0.0, lag_s))

    async def _watch_drain(self) -> None:
        await self._means.stopped()
        self.stop()

    async def _watch_grace(self) -> None:
        await self._stopped.wait()
        await anyio.sleep(self._means.grace_s)
        self._waiting.cancel()

    async def _watch_answers(self) -> None:
        """Gives up what is on its way when it has been waited for as long as the level says."""
        spec = self._spec
        if spec.drain_s is None:
            return
        with anyio.move_on_after(None if spec.duration_s is None else spec.duration_s - self.now_s):
            await self._all_begun.wait()
        while (left_s := self._last_s + spec.drain_s - self.now_s) > 0:
            await anyio.sleep(min(left_s, CHECK_S))
            # With nothing on its way users think.
            if self._means.waiting or not self.in_flight:
                self._last_s = self.now_s
        self._waiting.cancel()

    # ── Closed ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _closed(self) -> None:
        async with anyio.create_task_group() as lanes:
            with self._sending:
                gap_s = min(max(MIN_LANE_GAP_S, self._spec.warmup_s / self._spec.value), MAX_LANE_GAP_S)
                for number in range(self._spec.lanes(*self._part)):
                    # Every process has lanes of its own, and their starts interleave.
                    moment_s = (number * self._part.of + self._part.number) * gap_s
                    await self._means.pacer.until(self._zero_s + moment_s)
                    lanes.start_soon(self._lane)

    async def _lane(self) -> None:
        failures = 0
        while not self._stopped.is_set():
            number = self._next_number()
            if self._spec.is_over(number, self.now_s):
                return
            self._taken += 1
            if self._spec.is_over(self._next_number(), self.now_s):
                self._all_begun.set()
            self.in_flight += 1
            began = self.now_s
            ending = await self._session(self._begin(number), None)
            # What has arrived meanwhile has its stamps before the next request is made: each takes half a millisecond.
            await asyncio.sleep(0)
            failures = failures + 1 if ending in _FAILURES else 0
            if ending is None or not await self._backs_off(began, failures):
                return

    async def _backs_off(self, began_s: float, failures: int) -> bool:
        """Waits as long as so many failures in a row take; False: the level ends meanwhile."""
        if not failures:
            return True
        due_s = began_s + min(FIRST_PAUSE_S * 2 ** min(failures - 1, 10), MAX_PAUSE_S)
        if (pause_s := due_s - self.now_s) <= 0:
            return True
        if self._spec.is_over(self._next_number(), due_s):
            return False
        self.statistics.add_pause(pause_s)
        return not await self._stops_before(due_s)

    def _next_number(self) -> int:
        # A process without a lane must not keep numbers to itself.
        return self._part.number + self._taken * min(self._part.of, int(self._spec.value))

    # ── Open ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _open(self) -> None:
        room = self._spec.room(*self._part)
        async with anyio.create_task_group() as sessions:
            with self._sending:
                for number, when in self._spec.schedule(self._workload.trace, *self._part):
                    begun = self._begin(number)  # made before it is due
                    await self._means.pacer.until(self._zero_s + when - self._means.lead_s)
                    if self.in_flight >= room:  # what is ready but not due takes no room
                        await self._means.pacer.until(self._zero_s + when)
                    if self.in_flight >= room:
                        self.statistics.add(RequestSample(scheduled=when))
                    else:
                        self.in_flight += 1
                        sessions.start_soon(self._session, begun, when)
                self._all_begun.set()

    # ── Both ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, number: int) -> _Begun:
        self.numbers = max(self.numbers, number + 1)
        k = self._spec.first + number
        supply, conversations = self._workload.supply, self._workload.conversations
        if conversations is None:
            assert supply is not None
            return _Begun(Turn(supply.job(k), 0.0), None)
        talk = conversations.conversation(k)
        first = talk.next(None)
        assert first is not None
        return _Begun(first, talk)

    async def _session(self, begun: _Begun, scheduled: float | None) -> Ending | None:
        """A request, or the turns of a conversation; its first one is counted as in flight already.

        What became of the last one; None: the level ends before its moment, or while its user thinks.
        """
        turn, talk = begun
        while True:
            answer = await self._one(Request(turn.job, scheduled, wants_text=talk is not None))
            if answer is None:
                return None
            following = None if talk is None else talk.next(answer.text)
            if following is None:
                return answer.sample.ending
            turn = following
            due = (answer.sample.end or self.now_s) + turn.think_s
            scheduled, lead_s = (None, 0.0) if self._spec.kind == "closed" else (due, self._means.lead_s)
            if self._spec.is_over(0, due) or await self._stops_before(due - lead_s):
                return None
            self.in_flight += 1

    async def _one(self, request: Request) -> Answer | None:
        began = self._last_s = max(self.now_s, request.scheduled or 0.0)
        try:
            answer = await self._means.send(request, self._about, self._zero_s)
        except anyio.get_cancelled_exc_class():
            if began <= self.now_s:  # else it was never due
                self.statistics.add(RequestSample(request.scheduled, began, began))
            raise
        finally:
            self.in_flight -= 1
        if answer is not None:
            self.statistics.add(answer.sample)
        if self._means.is_stopped:
            # At once: a lane whose every request is turned away would leave no other task a turn to notice.
            self.stop()
        return answer

    async def _stops_before(self, due_s: float) -> bool:
        with anyio.move_on_after(due_s - self.now_s):
            await self._stopped.wait()
            return True
        return False
