"""Refusals by chance, by overload and by a limit that is called overload: told apart by what a server does.

Each world is a real admission with real retries, in virtual time, and a server of one kind that names no limit.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace

import anyio
import pytest

from runner.admission import Admission
from runner.concurrency import AdaptiveConcurrency, FixedConcurrency
from runner.faults import Fault, FaultKind
from runner.outcome import Usage
from runner.retries import AttemptFailed, retrying
from runner.testing.virtual_time import run_virtual
from runner.tickets import Need, Ticket

LIMITED = Fault(FaultKind.RATE_LIMITED, "429", status=429)
OVERLOADED = Fault(FaultKind.OVERLOADED, "529", status=529)
UNAVAILABLE = Fault(FaultKind.SERVER_ERROR, "503", status=503)
KINDS = {"429": LIMITED, "529": OVERLOADED, "503": UNAVAILABLE}


@dataclass
class Server:
    """Refuses by chance, above a number of requests at once, above a rate, or for a while; it names nothing."""

    refusal: Fault = OVERLOADED
    chance: float = 0.0
    at_once: float = float("inf")
    rpm: float = 1e12
    storm: tuple[float, float] = (0.0, 0.0)
    first: bool = False
    """Whether the first attempt of every job is refused."""
    seed: int = 1
    serving: int = 0
    good: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    most: int = 0

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._level, self._at = self.rpm / 60, 0.0

    def take(self, attempt: int) -> bool:
        """Whether it serves this request; it saves up a second's worth of its rate."""
        now = asyncio.get_running_loop().time()
        self._level = min(self.rpm / 60, self._level + (now - self._at) * self.rpm / 60)
        self._at = now
        ok = (
            self._rng.random() >= self.chance
            and self.serving < self.at_once
            and self._level >= 1
            and not self.storm[0] <= now < self.storm[1]
            and not (self.first and attempt == 0)
        )
        if ok:
            self._level -= 1
        (self.good if ok else self.refused).append(now)
        return ok

    @property
    def share(self) -> float:
        """The part of the requests that were refused."""
        return len(self.refused) / max(1, len(self.refused) + len(self.good))

    def between(self, start: float, end: float) -> int:
        """Requests served then."""
        return sum(start <= at < end for at in self.good)


@dataclass
class Run:
    """So many jobs, each through its attempts as a worker makes them."""

    server: Server
    jobs: int = 2_000
    slots: int | None = 32
    answer_s: tuple[float, float] = (0.1, 0.3)
    way_s: float = 0.01
    headers_at: float = 0.0
    """The part of an answer's duration after which its status comes."""
    rpm: float | None = None
    max_attempts: int = 5
    seed: int = 1
    took_s: float = 0.0
    failed: int = 0

    def play(self, deadline_s: float = 2_000.0) -> Run:
        print("seeds", self.seed, self.server.seed)
        run_virtual(lambda: self._play(deadline_s))
        return self

    async def _play(self, deadline_s: float) -> None:
        clock = asyncio.get_running_loop().time
        slots = AdaptiveConcurrency() if self.slots is None else FixedConcurrency(self.slots)
        self.admission = Admission.of_one(rpm=self.rpm, tpm=None, concurrency=slots, clock=clock)
        self._rng, self._left = random.Random(self.seed), self.jobs
        with anyio.move_on_after(deadline_s):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.admission.run)
                async with anyio.create_task_group() as workers:
                    for _ in range(2 * (self.slots or 1_024)):
                        workers.start_soon(self._worker)
                self.admission.close()
                tasks.cancel_scope.cancel()
        self.took_s = clock()

    async def _worker(self) -> None:
        while self._left > 0:
            self._left -= 1
            try:
                await self._job()
            except AttemptFailed:
                self.failed += 1

    async def _job(self) -> None:
        tickets: list[Ticket] = []
        await retrying(lambda: self._attempt(tickets), self.max_attempts, rng=self._rng, sleep=anyio.sleep)

    async def _attempt(self, before: list[Ticket]) -> None:
        admission, rng, server, nth = self.admission, self._rng, self.server, len(before)
        ticket = await admission.acquire("m", Need(10, 10), again=before[-1] if before else None)
        before.append(ticket)
        try:
            await anyio.sleep(rng.uniform(0.2, 1) * self.way_s)
            if not server.take(nth):
                await anyio.sleep(rng.uniform(0.2, 1) * self.way_s)
                admission.concluded(ticket, server.refusal)
                if server.refusal.row.throttle:
                    admission.throttled(ticket, server.refusal.limits, server.refusal.retry_after_s)
                raise AttemptFailed(server.refusal)
            server.serving += 1
            server.most = max(server.most, server.serving)
            try:
                lasts_s = rng.uniform(*self.answer_s)
                await anyio.sleep(lasts_s * self.headers_at)
                admission.answered(ticket, server.refusal.limits)
                await anyio.sleep(lasts_s * (1 - self.headers_at))
            finally:
                server.serving -= 1
            admission.concluded(ticket, None)
            admission.received(ticket)
        finally:
            admission.settle(ticket, Usage(10, 10))
            admission.release(ticket)


# ── By chance ────────────────────────────────────────────────────────────────────────────────────────────────────────

UNDISTURBED_S = 14.8
"""What 2,000 jobs take that nobody refuses: 0.2 s each, 32 at once."""


