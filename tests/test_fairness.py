"""Scheduling under attack, in virtual time: random worlds whose promises are checked by somebody else's count.

What is checked is what a server or a user could see: when each attempt was admitted, where, and how long it waited.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import anyio
import pytest

from runner.admission import Admission
from runner.buckets import Bucket
from runner.concurrency import AdaptiveConcurrency, FixedConcurrency
from runner.endpoints import Endpoint, favourite
from runner.faults import Fault, FaultKind
from runner.gate import Gate
from runner.outcome import Usage
from runner.queues import Queues
from runner.ratelimits import UNKNOWN, Allowance, RateLimits
from runner.settings import ModelLimits
from runner.testing.virtual_time import run_virtual
from runner.tickets import AllDisabled, Need, NeverFits, NotServed, Ticket

KNOWN: Final = {"*": ModelLimits(rpm=1e9)}
LIMITED: Final = Fault(FaultKind.RATE_LIMITED, "slow")
OVERLOADED: Final = Fault(FaultKind.OVERLOADED, "busy")
FAULTS: Final = (
    *(LIMITED, LIMITED, LIMITED, OVERLOADED, Fault(FaultKind.SLOW_DOWN, "slow")),
    *(Fault(FaultKind.SERVER_ERROR, "boom"), Fault(FaultKind.CONNECT, "refused")),
)


@dataclass(slots=True)
class Sent:
    """One admission, as the server counts it."""

    at_s: float
    tokens: int
    waited_s: float
    name: str
    model: str | None


@dataclass
class Field:
    """Admission over some endpoints, and an independent count of what it let through."""

    endpoints: Sequence[Endpoint]
    whole: Gate | None
    clock: Callable[[], float]
    answers: Callable[[str, float], Fault | None] = lambda name, at_s: None
    headers: Callable[[str], RateLimits] = lambda name: UNKNOWN
    sent: list[Sent] = field(default_factory=list)
    busy: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.admission = Admission(self.endpoints, clock=self.clock, whole=self.whole)
        self.start_s = self.clock()

    async def job(
        self,
        tokens: int = 1,
        *,
        model: str | None = "m",
        key: str | None = None,
        hold_s: float = 1.0,
        used: int | None = None,
        wait_s: float | None = None,
    ) -> None:
        """One job through as many attempts as it takes."""
        last = None
        for _ in range(1000):
            start_s = self.clock()
            try:
                ticket = await self.admission.acquire(model, Need(tokens, 0), key=key, avoid=last)
            except (NeverFits, NotServed, AllDisabled) as error:
                self.ended[type(error).__name__] += 1
                return
            last = ticket.endpoint
            sent = Sent(self.clock(), ticket.need.tokens, self.clock() - start_s, last.name, model)
            self.sent.append(sent)
            if await self._attempt(ticket, sent, hold_s, used, wait_s):
                self.ended["served"] += 1
                return
            await anyio.sleep(0.05)

    async def _attempt(self, ticket: Ticket, sent: Sent, hold_s: float, used: int | None, wait_s: float | None) -> bool:
        name, admission, real = ticket.endpoint.name, self.admission, None
        for counted in (name, "all", f"{name}/{ticket.lane.name}"):
            self.busy[counted] += 1
            self.most[counted] = max(self.most[counted], self.busy[counted])
        try:
            fault = self.answers(name, self.clock() - self.start_s)
            await anyio.sleep(0.01)
            if fault is None:
                admission.answered(ticket, self.headers(name))
                await anyio.sleep(hold_s)
                admission.received(ticket)
                real = None if used is None else Usage(used, 0)
                sent.tokens = sent.tokens if used is None else used
            admission.concluded(ticket, fault)
            if fault is not None and fault.row.throttle:
                admission.throttled(ticket, self.headers(name), wait_s)
        finally:
            for counted in (name, "all", f"{name}/{ticket.lane.name}"):
                self.busy[counted] -= 1
            admission.settle(ticket, real)
            admission.release(ticket)
        return fault is None

    def of(self, name: str) -> list[Sent]:
        """What went to one endpoint."""
        return [sent for sent in self.sent if sent.name == name]


def endpoint(name: str, clock: Callable[[], float], outer: Gate | None = None, **said: Any) -> Endpoint:
    slots = said.get("slots", 1000)
    gate = Gate(
        rpm=said.get("rpm"),
        tpm=said.get("tpm"),
        concurrency=FixedConcurrency(slots) if isinstance(slots, int) else slots,
        clock=clock,
        outer=outer,
    )
    return Endpoint(name, gate, said.get("limits", KNOWN), {model: model for model in said.get("models", ())})


def play(
    body: Callable[[Field], Awaitable[Any]],
    *,
    slots: int = 1000,
    rpm: float | None = None,
    tpm: float | None = None,
    answers: Callable[[str, float], Fault | None] = lambda name, at_s: None,
    headers: Callable[[str], RateLimits] = lambda name: UNKNOWN,
    **endpoints: Any,
) -> Field:
    """Runs `body` in front of such endpoints, and sees that nothing is left behind."""

    async def main() -> Field:
        clock = asyncio.get_running_loop().time
        whole = None
        if len(endpoints) > 1:
            whole = Gate(rpm=rpm, tpm=tpm, concurrency=FixedConcurrency(slots), clock=clock)
        made = [endpoint(name, clock, whole, **said) for name, said in endpoints.items()]
        world = Field(made, whole, clock, answers, headers)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(world.admission.run)
            await body(world)
            await anyio.sleep(1)
            statistics = world.admission.statistics()
            tasks.cancel_scope.cancel()
        assert (statistics.in_flight, statistics.waiting) == (0, 0)
        assert not any(each.gate.in_flight for each in made)
        assert not any(lane.in_flight for each in made for lane in each.lanes.values())
        return world

    return run_virtual(main)


async def flood(world: Field, count: int, **kwargs: Any) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(partial(world.job, **kwargs))


def fullest(sent: Sequence[Sent], of: Callable[[Sent], float] = lambda each: 1) -> float:
    """The most that any 60 s hold."""
    inside: deque[Sent] = deque()
    total = most = 0.0
    for each in sorted(sent, key=lambda one: one.at_s):
        inside.append(each)
        total += of(each)
        while inside[0].at_s <= each.at_s - 60:
            total -= of(inside.popleft())
        most = max(most, total)
    return most


def assert_within(sent: Sequence[Sent], rpm: float | None, tpm: float | None) -> None:
    """No sliding 60 s window above the limit and one burst (of tokens: and the one admission that may top it)."""
    if rpm is not None:
        assert fullest(sent) <= rpm + max(1, rpm / 120)
    if tpm is not None:
        largest = max((each.tokens for each in sent), default=0)
        assert fullest(sent, lambda each: each.tokens) <= tpm + max(1, tpm / 120) + largest


# ── Random worlds ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class World:
    """Endpoints, limits, faults, headers and jobs, all drawn from a seed."""

    rng: random.Random

    def drawn(self) -> dict[str, Any]:
        """The endpoints; none is ever disabled, so everybody can be served or never fits."""
        return {f"e{i}": self._endpoint() for i in range(self.rng.choice([1, 2, 3, 4]))}

    def _maybe(self, share: float, *values: float) -> float | None:
        return self.rng.choice(values) if self.rng.random() < share else None

    def _endpoint(self) -> dict[str, Any]:
        rng = self.rng
        slots = rng.choice([1, 2, 3, 10, 100])
        return {
            "rpm": self._maybe(0.3, 10, 60, 600),
            "tpm": self._maybe(0.3, 20_000, 60_000),
            "slots": AdaptiveConcurrency(start=min(slots, 8)) if rng.random() < 0.25 else slots,
            "limits": {name: self._limits() for name in ("*", "m1", "m") if rng.random() < 0.5},
        }

    def _limits(self) -> ModelLimits:
        return ModelLimits(
            rpm=self._maybe(0.4, 6, 30, 300),
            tpm=self._maybe(0.4, 20_000, 60_000),
            input_tpm=self._maybe(0.1, 20_000),
            concurrency=self.rng.choice([None, None, 1, 3]),
        )

    def answers(self, name: str, at_s: float) -> Fault | None:
        """A fifth of all attempts fail, and e0 refuses everything for a while."""
        if name == "e0" and 20 <= at_s < 50:
            return LIMITED
        return self.rng.choice(FAULTS) if self.rng.random() < 0.2 else None

    def headers(self, name: str) -> RateLimits:
        """What e1 says makes little sense."""
        limit = float(self.rng.randint(100, 700))
        said = Allowance(limit, self.rng.uniform(0, limit), self.rng.uniform(0, 60))
        return RateLimits(requests=said) if name == "e1" else UNKNOWN

    async def play(self, world: Field) -> None:
        """So many jobs, of which a third lose patience."""
        rng = self.rng
        async with anyio.create_task_group() as tasks:
            for i in range(rng.choice([40, 120])):
                tasks.start_soon(self._one, world, i, rng.choice([0.0, 0.001, 0.5, 5.0, *[math.inf] * 8]))
                if rng.random() < 0.7:
                    await anyio.sleep(rng.expovariate(10))

    async def _one(self, world: Field, i: int, patience_s: float) -> None:
        rng = self.rng
        with anyio.move_on_after(patience_s) as scope:
            size = rng.choice([1, 10, 100, 1000, rng.randint(1, 20_000)])
            await world.job(
                size,
                model=rng.choice(["m0", "m1", "m2", "other", None]),
                key=rng.choice([None, None, "k", str(i)]),
                hold_s=rng.choice([0.01, 1.0, rng.expovariate(1 / 3)]),
                used=rng.choice([None, rng.randint(0, size)]),
                wait_s=rng.choice([None, 0.0, 0.5, 5.0]),
            )
        world.ended["cancelled"] += scope.cancelled_caught


BOUND_S: Final = 3 * 3600
"""120 jobs of some attempts at six requests a minute, under cool-downs of up to a minute."""


@pytest.mark.parametrize("seed", range(30))
def test_in_a_random_world_everybody_is_served_or_told_and_no_limit_is_passed(seed):
    print("seed", seed)
    rng = random.Random(seed)
    drawn = World(rng)
    said = drawn.drawn()
    limits: dict[str, Any] = {"slots": rng.choice([2, 8, 50, 1000]), "rpm": rng.choice([None, 100, 600])}

    async def body(world: Field) -> None:
        with anyio.fail_after(BOUND_S):
            await drawn.play(world)

    world = play(body, **limits, answers=drawn.answers, headers=drawn.headers, **said)
    several = len(said) > 1
    assert world.most["all"] <= (limits["slots"] if several else math.inf)
    assert_within(world.sent, limits["rpm"] if several else None, None)
    for each in world.endpoints:
        own = said[each.name]
        if isinstance(own["slots"], int):
            assert world.most[each.name] <= own["slots"]
        assert_within(world.of(each.name), own["rpm"], own["tpm"])
        for name, lane in own["limits"].items():
            if lane.concurrency is not None:
                assert world.most[f"{each.name}/{name}"] <= lane.concurrency


# ── Big among small ──────────────────────────────────────────────────────────────────────────────────────────────────


async def _big_among_small(world: Field, big: int, small: int, workers: int = 20) -> None:
    async def small_ones() -> None:
        while True:
            await world.job(small, hold_s=0.2)

    async with anyio.create_task_group() as tasks:
        for _ in range(workers):
            tasks.start_soon(small_ones)
        await anyio.sleep(5)
        with anyio.fail_after(120):
            await world.job(big, hold_s=0.0)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("fits", ["everywhere", "in one"])
def test_a_big_job_among_small_ones_at_several_endpoints_gets_in_within_two_windows(fits):
    async def body(world: Field) -> None:
        await _big_among_small(world, 25_000, 50)

    play(body, a={"tpm": 30_000}, b={"tpm": 30_000 if fits == "everywhere" else 10_000}, slots=50)


def test_a_big_job_among_small_ones_gets_in_within_two_windows_of_the_runs_own_limit():
    async def body(world: Field) -> None:
        await _big_among_small(world, 25_000, 50)

    world = play(body, tpm=30_000, a={}, b={"slots": 3}, c={"tpm": 26_000})
    assert_within(world.sent, None, 30_000)


def test_a_big_job_gets_in_within_two_windows_by_the_servers_own_count():
    """The headers alone name the limit, and what is left of it as of each answer."""
    buckets: dict[str, list[float]] = {}

    def headers(name: str) -> RateLimits:
        now, (level, at) = asyncio.get_running_loop().time(), buckets.get(name, (30_000.0, 0.0))
        level = max(0.0, min(30_000.0, level + (now - at) * 500) - 50)
        buckets[name] = [level, now]
        return RateLimits(tokens=Allowance(30_000.0, float(int(level)), (30_000 - level) / 500))

    async def body(world: Field) -> None:
        await _big_among_small(world, 25_000, 50)

    play(body, headers=headers, a={}, b={}, slots=50)


def test_an_endpoint_takes_the_oldest_of_those_that_it_may_take_whichever_queue_they_stand_in():
    """Some stick to a, some go anywhere: when a takes one, nobody who came before it still waits."""
    key = next(f"k{i}" for i in range(100) if favourite(f"k{i}", "ab") == "a")
    taken: list[tuple[int, str]] = []

    async def body(world: Field) -> None:
        async def job(i: int) -> None:
            ticket = await world.admission.acquire("m", Need(1, 0), key=key if i % 3 else None)
            taken.append((i, ticket.endpoint.name))
            await anyio.sleep(rng.uniform(0.5, 1.5))
            world.admission.release(ticket)

        async with anyio.create_task_group() as tasks:
            for i in range(100):
                tasks.start_soon(job, i)

    rng = random.Random(2)
    play(body, a={"slots": 1}, b={"slots": 1})
    waiting = set(range(100))
    for i, name in taken:
        assert name == "b" or i == min(waiting)
        waiting.discard(i)


# ── Models ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_models_share_the_slots_of_the_run_evenly():
    async def body(world: Field) -> None:
        async def jobs(model: str) -> None:
            while True:
                await world.job(model=model, hold_s=rng.uniform(0.5, 1.5))

        async with anyio.create_task_group() as tasks:
            for model in "vwxyz":
                for _ in range(5):
                    tasks.start_soon(jobs, model)
            await anyio.sleep(600)
            tasks.cancel_scope.cancel()

    rng = random.Random(1)
    world = play(body, slots=4, a={"slots": 2}, b={"slots": 3})
    counts = Counter(sent.model for sent in world.sent)
    assert max(counts.values()) <= 1.1 * min(counts.values()), counts
    assert max(sent.waited_s for sent in world.sent) <= 30


@pytest.fixture
def looks(monkeypatch):
    """How often a lane looked at its queues."""
    counted = [0]
    original = Queues.first_for

    def first_for(self, lane):
        counted[0] += 1
        return original(self, lane)

    monkeypatch.setattr(Queues, "first_for", first_for)
    return counted


@pytest.mark.parametrize("said", [{"a": {"slots": 8}}, {"a": {"slots": 5}, "b": {"slots": 5}}, {"a": {}, "b": {}}])
def test_two_hundred_models_that_wait_for_slots_take_turns_and_cost_a_few_looks_each(looks, said):
    async def body(world: Field) -> None:
        async with anyio.create_task_group() as tasks:
            for round_ in range(3):
                for i in range(200):
                    tasks.start_soon(partial(world.job, model=f"m{i}"))
                await anyio.sleep(0.001 * round_)

    world = play(body, slots=8, **said)
    assert len(world.sent) == 600
    first = Counter(sent.model for sent in world.sent[:300])
    assert max(first.values()) <= 2
    # Per admission: the look that takes somebody, the one after it, and those at an answer, a chunk and a release.
    assert looks[0] <= 12 * len(world.sent)


def test_thousands_who_wait_at_several_endpoints_cost_nothing(looks):
    async def body(world: Field) -> None:
        tickets = [await world.admission.acquire("m", Need(1, 0)) for _ in range(3)]
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(world.admission.acquire("m", Need(1, 0), key=f"k{i % 7}")) for i in range(20_000)]
        await anyio.sleep(60)  # what sticks has been given up by then
        before = looks[0]
        await anyio.sleep(3600)
        assert looks[0] == before
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for ticket in tickets:
            world.admission.release(ticket)

    play(body, a={"slots": 1}, b={"slots": 1}, c={"slots": 1})


def test_more_models_than_lanes_are_all_served():
    async def body(world: Field) -> None:
        for i in range(300):
            await world.job(model=f"m{i}", hold_s=0.0)

    world = play(body, a={}, b={})
    assert world.ended == {"served": 300}


# ── Slow limits ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("rpm", [0.5, 1, 1.5, 7])
@pytest.mark.parametrize("where", ["endpoint", "model", "run"])
def test_a_limit_of_very_few_requests_is_kept_and_used(rpm, where):
    async def body(world: Field) -> None:
        with anyio.move_on_after(3600):
            await flood(world, 600, hold_s=0.1)

    limits = {"*": ModelLimits(rpm=rpm if where == "model" else 1e9)}
    own = {"rpm": rpm if where == "endpoint" else None, "limits": limits}
    pool: dict[str, Any] = {"a": own, "b": {"models": ["another"]}}
    world = play(body, rpm=rpm if where == "run" else None, **pool)
    assert_within(world.sent, rpm, None)
    assert len(world.sent) >= 0.97 * 60 * rpm


def test_cancelled_waiters_give_back_what_they_paid_and_no_more():
    """Nine of ten lose patience while their payment, a second's worth, is under way."""

    async def impatient(world: Field) -> None:
        with anyio.move_on_after(rng.choice([0.01, 0.3, 0.9, 1.5])):
            await world.job(1000, hold_s=0.0)

    async def body(world: Field) -> None:
        async with anyio.create_task_group() as tasks:
            for i in range(600):
                tasks.start_soon(impatient if i % 10 else lambda one: one.job(1000, hold_s=0.0), world)
                await anyio.sleep(0.25)

    rng = random.Random(5)
    world = play(body, tpm=60_000, a={"tpm": 60_000, "rpm": 120}, b={"limits": {"*": ModelLimits(tpm=60_000)}})
    assert_within(world.sent, None, 60_000)
    assert_within(world.of("a"), 120, 60_000)
    assert len(world.sent) >= 0.9 * 60 * 600 * 0.25 / 60


