from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from runner import deadlines
from runner.attempt import run_attempt
from runner.client import Client
from runner.deadlines import Deadlines, Watch
from runner.faults import FaultKind
from runner.limits import ERROR_BODY_TIMEOUT_S
from runner.outcome import Failed
from runner.testing.virtual_time import run_virtual
from runner.transport import Template
from tests.scripted import ListSink, ScriptedBody, chat_job


async def watched(deadlines, steps, *, streaming=True):
    """Sleeps each step and reports progress after it; returns what fired and when."""
    start = anyio.current_time()
    watch = Watch(deadlines, streaming=streaming)
    with watch:
        for step in steps:
            await anyio.sleep(step)
            watch.progress()
    return watch.fired, round(anyio.current_time() - start, 3)


ALL = Deadlines(first_token_s=10, idle_s=3, total_s=60)


def test_no_first_token_fires_the_first_deadline():
    assert run_virtual(lambda: watched(ALL, [100])) == (FaultKind.FIRST_TOKEN_TIMEOUT, 10)


def test_after_the_first_token_only_idleness_and_the_total_count():
    assert run_virtual(lambda: watched(ALL, [9, 2.9, 2.9, 100])) == (FaultKind.IDLE_TIMEOUT, 17.8)


def test_an_idle_deadline_shorter_than_the_armed_timer_is_not_missed():
    assert run_virtual(lambda: watched(ALL, [0.5, 100])) == (FaultKind.IDLE_TIMEOUT, 3.5)


def test_steady_progress_meets_the_total_deadline():
    assert run_virtual(lambda: watched(ALL, [2.5] * 100)) == (FaultKind.TOTAL_TIMEOUT, 60)


def test_a_body_in_one_piece_has_no_first_token():
    assert run_virtual(lambda: watched(ALL, [59], streaming=False)) == (None, 59)
    assert run_virtual(lambda: watched(ALL, [61], streaming=False)) == (FaultKind.TOTAL_TIMEOUT, 60)


def test_without_deadlines_nothing_fires_and_no_timer_is_left():
    assert run_virtual(lambda: watched(Deadlines(), [1e6])) == (None, 1e6)


def test_what_has_a_bound_of_its_own_brings_no_deadline_nearer_and_the_rest_still_counts():
    async def refused_late():
        start = anyio.current_time()
        watch = Watch(ALL, streaming=True)
        with watch:
            await anyio.sleep(9)
            with deadlines.suspended():
                await anyio.sleep(1_000)
            assert watch.fired is None
            await anyio.sleep(100)
        return watch.fired, anyio.current_time() - start

    fired, ended_s = run_virtual(refused_late)
    assert fired is FaultKind.FIRST_TOKEN_TIMEOUT
    assert 1_010 <= ended_s <= 1_010 + deadlines.SUSPENDED_CHECK_S


def test_outside_of_an_attempt_there_is_nothing_to_suspend():
    async def after_one():
        await watched(ALL, [1])
        with deadlines.suspended():
            await anyio.sleep(1_000)

    run_virtual(after_one)


@pytest.mark.parametrize("stood_still_s", [5, 70, 10_000])
def test_time_in_which_the_process_stood_still_is_not_the_servers(stood_still_s):
    """What had arrived was not read yet when every deadline of the run was found to be long past."""

    async def stopped_and_continued():
        loop: Any = asyncio.get_running_loop()
        watch = Watch(ALL, streaming=True)
        with watch:
            await anyio.sleep(1)
            watch.progress()
            loop._jumping.now += stood_still_s
            await anyio.sleep(0.5)  # the read that comes after the timer
            watch.progress()
            continued = anyio.current_time()
            await anyio.sleep(2.9)
            watch.progress()
            await anyio.sleep_forever()
        return watch.fired, round(anyio.current_time() - continued, 3)

    fired, silent_s = run_virtual(stopped_and_continued)
    assert fired is FaultKind.IDLE_TIMEOUT
    assert silent_s == 2.9 + 3


