from __future__ import annotations

import anyio

from runner.deadlines import Deadlines, Watch
from runner.faults import FaultKind
from runner.testing.virtual_time import run_virtual


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
