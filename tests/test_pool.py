"""Several endpoints in virtual time: real admission; endpoints that answer as they are told."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import anyio
import pytest

from runner.admission import Admission
from runner.concurrency import AdaptiveConcurrency, FixedConcurrency
from runner.endpoints import Endpoint, favourite
from runner.faults import Fault, FaultKind
from runner.gate import Gate
from runner.outcome import Usage
from runner.queues import STICKY_S
from runner.ratelimits import Allowance, RateLimits
from runner.settings import ModelLimits
from runner.testing.virtual_time import run_virtual
from runner.tickets import AdmissionClosed, AllDisabled, Need, NeverFits, NotServed

KNOWN = {"*": ModelLimits(rpm=1e9)}
NAMED = RateLimits(Allowance(1e9))
BAD_KEY = Fault(FaultKind.AUTH, "bad key")
BROKEN = Fault(FaultKind.CONNECT, "refused")


class Pool:
    """An admission over named endpoints; `fails` says which fault an endpoint answers with at a time."""

    def __init__(self, *, total=1000, rpm=None, fails=None, **endpoints):
        self.clock = asyncio.get_running_loop().time
        self.start = self.clock()
        whole = Gate(rpm=rpm, tpm=None, concurrency=FixedConcurrency(total), clock=self.clock)
        self.endpoints = {name: self._endpoint(name, whole, **said) for name, said in endpoints.items()}
        self.admission = Admission(list(self.endpoints.values()), clock=self.clock, whole=whole)
        self.fails = fails or (lambda name, t: None)
        self.log = []

    def _endpoint(self, name, whole, rpm=None, tpm=None, slots=100, limits=KNOWN, models=None):
        slots = FixedConcurrency(slots) if isinstance(slots, int) else slots
        gate = Gate(rpm=rpm, tpm=tpm, concurrency=slots, clock=self.clock, outer=whole)
        return Endpoint(name, gate, limits, models or {})

    async def job(self, model="m", tokens=1, hold_s=1.0, key=None, attempts=50):
        last = None
        for _ in range(attempts):
            ticket = await self.admission.acquire(model, Need(tokens, 0), key=key, avoid=last)
            last, name, t = ticket.endpoint, ticket.endpoint.name, self.clock() - self.start
            fault = self.fails(name, t)
            self.log.append((t, name, fault))
            try:
                if fault is None:
                    self.admission.answered(ticket, NAMED)
                    await anyio.sleep(hold_s)
                    self.admission.settle(ticket, Usage(tokens, 0))
                else:
                    await anyio.sleep(0.01)
                self.admission.concluded(ticket, fault)
                if fault is not None and fault.row.throttle:
                    self.admission.throttled(ticket, NAMED, 5.0)
                if fault is not None and fault.row.stops_run:
                    self.admission.disable(ticket.endpoint, fault, model)
            finally:
                self.admission.release(ticket)
            if fault is None:
                return name
            await anyio.sleep(0.1)
        return None

    def counts(self, *, good=True):
        return Counter(name for _, name, fault in self.log if (fault is None) == good)


def in_pool(body, **kwargs):
    async def main():
        pool = Pool(**kwargs)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pool.admission.run)
            await body(pool)
            statistics = pool.admission.statistics()
            pool.admission.close()
        assert (statistics.in_flight, statistics.waiting) == (0, 0)
        assert all(each.gate.in_flight == 0 for each in pool.endpoints.values())
        assert not any(each.gate._offered or each.gate._lanes for each in pool.endpoints.values())
        return pool

    return run_virtual(main)


async def many(pool, count, every_s=0.0, **kwargs):
    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(lambda: pool.job(**kwargs))
            if every_s:
                await anyio.sleep(every_s)


def test_jobs_are_shared_evenly_among_equals():
    async def body(pool):
        await many(pool, 300)

    counts = in_pool(body, a={}, b={}, c={}).counts()
    assert max(counts.values()) - min(counts.values()) <= 2, counts


def test_all_that_the_limits_of_all_endpoints_allow_is_used():
    async def body(pool):
        with anyio.move_on_after(60):
            await many(pool, 3000)
        await anyio.sleep(2)

    counts = in_pool(body, a={"rpm": 600}, b={"rpm": 60}, c={"rpm": 1200}).counts()
    assert {name: pytest.approx(count, rel=0.02) for name, count in counts.items()} == {"a": 600, "b": 60, "c": 1200}


def test_the_slots_of_an_endpoint_and_of_the_run_are_kept_and_used():
    async def body(pool):
        async def watch():
            await anyio.sleep(0.1)  # in between: jobs end at whole seconds
            while True:
                busy = {name: each.gate.in_flight for name, each in pool.endpoints.items()}
                seen.append((busy["a"], busy["b"], sum(busy.values())))
                await anyio.sleep(0.25)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            await many(pool, 200)
            tasks.cancel_scope.cancel()

    seen: list[tuple[int, int, int]] = []
    in_pool(body, total=12, a={"slots": 4}, b={"slots": 10})
    assert max(a for a, _, _ in seen) == 4
    assert max(total for _, _, total in seen) == 12
    assert sum(total == 12 for _, _, total in seen) > 0.9 * len(seen)


def test_who_has_most_headroom_gets_the_next_job():
    async def body(pool):
        await many(pool, 120, every_s=0.05, hold_s=2.0)

    counts = in_pool(body, a={"slots": 10}, b={"slots": 100}).counts()
    assert 8 <= counts["b"] / counts["a"] <= 13


def test_an_endpoint_in_cool_down_is_passed_over():
    async def body(pool):
        await many(pool, 400, every_s=0.05, hold_s=0.5)

    def fails(name, t):
        return Fault(FaultKind.RATE_LIMITED, "slow") if name == "a" and 2 <= t < 4 else None

    pool = in_pool(body, a={}, b={}, fails=fails)
    first = min(t for t, _, fault in pool.log if fault)
    assert {name for t, name, _ in pool.log if first + 0.02 < t < first + 4.9} == {"b"}
    assert "a" in {name for t, name, _ in pool.log if t > first + 6}


def test_a_dead_endpoint_costs_a_few_attempts_and_a_probe_now_and_then():
    async def body(pool):
        await many(pool, 2000, every_s=0.05)

    pool = in_pool(body, a={}, b={}, fails=lambda name, t: BROKEN if name == "a" else None)
    assert pool.counts() == {"b": 2000}
    # Some before it opens; then one each 1, 2, 4 … 60 s of 100.
    assert pool.counts(good=False)["a"] <= 20


def test_an_endpoint_that_comes_back_is_used_again():
    async def body(pool):
        await many(pool, 3000, every_s=0.05)

    pool = in_pool(body, a={}, b={}, fails=lambda name, t: BROKEN if name == "a" and t < 20 else None)
    last = [name for t, name, _ in pool.log if t > 60]
    assert 0.4 < last.count("a") / len(last) < 0.6


def test_with_all_of_them_broken_jobs_go_on_trying_as_with_one():
    async def body(pool):
        assert await pool.job(attempts=20) is None

    pool = in_pool(body, a={}, b={}, fails=lambda name, t: BROKEN)
    assert len(pool.log) == 20
    assert pool.log[-1][0] < 10


def test_a_bad_key_disables_one_endpoint_and_the_others_go_on():
    async def body(pool):
        await many(pool, 100, every_s=0.01)
        assert pool.endpoints["a"].state == "disabled"

    pool = in_pool(body, a={}, b={}, fails=lambda name, t: BAD_KEY if name == "a" else None)
    assert pool.counts() == {"b": 100}
    assert pool.counts(good=False)["a"] <= 2


def test_who_waits_for_nothing_but_disabled_endpoints_is_told():
    async def body(pool):
        refused = []

        async def job():
            try:
                await pool.job("only a", hold_s=1)
            except AllDisabled as error:
                refused.append(error.fault)

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(job)
        assert refused == [BAD_KEY] * 5
        assert await pool.job("m") == "b"
        assert pool.admission.usable

    in_pool(
        body,
        a={"slots": 2, "models": {"only a": "only a", "m": "m"}},
        b={"models": {"m": "m"}},
        fails=lambda name, t: BAD_KEY if name == "a" else None,
    )


def test_a_model_goes_where_it_is_served():
    async def body(pool):
        for _ in range(10):
            assert await pool.job("x") == "a"
            assert await pool.job("y") == "b"
        with pytest.raises(NotServed, match="z"):
            await pool.job("z")

    in_pool(body, a={"models": {"x": "deployment-x"}}, b={"models": {"y": "y"}})


def test_a_big_job_goes_where_it_fits():
    async def body(pool):
        for _ in range(3):
            assert await pool.job(tokens=5000) == "b"
        with pytest.raises(NeverFits):
            await pool.job(tokens=50_000)

    in_pool(body, a={"tpm": 1000}, b={"tpm": 10_000})


def test_a_prompt_cache_key_sticks_to_one_endpoint():
    async def body(pool):
        homes: dict[str, set[str]] = {}
        for i in range(200):
            homes.setdefault(f"k{i % 20}", set()).add(await pool.job(key=f"k{i % 20}", hold_s=0.01))
        assert all(len(names) == 1 for names in homes.values())
        assert len(set.union(*homes.values())) == 3

    in_pool(body, a={}, b={}, c={})


def test_what_sticks_goes_elsewhere_when_its_endpoint_is_away_and_comes_back_to_it():
    key = next(f"k{i}" for i in range(100) if favourite(f"k{i}", "ab") == "a")

    async def body(pool):
        await many(pool, 600, every_s=0.1, key=key, hold_s=0.1)

    pool = in_pool(body, a={}, b={}, fails=lambda name, t: BROKEN if name == "a" and 10 < t < 20 else None)
    good = [(t, name) for t, name, fault in pool.log if fault is None]
    assert {name for t, name in good if t < 10} == {"a"}
    assert {name for t, name in good if 12 < t < 20} == {"b"}
    assert {name for t, name in good if t > 50} == {"a"}


def test_what_sticks_waits_no_longer_than_stated_for_an_endpoint_that_is_full():
    key = next(f"k{i}" for i in range(100) if favourite(f"k{i}", "ab") == "a")

    async def body(pool):
        await many(pool, 2, key=key, hold_s=100)

    pool = in_pool(body, a={"slots": 1}, b={})
    assert [(name, t) for t, name, _ in pool.log] == [("a", pytest.approx(0, abs=1e-3)), ("b", pytest.approx(STICKY_S))]


def test_keys_keep_their_endpoint_when_another_is_added():
    before = {f"k{i}": favourite(f"k{i}", ["a", "b", "c"]) for i in range(1000)}
    moved = [key for key, name in before.items() if favourite(key, ["a", "b", "c", "d"]) not in (name, "d")]
    assert not moved


def test_the_runs_own_limit_holds_over_all_endpoints():
    async def body(pool):
        with anyio.move_on_after(60):
            await many(pool, 3000, hold_s=0.1)
        await anyio.sleep(1)

    pool = in_pool(body, rpm=600, a={"rpm": 6000}, b={})
    assert 0.98 * 600 <= len(pool.log) <= 606


@pytest.mark.parametrize("seed", range(12))
def test_cancelled_and_failing_at_random_nothing_is_left_behind_and_nobody_waits_for_ever(seed):
    print("seed", seed)
    rng = random.Random(seed)
    faults = [None] * 6 + [BROKEN, Fault(FaultKind.RATE_LIMITED, "slow"), Fault(FaultKind.SERVER_ERROR, "boom")]

    async def body(pool):
        done = []

        async def job(i):
            with anyio.move_on_after(rng.choice([0.0, 0.5, 3.0, 1e6, 1e6, 1e6])):
                key = rng.choice([None, "k", str(i)])
                done.append(await pool.job(rng.choice("mno"), rng.randint(1, 3000), rng.uniform(0, 3), key=key))

        async with anyio.create_task_group() as tasks:
            for i in range(300):
                tasks.start_soon(job, i)
                await anyio.sleep(rng.expovariate(30))
        assert len(done) >= 120
        assert anyio.current_time() - pool.start < 1500

    in_pool(
        body,
        total=20,
        rpm=6000,
        a={"slots": 5, "limits": {"m": ModelLimits(tpm=60_000, rpm=300), "*": ModelLimits(rpm=1e9)}},
        b={"tpm": 90_000, "slots": AdaptiveConcurrency()},
        c={"rpm": 100, "limits": {"*": ModelLimits(concurrency=2)}},
        fails=lambda name, t: rng.choice(faults),
    )


def test_closing_sends_everybody_away_even_those_whose_payment_is_under_way():
    async def body(pool):
        ended = []

        async def job():
            try:
                await pool.job(tokens=5000)
            except AdmissionClosed:
                ended.append(True)

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(job)
            await anyio.sleep(1)
            pool.admission.close()
        assert len(ended) == 3  # each of them had let one go; the next waits for what that owes

    in_pool(body, a={"limits": {"*": ModelLimits(tpm=5000, tpd=6000)}}, b={"tpm": 6000})