# ── Overload ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_storm_at_one_of_three_endpoints_makes_nobody_wait_and_gets_probes_alone():
    async def body(world: Field) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(1200):
                tasks.start_soon(partial(world.job, hold_s=0.5))
                await anyio.sleep(0.05)

    world = play(body, answers=lambda name, at_s: LIMITED if name == "a" else None, a={}, b={}, c={})
    assert world.ended == {"served": 1200}
    assert max(sent.waited_s for sent in world.sent) < 0.01
    assert len(world.of("a")) <= 10  # 1, 2, 4 … s apart


@pytest.mark.parametrize("fault", [LIMITED, OVERLOADED])
def test_with_all_endpoints_in_cool_down_probes_go_and_all_is_well_afterwards(fault):
    async def body(world: Field) -> None:
        await flood(world, 300, hold_s=0.1)

    world = play(body, answers=lambda name, at_s: fault if at_s < 600 else None, slots=30, a={}, b={}, c={})
    assert world.ended == {"served": 300}
    # The first thirty, and who takes the slots of the three refusals that a lane excuses when it is called overloaded;
    # then three lanes' probes 1, 2, 4 … 60 s apart.
    assert sum(sent.at_s < 600 for sent in world.sent) <= 30 + 3 * (3 + 17)
    assert max(sent.at_s for sent in world.sent) < 700


