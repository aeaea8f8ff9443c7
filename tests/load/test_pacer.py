"""Waiting for absolute moments."""

from __future__ import annotations

import asyncio
import os
import sys
import time

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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no timerfd")
def test_closing_gives_the_descriptor_back():
    before = len(os.listdir("/proc/self/fd"))
    pacer = Pacer()
    pacer.close()
    pacer.close()
    assert len(os.listdir("/proc/self/fd")) == before
