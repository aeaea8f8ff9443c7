"""An attempt before which nobody waits, where nothing has to be waited for: it is admitted without a task switch."""

from __future__ import annotations

import asyncio
import itertools

import anyio
import pytest

from runner.admission import Admission
from runner.concurrency import FixedConcurrency
from runner.outcome import Usage
from runner.settings import ModelLimits
from runner.testing.virtual_time import run_virtual
from runner.tickets import AdmissionClosed, Need
from runner.turn import AT_ONCE

KNOWN = {"a": ModelLimits(rpm=1e9, tpm=1e9), "b": ModelLimits(rpm=1e9, tpm=1e9)}


def with_admission(body, *, concurrency=1_000, rpm=None, limits=KNOWN):
    async def main():
        clock = asyncio.get_running_loop().time
        admission = Admission.of_one(
            rpm=rpm, tpm=None, concurrency=FixedConcurrency(concurrency), clock=clock, limits=limits
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(admission.run)
            await anyio.wait_all_tasks_blocked()
            await body(admission, tasks)
            admission.close()
        assert admission.statistics().waiting == 0

    run_virtual(main)


def end(admission, ticket):
    admission.settle(ticket, Usage(1, 0))
    admission.release(ticket)


def test_where_nothing_has_to_be_waited_for_no_turn_of_the_loop_is_given_up():
    async def body(admission, tasks):
        passed: list[bool] = []
        asyncio.get_running_loop().call_soon(passed.append, True)
        end(admission, await admission.acquire("a", Need(1, 1)))
        assert not passed

    with_admission(body)


def test_others_get_their_turn_of_the_loop_after_so_many():
    async def body(admission, tasks):
        admitted: list[int] = []

        async def job():
            while len(admitted) < 10 * AT_ONCE:
                end(admission, await admission.acquire("a", Need(1, 1)))
                admitted.append(1)

        tasks.start_soon(job)
        before = 0
        while len(admitted) < 10 * AT_ONCE:
            await anyio.lowlevel.checkpoint()
            assert len(admitted) - before <= AT_ONCE + 1
            before = len(admitted)

    with_admission(body)


@pytest.mark.parametrize("second", ["a", "b"])
def test_who_comes_as_a_slot_is_freed_does_not_overtake_who_waits_for_it(second):
    order = []

    async def body(admission, tasks):
        async def job(name, model):
            ticket = await admission.acquire(model, Need(1, 1))
            order.append(name)
            await anyio.sleep(1)
            end(admission, ticket)

        holder = await admission.acquire("a", Need(1, 1))
        tasks.start_soon(job, "waits", "a")
        await anyio.wait_all_tasks_blocked()
        admission.release(holder)
        await job("comes", second)  # in the same step
        await anyio.sleep(5)

    with_admission(body, concurrency=1)
    assert order == ["waits", "comes"]


def test_what_is_paid_is_the_same_as_in_line():
    used = []

    async def body(admission, tasks):
        async def job():
            end(admission, await admission.acquire("a", Need(30, 10)))

        async with anyio.create_task_group() as several:
            for _ in range(2 * AT_ONCE):  # the first half at once, the rest in line
                several.start_soon(job)
        statistics = admission.statistics()
        used.append((statistics.rpm_used, statistics.tpm_used, statistics.in_flight))

    with_admission(body, limits={"*": ModelLimits(rpm=1e9, tpm=1e9)})
    assert used == [(2 * AT_ONCE, 2 * AT_ONCE, 0)]


def times_of(count, *, rpm=None):
    """When so many that come one after the other are admitted."""
    times = []

    async def body(admission, tasks):
        for _ in range(count):
            end(admission, await admission.acquire("a", Need(1, 1)))
            times.append(anyio.current_time())

    with_admission(body, rpm=rpm, limits=None)
    return times


def test_a_limit_that_is_used_up_holds_for_who_comes_at_once():
    times = times_of(4, rpm=60)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert all(gap >= 1 for gap in gaps)


def test_the_slow_start_holds_for_who_comes_at_once():
    times = times_of(20)
    assert times[-1] - times[0] > 0.5  # at 20 a second, doubling every second


def test_nobody_is_admitted_before_the_run_begins_nor_after_it_was_closed():
    async def main():
        clock = asyncio.get_running_loop().time
        admission = Admission.of_one(rpm=None, tpm=None, concurrency=FixedConcurrency(1), clock=clock, limits=KNOWN)
        with anyio.move_on_after(10) as waiting:
            await admission.acquire("a", Need(1, 1))
        assert waiting.cancelled_caught
        admission.close()
        with pytest.raises(AdmissionClosed):
            await admission.acquire("a", Need(1, 1))

    run_virtual(main)
