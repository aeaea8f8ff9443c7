"""Who waits for admission, in which order, and which lane takes whom.

Attempts that may go to the same lanes (one of each endpoint that serves their model) share a queue: first come, first
served, and a job that comes again is where it was. A lane takes the oldest of those at the head of its queues. Where
several lanes could take it at once, the one with the lowest load does; a lane that can't (cool-down, no slot, pace)
leaves it to the others.

An attempt may stick to one lane (`preferred`, by its prompt_cache_key): the others leave it alone, unless that lane is
cooling down, broken or disabled, or the attempt has waited STICKY_S.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.lanes import Lane
    from runner.tickets import Need, NeverFits, Ticket

STICKY_S: Final = 10.0
"""How long an attempt waits for the endpoint that has its prompt in the cache, before any other will do."""

KEEPS_PLACE: Final = 2
"""So many more attempts a job makes from its place in line."""


@dataclass(slots=True, eq=False)
class Waiter:
    """One attempt that waits."""

    need: Need
    since_s: float
    nth: int
    """Order of arrival over all queues; of a job that comes again, when it first came."""
    attempt: int
    """Of its job, from 0."""
    queue: Queue
    turn: asyncio.Future[Ticket]
    avoided: Lane | None
    """Where it failed last: taken only if no other can at once."""
    limited_before_s: dict[Lane, float]
    """How long the heads of each lane had waited for limits when it came."""
    lane: Lane | None = None
    """The lane that is at work on it."""
    taken_s: float = math.inf
    """Since when."""

    def limited_s(self, lane: Lane, now_s: float) -> float:
        """How long it has waited for limits of a lane; a wait that had begun before it came counts in part only."""
        return min(lane.limited_s - self.limited_before_s[lane], now_s - self.since_s)


@dataclass(slots=True, eq=False)
class Queue:
    """Attempts that may go to the same lanes."""

    lanes: tuple[Lane, ...]
    preferred: Lane | None
    waiters: deque[Waiter] = field(default_factory=deque)

    @property
    def head(self) -> Waiter | None:
        """The first; those that were cancelled meanwhile are dropped."""
        while self.waiters and self.waiters[0].turn.done():
            self.waiters.popleft()
        return self.waiters[0] if self.waiters else None

    def opens_in(self, lane: Lane, now_s: float) -> float:
        """Seconds until the lane may take the head; 0 is now, inf as long as nothing changes."""
        if len(self.lanes) == 1:
            return math.inf if lane.endpoint.disabled else 0.0
        wait_s = self._passed_over(lane, now_s)
        favourite, head = self.preferred, self.head
        if favourite not in (None, lane) and head is not None and not _is_away(favourite, now_s):
            wait_s = max(wait_s, head.since_s + STICKY_S - now_s)
        return wait_s

    def _passed_over(self, lane: Lane, now_s: float) -> float:
        """A broken endpoint gets nothing but a probe, unless there is no other."""
        if lane.endpoint.disabled:
            return math.inf
        wait_s = lane.endpoint.breaker.opens_in(now_s)
        if wait_s and any(other.endpoint.state == "ok" for other in self.lanes if other is not lane):
            return wait_s
        return 0.0


class Queues:
    """All queues of a run."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._queues: dict[tuple[tuple[Lane, ...], Lane | None], Queue] = {}
        self._arrived = 0

    def put(
        self, need: Need, lanes: tuple[Lane, ...], preferred: Lane | None, avoided: Lane | None, again: Ticket | None
    ) -> Waiter:
        """An attempt comes: a job's first at the end of its queue, the next at the place of the one before, `again`.

        So the probe that ends a pause is one that was refused before, where there is one: a server that refuses every
        job once would otherwise refuse every probe. After KEEPS_PLACE it's another job's turn to be the probe.
        """
        queue = self._queue(lanes, preferred)
        self._arrived += 1
        turn: asyncio.Future[Ticket] = asyncio.get_running_loop().create_future()
        limited = {lane: lane.limited_s for lane in lanes}
        attempt = again.attempt + 1 if again else 0
        place = again.place if again and attempt <= KEEPS_PLACE else self._arrived
        waiter = Waiter(need, self._clock(), place, attempt, queue, turn, avoided, limited)
        self._place(waiter)
        self.stir(queue)
        return waiter

    def pass_by(self, lane: Lane) -> int:
        """An attempt comes that needs no queue: its place in line, for when its job comes again."""
        if not lane.queues:
            self._queue((lane,), None)  # from now on it is known that it has none waiting
        self._arrived += 1
        return self._arrived

    def _place(self, waiter: Waiter) -> None:
        waiters = waiter.queue.waiters
        if not waiters or waiters[-1].nth < waiter.nth:
            waiters.append(waiter)
            return
        waiters.insert(next(i for i, other in enumerate(waiters) if other.nth >= waiter.nth), waiter)

    def _queue(self, lanes: tuple[Lane, ...], preferred: Lane | None) -> Queue:
        queue = self._queues.get((lanes, preferred))
        if queue is None:
            queue = self._queues[lanes, preferred] = Queue(lanes, preferred)
            for lane in lanes:
                lane.queues.append(queue)
        return queue

    def put_back(self, waiter: Waiter) -> None:
        """An attempt that was taken and couldn't be served: back to its place."""
        waiter.lane, waiter.taken_s = None, math.inf
        self._place(waiter)
        self.stir(waiter.queue)

    def reroute(self, waiter: Waiter, lane: Lane, refusal: NeverFits) -> None:
        """The head of a queue doesn't fit in one of its lanes any more: it is for the others, if there are any."""
        waiter.queue.waiters.popleft()
        others = tuple(other for other in waiter.queue.lanes if other is not lane and not other.endpoint.disabled)
        if not others:
            waiter.turn.set_exception(refusal)
            return
        waiter.queue = self._queue(others, waiter.queue.preferred if waiter.queue.preferred in others else None)
        self.put_back(waiter)

    def take(self, waiter: Waiter, lane: Lane) -> None:
        """The lane takes the head of a queue; whoever is best suited for the next one is woken.

        So are those who left another of its queues to it.
        """
        waiter.queue.waiters.popleft()
        waiter.lane, waiter.taken_s = lane, self._clock()
        for queue in lane.queues:
            if len(queue.lanes) > 1:  # else only this lane could take the next one, and it looks at it next
                self.stir(queue)

    def first_for(self, lane: Lane) -> tuple[Waiter | None, float]:
        """The oldest attempt that the lane may take; where there is none, the seconds until there is one."""
        now_s, first, soonest_s = self._clock(), None, math.inf
        for queue in lane.queues:
            head = queue.head
            if head is None:
                continue
            wait_s = queue.opens_in(lane, now_s)
            soonest_s = min(soonest_s, wait_s)
            if wait_s <= 0 and (first is None or head.nth < first.nth):
                first = head
        return first, soonest_s

    def best_for(self, waiter: Waiter, asking: Lane) -> Lane:
        """Of the lanes that could take it now, `asking` among them, the one with the lowest load."""
        queue = waiter.queue
        if len(queue.lanes) == 1:
            return asking
        return _best(waiter, [lane for lane in queue.lanes if lane is asking or self._could(lane, queue)])

    def _could(self, lane: Lane, queue: Queue) -> bool:
        """Whether the lane could take the head; not while it waits for what an older one of another queue needs."""
        head = queue.head
        if head is None or not lane.ready_for(head.need) or queue.opens_in(lane, self._clock()) > 0:
            return False
        first, _ = self.first_for(lane)
        return first is None or first is head or lane.ready_for(first.need)

    def stir(self, queue: Queue) -> None:
        """There is somebody at the head of a queue, or somebody else: wakes the lane that should look at it.

        Where none is ready all of them look: each knows how long it has to wait.
        """
        if len(queue.lanes) == 1:  # it looks, ready or not
            queue.lanes[0].wake()
            return
        head = queue.head
        if head is None:
            return
        ready = [lane for lane in queue.lanes if self._could(lane, queue)]
        for lane in [_best(head, ready)] if ready else queue.lanes:
            lane.wake()

    def pass_on(self, lane: Lane) -> None:
        """The lane can't take anybody now: wakes those that can."""
        for queue in lane.queues:
            head, others = queue.head, [other for other in queue.lanes if other is not lane]
            ready = [other for other in others if self._could(other, queue)]
            if head is not None and ready:
                _best(head, ready).wake()

    def stir_all(self, lane: Lane) -> None:
        """A lane's state changed: what it leaves alone is for the others, and the other way round."""
        for queue in lane.queues:
            for other in queue.lanes:
                other.wake()

    @property
    def one_is_idle(self) -> bool:
        """Whether some lanes have waiting attempts while others, known from before, have none."""
        known = {lane for queue in self._queues.values() for lane in queue.lanes if not lane.endpoint.disabled}
        wanted = {lane for queue in self._queues.values() if queue.head is not None for lane in queue.lanes}
        return bool(wanted) and not known <= wanted


def _best(waiter: Waiter, ready: list[Lane]) -> Lane:
    return min(ready, key=lambda lane: (lane is waiter.avoided, _load(lane), lane.endpoint.admitted))


def _load(lane: Lane) -> float:
    """The part of what it may use that is in use: slots, requests or tokens, whichever is most; 0 to 1."""
    limits = lane.limits
    streams = 0.0 if limits.concurrency is None else lane.in_flight / limits.concurrency
    return max(lane.endpoint.gate.load, limits.load, streams)


def _is_away(lane: Lane, now_s: float) -> bool:
    """Whether who sticks to it should rather go elsewhere."""
    return lane.endpoint.state != "ok" or now_s < lane.cooldown.until_s
