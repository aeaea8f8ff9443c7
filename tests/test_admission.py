from __future__ import annotations

import asyncio
import random
from collections import deque
from typing import Any

import anyio
import pytest

from runner.admission import Admission
from runner.concurrency import AdaptiveConcurrency, FixedConcurrency
from runner.outcome import Usage
from runner.ratelimits import Allowance, RateLimits
from runner.settings import ModelLimits
from runner.testing.virtual_time import run_virtual
from runner.tickets import AdmissionClosed, Need, NeverFits

NAMED = RateLimits(Allowance(1e9))


class Gate:
    """An admission with its loop running, and a log of who was admitted when."""

    def __init__(self, *, rpm=None, tpm=None, concurrency=1000, limits=None, ramp=False):
        clock = asyncio.get_running_loop().time
        slots = FixedConcurrency(concurrency) if isinstance(concurrency, int) else concurrency
        # A lane whose limits nobody knows starts slowly; most tests aren't about that.
        known = {"*": ModelLimits(rpm=1e9)}
        limits = limits or (None if ramp or rpm else known)
        self.admission = Admission.of_one(rpm=rpm, tpm=tpm, concurrency=slots, clock=clock, limits=limits)
        self.log = []

    async def acquire(self, tokens=1, model="m"):
        return await self.admission.acquire(model, Need(tokens, 0))

    async def __aenter__(self):
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self.admission.run)
        return self

    async def __aexit__(self, *exc_info):
        self.admission.close()
        return await self._tasks.__aexit__(*exc_info)

    async def cool_down(self, wait_s):
        """One request meets a 429."""
        ticket = await self.acquire(0)
        self.throttled(ticket, wait_s)
        self.admission.release(ticket)

    def throttled(self, ticket, wait_s):
        """…of a server that names its limits, so that only the cool-down is at work."""
        self.admission.throttled(ticket, NAMED, wait_s)

    async def job(self, name="j", tokens=1, hold_s=0.0, used=None):
        ticket = await self.acquire(tokens)
        self.log.append((name, anyio.current_time()))
        await anyio.sleep(hold_s)
        self.admission.settle(ticket, None if used is None else Usage(used, 0))
        self.admission.release(ticket)

    def names(self):
        return [name for name, _ in self.log]


def in_gate(body, **limits):
    async def main():
        async with Gate(**limits) as gate:
            await body(gate)
            statistics = gate.admission.statistics()
        assert (statistics.in_flight, statistics.waiting) == (0, 0)
        return gate

    return run_virtual(main)


def test_first_come_first_served_whatever_the_size():
    async def body(gate):
        async with anyio.create_task_group() as tasks:
            for i in range(40):
                tasks.start_soon(gate.job, i, 3000 if i % 7 == 3 else 10)
                await anyio.sleep(0.001)

    assert in_gate(body, tpm=30_000).names() == list(range(40))


def test_concurrency_is_never_exceeded_and_fully_used():
    peak = 0

    async def body(gate):
        async def job():
            nonlocal peak
            ticket = await gate.acquire(1)
            peak = max(peak, gate.admission.statistics().in_flight)
            await anyio.sleep(1)
            gate.admission.release(ticket)

        start = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(job)
        assert anyio.current_time() - start == pytest.approx(10, abs=0.01)

    in_gate(body, concurrency=5)
    assert peak == 5


def test_with_tokens_as_the_bottleneck_no_request_is_spent_in_waiting():
    async def body(gate):
        async with anyio.create_task_group() as tasks:
            for i in range(30):
                tasks.start_soon(gate.job, i, 1000)
            await anyio.sleep(25)
            used = gate.admission.statistics()
            assert used.rpm_used <= len(gate.log) + 1
            assert used.tpm_used <= 6000 * 25 / 60 + 2000

    in_gate(body, rpm=6000, tpm=6000)


def test_a_big_job_among_small_ones_gets_in_within_two_windows():
    async def body(gate):
        async def flood():
            for i in range(4000):
                await gate.job(f"small{i}", 50)

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(flood)
            await anyio.sleep(5)
            start = anyio.current_time()
            await gate.job("big", 25_000)
            assert anyio.current_time() - start <= 120
            tasks.cancel_scope.cancel()

    in_gate(body, tpm=30_000)


def test_refunds_raise_the_throughput_to_the_real_usage():
    async def body(gate):
        async def jobs():
            for _ in range(200):
                await gate.job("j", 1000, used=100, hold_s=0.5)

        start = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(jobs)
        # 2,000 jobs of 100 real tokens under 60,000 a minute: 200 s; at what they reserved it would be 2,000.
        assert 190 <= anyio.current_time() - start <= 260

    in_gate(body, tpm=60_000)


def test_what_was_used_beyond_the_reservation_is_paid_later():
    async def body(gate):
        start = anyio.current_time()
        for _ in range(100):
            await gate.job("j", 10, used=1000)
        assert anyio.current_time() - start >= 95

    in_gate(body, tpm=60_000)


