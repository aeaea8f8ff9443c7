from __future__ import annotations

import contextlib
import gc
import random
import weakref

import anyio
import pytest

from runner.faults import Fault, FaultKind
from runner.limits import THROTTLED_ATTEMPTS_FACTOR
from runner.retries import BACKOFF_BASE_S, BACKOFF_CAP_S, AttemptFailed, retrying
from runner.testing.virtual_time import run_virtual

SERVER = Fault(FaultKind.SERVER_ERROR, "m")
THROTTLED = Fault(FaultKind.RATE_LIMITED, "m")
BAD = Fault(FaultKind.BAD_REQUEST, "m")


def attempts(faults, *, max_attempts=5, seed=0):
    """Runs attempts that meet these faults in turn; returns how many there were, the waits, and what came out."""
    waits = []

    async def main():
        async def sleep(seconds):
            waits.append(seconds)
            await anyio.sleep(seconds)

        count = 0

        async def attempt():
            nonlocal count
            count += 1
            if count <= len(faults):
                raise AttemptFailed(faults[count - 1])
            return count

        try:
            assert await retrying(attempt, max_attempts, rng=random.Random(seed), sleep=sleep) == count
        except AttemptFailed as error:
            return count, waits, error.fault
        return count, waits, None

    return run_virtual(main)


def test_a_success_is_not_repeated():
    assert attempts([]) == (1, [], None)


def test_what_a_retry_may_mend_is_tried_again_up_to_the_bound():
    count, waits, fault = attempts([SERVER] * 99)
    assert (count, len(waits), fault) == (5, 4, SERVER)


def test_what_it_cannot_mend_fails_at_once():
    assert attempts([BAD]) == (1, [], BAD)


def test_throttled_attempts_have_a_bound_of_their_own():
    count, _, fault = attempts([THROTTLED] * 999, max_attempts=3)
    assert (count, fault) == (3 * THROTTLED_ATTEMPTS_FACTOR, THROTTLED)
    mixed = [THROTTLED, SERVER] * 4 + [SERVER]
    assert attempts(mixed, max_attempts=5)[0] == 9


@pytest.mark.parametrize("failures", [1, 2, 5], ids=["a retry helps", "two do", "none does"])
def test_what_failed_is_free_at_once(failures):
    class Answer:
        pass

    kept = []

    async def attempt():
        answer = Answer()
        kept.append(weakref.ref(answer))
        if len(kept) <= failures:
            raise AttemptFailed(SERVER)

    async def main():
        with contextlib.suppress(AttemptFailed):
            await retrying(attempt, 5, rng=random.Random(0), sleep=anyio.sleep)
        return [answer() for answer in kept]

    gc.disable()
    try:
        assert run_virtual(main) == [None] * min(failures + 1, 5), "it waits for the garbage collector"
    finally:
        gc.enable()


def test_one_attempt_means_no_retry():
    assert attempts([THROTTLED], max_attempts=1)[0] == 1


@pytest.mark.parametrize("seed", range(20))
def test_the_wait_is_full_jitter_under_a_doubling_ceiling(seed):
    _, waits, _ = attempts([SERVER] * 99, max_attempts=12, seed=seed)
    for i, wait in enumerate(waits):
        assert 0 <= wait <= min(BACKOFF_BASE_S * 2**i, BACKOFF_CAP_S)
    assert len({round(wait, 6) for wait in waits}) == len(waits)


def test_the_servers_advice_is_a_floor():
    advised = Fault(FaultKind.SERVER_ERROR, "m", retry_after_s=30.0)
    _, waits, _ = attempts([advised] * 3)
    assert all(wait >= 30 for wait in waits)


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_cancellation_passes_through_at_once(failures):
    async def main():
        count = 0

        async def attempt():
            nonlocal count
            count += 1
            if count <= failures:
                raise AttemptFailed(SERVER)
            await anyio.sleep(1000)

        with anyio.move_on_after(10) as scope:
            await retrying(attempt, 5, rng=random.Random(0), sleep=anyio.sleep)
        return scope.cancelled_caught, round(anyio.current_time(), 3), count

    assert run_virtual(main) == (True, 10.0, failures + 1)


@pytest.mark.parametrize("failures", [0, 1, 2])
def test_other_exceptions_are_not_retried(failures):
    async def main():
        count = 0

        async def attempt():
            nonlocal count
            count += 1
            raise AttemptFailed(SERVER) if count <= failures else KeyError("x")

        with pytest.raises(KeyError):
            await retrying(attempt, 5, rng=random.Random(0), sleep=anyio.sleep)
        return count

    assert run_virtual(main) == failures + 1