def refused_at_random(kind: str, chance: float, seed: int, wait_s: float | None = None, **more: object) -> Run:
    server = Server(replace(KINDS[kind], retry_after_s=wait_s), chance, seed=seed)
    return Run(server, seed=seed, **more).play()  # type: ignore[arg-type]


def test_what_is_not_refused_takes_as_long_as_its_slots_allow():
    assert Run(Server()).play().took_s == pytest.approx(UNDISTURBED_S, abs=0.2)


@pytest.mark.parametrize(
    ("kind", "chance", "times"), [("529", 0.005, 1.2), ("529", 0.02, 1.5), ("503", 0.1, 2.5), ("529", 0.3, 4.0)]
)
def test_a_server_that_says_by_chance_that_it_is_overloaded_costs_its_share(kind, chance, times):
    for seed in (1, 2):
        run = refused_at_random(kind, chance, seed)
        assert run.took_s <= times * UNDISTURBED_S
        assert run.failed <= (0 if kind == "529" else 1)  # 0.1⁵ of 2,000 are 0.02; 529 has ten times the attempts


@pytest.mark.parametrize(("chance", "mean", "worst"), [(0.005, 1.5, 2.0), (0.02, 2.0, 3.0), (0.1, 3.0, 4.0)])
def test_429_by_chance_costs_little_where_the_server_asks_for_no_pause(chance, mean, worst):
    took = [
        refused_at_random("429", chance, seed, wait_s).took_s for seed, wait_s in enumerate([None, 0.0, None, 0.0], 1)
    ]
    assert sum(took) / len(took) <= mean * UNDISTURBED_S
    assert max(took) <= worst * UNDISTURBED_S


@pytest.mark.parametrize("chance", [0.02, 0.1])
def test_429_by_chance_costs_the_pauses_that_the_server_asks_for_and_no_more(chance):
    for seed in (1, 2):
        run = refused_at_random("429", chance, seed, 1.0)
        pauses_s = 2_000 * chance * (1.0 + 0.5)  # each of a second, and its probe or the slots' filling up
        assert run.took_s <= 2 * UNDISTURBED_S + pauses_s


@pytest.mark.parametrize("kind", ["529"])
def test_the_advice_of_an_overloaded_server_stops_nobody_but_its_attempt(kind):
    run = refused_at_random(kind, 0.02, 1, 5.0, jobs=4_000)
    assert run.took_s <= 2 * 1.5 * UNDISTURBED_S


def test_chance_leaves_adaptive_concurrency_alone():
    run = refused_at_random("529", 0.05, 1, slots=None, jobs=4_000)
    assert run.admission.limit >= 100


# ── Overload ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("slots", [None, 256])
@pytest.mark.parametrize(("at_once", "answer_s"), [(8, (0.5, 1.5)), (8, (5.0, 15.0)), (40, (5.0, 15.0))])
def test_a_server_that_bears_so_many_at_once_is_filled_and_not_hammered(at_once, slots, answer_s):
    server = Server(OVERLOADED, at_once=at_once)
    Run(server, jobs=10**6, slots=slots, answer_s=answer_s).play(240)
    average_s = sum(answer_s) / 2
    assert server.between(60, 240) >= 0.9 * at_once * 180 / average_s
    assert server.share <= 0.05


@pytest.mark.parametrize(("kind", "slots"), [("503", None), ("529", 256)])
def test_a_limit_of_requests_that_is_called_overload_is_found(kind, slots):
    server = Server(KINDS[kind], rpm=600)
    Run(server, jobs=10**6, slots=slots).play(120)
    assert server.between(0, 60) >= 0.9 * 600
    assert server.between(60, 120) >= 0.9 * 600
    assert server.share <= 0.02


def test_a_server_that_bears_less_than_before_is_followed_and_one_that_bears_more_again():
    class Changing(Server):
        def take(self, attempt: int) -> bool:
            now = asyncio.get_running_loop().time()
            self.at_once = 10 if 60 <= now < 120 else 40
            return super().take(attempt)

    server = Changing(OVERLOADED)
    Run(server, jobs=10**6, slots=256, answer_s=(0.5, 1.5)).play(240)
    assert server.between(70, 120) >= 0.9 * 10 * 50
    assert server.between(180, 240) >= 0.8 * 40 * 60
    assert server.share <= 0.05


# ── Storms ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "slots", "start_s"), [("429", 32, 0.0), ("429", None, 5.0), ("503", 32, 5.0), ("529", None, 0.0)]
)
def test_while_everything_is_refused_probes_go_and_then_everybody_is_served(kind, slots, start_s):
    server = Server(KINDS[kind], storm=(start_s, start_s + 20))
    run = Run(server, jobs=1_500, slots=slots).play(400)
    assert run.failed == 0
    assert len(server.good) == 1_500
    # The first few, those on their way by then, and one after each of 1, 2, 4, 8 and 16 s.
    assert sum(at >= start_s + 0.1 for at in server.refused) <= 6
    assert run.took_s <= 20 + 12 + 2 * UNDISTURBED_S


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("jobs", "slots"), [(200, 32), (2_000, 32), (2_000, None)])
def test_a_server_that_refuses_every_job_once_is_not_waited_for(kind, jobs, slots):
    run = Run(Server(KINDS[kind], first=True), jobs=jobs, slots=slots).play(600)
    assert (run.failed, len(run.server.good), len(run.server.refused)) == (0, jobs, jobs)
    assert run.took_s <= 15 + 2 * jobs * UNDISTURBED_S / 2_000
