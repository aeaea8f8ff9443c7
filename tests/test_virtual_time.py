from __future__ import annotations

import time

import anyio
import pytest
from aiolimiter import AsyncLimiter

from runner.testing.virtual_time import Deadlock, run_virtual


def test_hours_pass_in_no_time():
    async def main():
        await anyio.sleep(3600)
        with anyio.move_on_after(3600):
            await anyio.sleep_forever()
        return anyio.current_time()

    start = time.monotonic()
    assert run_virtual(main) == pytest.approx(7200)
    assert time.monotonic() - start < 60


def test_aiolimiter_lives_in_it():
    async def main():
        limiter = AsyncLimiter(1, 10)
        for _ in range(7):
            await limiter.acquire()
        return anyio.current_time()

    assert run_virtual(main) == pytest.approx(60)


def test_a_deadlock_is_an_error_rather_than_a_hang():
    with pytest.raises(Deadlock):
        run_virtual(anyio.sleep_forever)
