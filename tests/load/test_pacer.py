"""Waiting for absolute moments."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from types import SimpleNamespace

import pytest

from runner.load.pacer import IN_A_ROW, Pacer


def run(coroutine):
    return asyncio.run(coroutine)


def test_it_never_returns_early_and_a_late_moment_moves_none_behind_it():
    async def times():
        pacer, zero = Pacer(), time.monotonic()
        moments = [zero + k / 2_000 for k in range(40)]
        early = []
        for moment in moments:
            await pacer.until(moment)
            early.append(time.monotonic() < moment)
            if moment == moments[10]:
                time.sleep(0.005)  # noqa: ASYNC251 - a callback that holds up the loop
        pacer.close()
        return early

    assert not any(run(times()))


def test_on_linux_it_is_finer_than_the_loops_timers():
    pacer = Pacer()
    assert pacer.is_fine == sys.platform.startswith("linux")
    pacer.close()


def test_without_a_timer_of_the_system_the_loops_own_has_to_do(monkeypatch):
    async def wait():
        pacer = Pacer()
        moment = time.monotonic() + 0.002
        await pacer.until(moment)
        assert time.monotonic() >= moment
        assert not pacer.is_fine
        pacer.close()

    monkeypatch.setattr("sys.platform", "plan9")
    run(wait())


def test_many_moments_that_have_passed_let_others_run():
    async def turns():
        pacer, ran = Pacer(), 0

        async def other():
            nonlocal ran
            while True:
                ran += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        for _ in range(10 * IN_A_ROW):
            await pacer.until(0.0)
        task.cancel()
        pacer.close()
        return ran

    assert run(turns()) >= 10


def test_a_wait_that_is_cancelled_leaves_the_next_one_whole():
    async def waits():
        pacer = Pacer()
        task = asyncio.create_task(pacer.until(time.monotonic() + 60))
        await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        moment = time.monotonic() + 0.002
        await asyncio.wait_for(pacer.until(moment), 30)
        assert time.monotonic() >= moment
        pacer.close()

    run(waits())


def rung(monkeypatch, moments, cancelled=()):
    """In which order those return who ask, in the order given, for moments so many milliseconds from now."""
    clock = SimpleNamespace(monotonic=lambda: 0.0)  # no moment passes until all have asked
    monkeypatch.setattr("runner.load.pacer.time", clock)

    async def ask():
        pacer, zero, order = Pacer(), time.monotonic(), []

        async def wait(number, moment_ms):
            await pacer.until(zero + moment_ms / 1000)
            assert time.monotonic() >= zero + moment_ms / 1000
            order.append(number)

        tasks = [asyncio.create_task(wait(number, moment)) for number, moment in enumerate(moments)]
        await asyncio.sleep(0)
        for number in cancelled:
            tasks[number].cancel()
        clock.monotonic = time.monotonic
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        pacer.close()
        return order

    return run(ask())


@pytest.mark.parametrize("seed", range(3))
def test_those_who_wait_return_in_the_order_of_their_moments_whatever_that_of_their_asking(monkeypatch, seed):
    print(f"seed {seed}")
    moments = random.Random(seed).choices(range(8), k=40)
    assert rung(monkeypatch, moments) == sorted(range(40), key=lambda number: moments[number])


@pytest.mark.parametrize("cancelled", [(0,), (2,), (0, 1, 2), (1, 4), (0, 1, 2, 3, 4)])
def test_one_that_is_cancelled_does_not_hold_up_the_others(monkeypatch, cancelled):
    moments = (1, 2, 3, 3, 6)
    assert rung(monkeypatch, moments, cancelled) == [number for number in range(5) if number not in cancelled]


def test_one_that_is_cancelled_between_its_ring_and_its_turn_does_not_hold_up_the_others():
    async def waits():
        pacer, zero = Pacer(), time.monotonic()
        first = asyncio.create_task(pacer.until(zero + 0.001))
        second = asyncio.create_task(pacer.until(zero + 0.001))
        third = asyncio.create_task(pacer.until(zero + 0.003))
        await asyncio.sleep(0)
        first.add_done_callback(lambda _: second.cancel())
        await asyncio.wait_for(asyncio.gather(first, second, third, return_exceptions=True), 30)
        pacer.close()
        return first.exception() is None, third.exception() is None

    assert run(waits()) == (True, True)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no timerfd")
def test_closing_gives_the_descriptor_back():
    before = len(os.listdir("/proc/self/fd"))
    pacer = Pacer()
    pacer.close()
    pacer.close()
    assert len(os.listdir("/proc/self/fd")) == before