def test_a_job_larger_than_a_minute_never_fits():
    async def body(gate):
        with pytest.raises(NeverFits, match="about 1,234,567 tokens, and the limit is 1,000,000 a minute"):
            await gate.acquire(1_234_567)
        await gate.job("fits", 1_000_000)

    in_gate(body, tpm=1_000_000)


def test_a_guess_at_the_output_shrinks_to_what_a_minute_gives_but_what_was_asked_for_never_fits():
    async def body(gate):
        ticket = await gate.admission.acquire("m", Need(100, 1024, guessed=True))
        assert ticket.need.tokens == 500
        gate.admission.release(ticket)
        for need in (Need(100, 1024), Need(600, 1024, guessed=True)):
            with pytest.raises(NeverFits):
                await gate.admission.acquire("m", need)

    in_gate(body, tpm=500)
    in_gate(body, limits={"m": ModelLimits(tpm=500, rpm=1e9, input_tpm=550)})


@pytest.mark.parametrize("late", [False, True])
def test_in_permanent_overload_probes_go_and_nothing_else_even_if_it_is_said_inside_the_answers(late):
    sent: list[float] = []

    async def body(gate):
        async def jobs():
            while anyio.current_time() - start < 600:
                ticket = await gate.acquire()
                sent.append(anyio.current_time())
                await anyio.sleep(0.1)
                if late:
                    gate.admission.answered(ticket, RateLimits())
                    await anyio.sleep(0.2)
                gate.throttled(ticket, None)
                gate.admission.release(ticket)

        start = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(jobs)

    in_gate(body, concurrency=50)
    # The first 50, then one after each of 1, 2, 4, … 60 s, and those who wait for the last.
    assert len(sent) <= 50 + 20 + 50


def test_a_server_that_refused_late_is_believed_at_the_first_content():
    async def body(gate):
        ticket = await gate.acquire()
        gate.admission.answered(ticket, RateLimits())
        gate.throttled(ticket, 1.0)
        gate.admission.release(ticket)
        probe = await gate.acquire()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(gate.job)
            gate.admission.answered(probe, RateLimits())
            await anyio.sleep(5)
            assert gate.log == []
            gate.admission.received(probe)
            await anyio.sleep(0.01)
            assert len(gate.log) == 1
        gate.admission.release(probe)

    in_gate(body)


def test_models_at_one_endpoint_take_turns_at_its_slots():
    async def body(gate):
        order = []

        async def job(model):
            ticket = await gate.acquire(model=model)
            order.append(model)
            await anyio.sleep(1)
            gate.admission.release(ticket)

        async with anyio.create_task_group() as tasks:
            for model in "aaaaaaaaaabbbbbbbbbbcccccccccc":
                tasks.start_soon(job, model)
        assert max(order[:15].count(model) for model in "abc") <= 7

    in_gate(body, concurrency=2)


def test_a_waiting_job_learns_that_it_never_fits_but_not_from_one_header_alone():
    low = RateLimits(tokens=Allowance(1000.0))

    async def body(gate):
        refused = []

        async def big():
            try:
                ticket = await gate.acquire(5000)
                gate.admission.release(ticket)
            except NeverFits as error:
                refused.append(str(error))

        ticket = await gate.acquire()
        gate.admission.answered(ticket, low)
        gate.admission.release(ticket)
        with anyio.move_on_after(1):
            gate.admission.release(await gate.acquire(5000))
        assert refused == []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(big)
            await anyio.sleep(1)
            for _ in range(2):
                gate.admission.answered(ticket, low)
            await anyio.sleep(1)
            assert refused == ["needs about 5,000 tokens, and the limit is 1,000 a minute"]

    in_gate(body)


def test_after_a_429_one_probe_goes_and_then_the_rest():
    async def body(gate):
        await gate.cool_down(20.0)
        async with anyio.create_task_group() as tasks:
            for i in range(10):
                tasks.start_soon(gate.job, i, 1, 3.0)
        times = [at for _, at in gate.log]
        assert times[0] == pytest.approx(20, abs=0.01)
        assert times[1:] == pytest.approx([23] * 9, abs=0.01)

    in_gate(body)