def test_an_overloaded_server_of_many_models_sees_one_probe_of_each_at_a_time():
    async def body(world: Field) -> None:
        async with anyio.create_task_group() as tasks:
            for i in range(20):
                for _ in range(10):
                    tasks.start_soon(partial(world.job, model=f"m{i}", hold_s=0.1))

    world = play(body, answers=lambda name, at_s: OVERLOADED if at_s < 120 else None, a={"slots": 40})
    assert world.ended == {"served": 200}
    by_model: dict[str | None, list[float]] = defaultdict(list)
    for sent in world.sent:
        by_model[sent.model].append(sent.at_s)
    for times in by_model.values():
        assert sum(1 < at < 120 for at in times) <= 8


def test_answers_that_name_another_limit_each_time_neither_stop_nor_flood_the_run():
    async def body(world: Field) -> None:
        with anyio.move_on_after(300):
            await flood(world, 4_000, hold_s=0.2)

    rng = random.Random(3)
    world = play(
        body, headers=lambda name: RateLimits(Allowance(float(rng.randint(500, 700)))), a={"limits": {}, "slots": 50}
    )
    assert 0.9 * 500 * 5 <= len(world.sent) <= 700 * 5


# ── Buckets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("jump_s", [0.0, 1.0, 59.0, 3600.0])
def test_a_clock_that_jumps_ahead_brings_one_burst_and_no_flood(jump_s):
    """A laptop that was asleep: the loop's time goes on where a minute, or an hour, has passed."""

    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        bucket = Bucket(600, loop.time)
        times: list[float] = []
        for i in range(900):
            await bucket.acquire(1)
            times.append(loop.time())
            if i == 300:
                loop._jumping.now += jump_s  # type: ignore[attr-defined]
        return times

    times = run_virtual(main)
    sent = [Sent(at, 1, 0.0, "a", None) for at in times]
    assert_within(sent, 600, None)