@pytest.mark.parametrize("progress", [True, False])
def test_a_server_that_is_silent_before_and_after_a_standstill_is_found_out(progress):
    async def stopped_and_continued():
        loop: Any = asyncio.get_running_loop()
        watch = Watch(ALL, streaming=True)
        with watch:
            if progress:
                watch.progress()
            await anyio.sleep(1)
            loop._jumping.now += 70
            await anyio.sleep_forever()
        return watch.fired, anyio.current_time()

    fired, ended_s = run_virtual(stopped_and_continued)
    assert fired is (FaultKind.IDLE_TIMEOUT if progress else FaultKind.FIRST_TOKEN_TIMEOUT)
    assert ended_s <= 71 + 10 + deadlines.SUSPENDED_CHECK_S


def test_a_loop_that_is_always_late_puts_no_deadline_off_for_ever():
    async def overloaded():
        loop: Any = asyncio.get_running_loop()
        watch = Watch(ALL, streaming=True)
        with watch:
            for _ in range(1_000):
                await anyio.sleep(0.1)
                loop._jumping.now += 2
        return watch.fired, anyio.current_time()

    fired, ended_s = run_virtual(overloaded)
    assert fired is FaultKind.FIRST_TOKEN_TIMEOUT
    assert ended_s <= 20


class Refusing:
    """A wire whose answers are refusals, with a body that comes byte by byte and never ends."""

    def __init__(self, status, headers):
        self.answer = status, headers

    def template(self, request):
        return Template.of(request)

    async def send(self, template, content):
        status, headers = self.answer
        return ScriptedBody([1.0, b" "] * 100_000).announcing(headers, status)


@pytest.mark.parametrize(
    ("status", "headers", "kind", "wait_s"),
    [
        (401, {}, FaultKind.AUTH, None),
        (400, {}, FaultKind.BAD_REQUEST, None),
        (429, {"retry-after": "7"}, FaultKind.RATE_LIMITED, 7.0),
        (503, {}, FaultKind.SERVER_ERROR, None),
    ],
)
def test_a_refusal_whose_body_never_ends_is_that_refusal_within_its_own_bound(status, headers, kind, wait_s):
    """It was a timeout, which every job tried again, bad key or not."""

    async def refused():
        client: Any = Client(base_url="http://x/v1", api_key="k", trust_env=False, transport="aiohttp")
        client._openai._wire = Refusing(status, headers)
        start = anyio.current_time()
        try:
            attempted = await run_attempt(
                client,
                chat_job(),
                b"{}",
                choices=1,
                deadlines=Deadlines(first_token_s=2, idle_s=2, total_s=3),
                sink=ListSink(),
                on_headers=lambda response: None,
            )
        finally:
            await client.aclose()
        assert isinstance(attempted.outcome, Failed)
        return attempted.outcome.fault, anyio.current_time() - start

    fault, ended_s = run_virtual(refused)
    assert (fault.kind, fault.retry_after_s) == (kind, wait_s)
    assert round(ended_s, 3) == ERROR_BODY_TIMEOUT_S


def test_a_cancellation_from_outside_in_the_same_moment_is_obeyed():
    """The run is cut while a deadline passes: the attempt must not go on as if only the deadline had."""

    async def body():
        reached = []
        with anyio.CancelScope() as cut:
            asyncio.get_running_loop().call_later(10, cut.cancel)
            with Watch(Deadlines(total_s=10), streaming=True) as watch:
                await anyio.sleep_forever()
            reached.append(watch.fired)
        return cut.cancelled_caught, reached, _cancelling()

    assert run_virtual(body) == (True, [], 0)


def test_after_a_deadline_the_task_is_as_it_was():
    async def body():
        for _ in range(3):
            with Watch(Deadlines(total_s=1), streaming=True) as watch:
                await anyio.sleep_forever()
            assert watch.fired is FaultKind.TOTAL_TIMEOUT
            assert _cancelling() == 0
            with anyio.move_on_after(5) as scope:
                await anyio.sleep(1)
            assert not scope.cancelled_caught
        return anyio.current_time()

    assert run_virtual(body) == pytest.approx(6)


def test_work_that_ends_in_the_moment_of_its_deadline_leaves_no_cancellation_behind():
    async def body():
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        watch = Watch(Deadlines(total_s=10), streaming=True)
        # In the same turn of the loop, before the deadline's timer: the task is to wake up, and is cancelled then.
        loop.call_at(watch._started + 10, ended.set_result, None)
        with watch:
            await ended
        await anyio.sleep(1)
        return watch.fired, _cancelling()

    assert run_virtual(body) == (FaultKind.TOTAL_TIMEOUT, 0)


def _cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()