def test_a_good_answer_of_the_probe_frees_the_rest_before_it_ends():
    async def body(gate):
        answered = anyio.Event()

        async def probe():
            ticket = await gate.acquire()
            await answered.wait()
            gate.admission.answered(ticket, NAMED)
            await anyio.sleep(100)
            gate.admission.release(ticket)

        await gate.cool_down(1.0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(probe)
            tasks.start_soon(gate.job, "next")
            await anyio.sleep(2)
            assert gate.names() == []
            answered.set()
            await anyio.sleep(0.1)
            assert gate.names() == ["next"]

    in_gate(body)


def test_a_probe_that_meets_another_429_doubles_the_wait_where_the_server_names_none():
    async def body(gate):
        starts = []
        await gate.cool_down(None)
        for _ in range(9):
            ticket = await gate.acquire(1)
            starts.append(round(anyio.current_time()))
            gate.throttled(ticket, None)
            gate.admission.release(ticket)
        assert starts == [1, 3, 7, 15, 31, 63, 123, 183, 243]

    in_gate(body)


def test_one_episode_of_429_is_one_cut():
    async def body(gate):
        tickets = [await gate.acquire(1) for _ in range(10)]
        for ticket in tickets:
            gate.throttled(ticket, 5.0)
            gate.admission.release(ticket)
        assert gate.admission.statistics().limit == 80

    concurrency = AdaptiveConcurrency(start=100)
    in_gate(body, concurrency=concurrency)


@pytest.mark.parametrize("seed", range(20))
def test_a_storm_of_429_ends_with_everybody_served_and_no_herd(seed):
    rng = random.Random(seed)
    sent = []
    throttled = 0

    async def body(gate):
        async def job():
            nonlocal throttled
            while True:
                ticket = await gate.acquire(1)
                sent.append(anyio.current_time())
                await anyio.sleep(rng.uniform(0.05, 0.3))
                refused = anyio.current_time() < 30 or rng.random() < 0.01
                throttled += refused
                if refused:
                    gate.throttled(ticket, rng.choice([None, 0.5, 2.0]))
                else:
                    gate.admission.answered(ticket, NAMED)
                gate.admission.release(ticket)
                if not refused:
                    return

        async with anyio.create_task_group() as tasks:
            for _ in range(200):
                tasks.start_soon(job)

    in_gate(body, concurrency=50)
    # The first wave is in flight when the first 429 comes; then each cool-down lets one probe through.
    assert sum(0.31 < at < 30 for at in sent) <= 40
    assert len(sent) == 200 + throttled


@pytest.mark.parametrize("step", range(1, 40))
def test_cancelled_at_any_moment_it_leaves_nothing_behind(step):
    async def body(gate):
        async with anyio.create_task_group() as tasks:
            await gate.cool_down(0.5)
            for i in range(3):
                tasks.start_soon(gate.job, i, 700, 0.3)
            await anyio.sleep(0.1 * step)
            tasks.cancel_scope.cancel()
        await anyio.sleep(60)
        start = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(gate.job, "after", 100)
            tasks.start_soon(gate.job, "after", 100)
        assert anyio.current_time() - start < 2.1

    async def guarded(gate):
        original = gate.job

        async def job(name="j", tokens=1, hold_s=0.0):
            ticket = await gate.acquire(tokens)
            try:
                await anyio.sleep(hold_s)
            finally:
                gate.admission.settle(ticket, None)
                gate.admission.release(ticket)

        gate.job = job
        await body(gate)
        gate.job = original

    in_gate(guarded, rpm=60, tpm=6000, concurrency=2)


def test_closing_sends_those_who_wait_away():
    async def body(gate):
        first = await gate.acquire(1)
        refused = 0

        async def wait():
            nonlocal refused
            try:
                await gate.acquire(1)
            except AdmissionClosed:
                refused += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait)
            await anyio.sleep(1)
            gate.admission.close()
        assert refused == 3
        with pytest.raises(AdmissionClosed):
            await gate.acquire(1)
        gate.admission.release(first)
        gate.admission.release(first)

    in_gate(body, concurrency=1)


def test_a_hundred_thousand_who_wait_cost_nothing():
    steps = 0

    class Counting(FixedConcurrency):
        @property
        def limit(self):
            nonlocal steps
            steps += 1
            return 1

        @limit.setter
        def limit(self, value):
            pass

    async def body(gate):
        first = await gate.acquire(1)
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(gate.acquire()) for _ in range(100_000)]
        await anyio.sleep(1)
        before = steps
        await anyio.sleep(3600)
        assert steps - before <= 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        gate.admission.release(first)
        await anyio.sleep(1)

    in_gate(body, concurrency=Counting(1))


@pytest.mark.parametrize(("rpm", "count"), [(600, 3000), (30_000, 60_000)])
def test_a_strict_server_behind_a_jittery_network_sees_no_excess(rpm, count):
    """The server's bucket holds one second's worth; every request takes 0 to 40 ms to reach it."""
    rng = random.Random(7)
    arrivals = []

    async def body(gate):
        async def jobs():
            for _ in range(count // 100):
                ticket = await gate.acquire(1)
                arrivals.append(anyio.current_time() + rng.uniform(0, 0.04))
                gate.admission.release(ticket)

        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(jobs)

    in_gate(body, rpm=rpm)
    arrivals.sort()
    level, last = rpm / 60, arrivals[0]
    for at in arrivals:
        level = min(rpm / 60, level + (at - last) * rpm / 60)
        last = at
        assert level >= 1
        level -= 1
    inside: deque[Any] = deque()
    for at in arrivals:
        inside.append(at)
        while inside[0] <= at - 60:
            inside.popleft()
        assert len(inside) <= rpm + rpm / 60
    assert len(arrivals) / (arrivals[-1] - arrivals[0]) >= 0.98 * rpm / 60
