"""tenacity as this project uses it: what is retried, how often, after how long.

Only `AttemptFailed` is retried, and only where its fault says that another attempt may help: an allow-list, since
tenacity asks its predicate about cancellation too. The wait is full jitter (AWS, "Exponential Backoff And Jitter") on
top of what the server asked for, which is a floor. What a 429 asked for is the shared cool-down of admission.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from tenacity import AsyncRetrying, RetryCallState

from runner.faults import Fault
from runner.limits import THROTTLED_ATTEMPTS_FACTOR

T = TypeVar("T")
BACKOFF_BASE_S: Final = 0.5
"""The first wait is between 0 and this."""
BACKOFF_CAP_S: Final = 60.0
"""…doubling to this: a minute is the window of every rate limit."""
THROTTLED_CAP_S: Final = 5.0
"""…or only to this after a 429: everybody waits in the shared cool-down then, and jitter spreads the herd behind it."""


class AttemptFailed(Exception):
    """Raised by one attempt of a job, for tenacity. `elsewhere`: its endpoint is out of use, and there is another."""

    def __init__(self, fault: Fault, *, elsewhere: bool = False) -> None:
        super().__init__(fault.message)
        self.fault = fault
        self.elsewhere = elsewhere


async def retrying(
    attempt: Callable[[], Awaitable[T]],
    max_attempts: int,
    *,
    rng: random.Random,
    sleep: Callable[[float], Awaitable[None]],
) -> T:
    """Makes attempts until one ends well; raises the last `AttemptFailed` when it gives up.

    Throttled attempts are counted apart, up to max_attempts × THROTTLED_ATTEMPTS_FACTOR; with max_attempts = 1 nothing
    is retried. Most jobs need one attempt, and tenacity costs a tenth of a request: it comes in when the first has
    failed, and counts that as its first.
    """
    try:
        return await attempt()
    except AttemptFailed as error:
        if max_attempts == 1 and not error.elsewhere:
            raise
        first: AttemptFailed | None = error
    policy = _Policy(max_attempts, rng)
    retries = AsyncRetrying(retry=policy.retry, stop=policy.stop, wait=policy.wait, sleep=sleep, reraise=True)

    async def again() -> T:
        nonlocal first
        if first is None:
            return await attempt()
        try:
            raise first
        finally:
            first = None  # else the error and this frame would hold each other

    try:
        return await retries(again)
    except AttemptFailed as error:
        raise error.with_traceback(None)  # noqa: B904 - it is the same error
    finally:
        # The traceback's frames hold tenacity's state, which holds the error, and its list of steps holds itself: a job
        # that failed would be left to the garbage collector, with all that hangs on it.
        retries.iter_state.reset()


class _Policy:
    """Counts one job's failures by class."""

    def __init__(self, max_attempts: int, rng: random.Random) -> None:
        self._max = max_attempts
        self._rng = rng
        self._failed = 0
        self._throttled = 0

    def retry(self, state: RetryCallState) -> bool:
        failed = _failure(state)
        if failed is None:
            return False
        if failed.elsewhere:  # no fault of the job's: it happens once for each endpoint
            return True
        if failed.fault.row.throttle:
            self._throttled += 1
        else:
            self._failed += 1
        return failed.fault.retry

    def stop(self, state: RetryCallState) -> bool:
        failed = _failure(state)
        if failed is not None and failed.elsewhere:
            return False
        if self._max == 1:
            return True
        return self._failed >= self._max or self._throttled >= self._max * THROTTLED_ATTEMPTS_FACTOR

    def wait(self, state: RetryCallState) -> float:
        failed = _failure(state)
        assert failed is not None
        if failed.elsewhere:
            return 0.0
        fault = failed.fault
        failures = self._throttled if fault.row.throttle else self._failed
        # 2**7 × 0.5 s passes the cap; a larger exponent would only overflow.
        cap_s = THROTTLED_CAP_S if fault.row.throttle else BACKOFF_CAP_S
        ceiling = min(BACKOFF_BASE_S * 2 ** min(failures - 1, 7), cap_s)
        # An endpoint whose limit is reached is left alone by admission for so long; others may take the job meanwhile.
        floor_s = 0.0 if fault.is_shared else fault.retry_after_s or 0.0
        return floor_s + self._rng.uniform(0.0, ceiling)


def _failure(state: RetryCallState) -> AttemptFailed | None:
    """How the attempt that just ended failed; None if it ended well or with anything else, cancellation included."""
    error = state.outcome.exception() if state.outcome is not None else None
    return error if isinstance(error, AttemptFailed) else None
