"""The last door before sending: first come, first served, for those who need not wait as well."""

from __future__ import annotations

import asyncio

import anyio

from runner.concurrency import FixedConcurrency
from runner.gate import Gate
from runner.testing.virtual_time import run_virtual


def test_nobody_enters_at_once_while_somebody_waits_at_the_gate():
    async def main() -> None:
        clock = asyncio.get_running_loop().time
        gate = Gate(rpm=None, tpm=6_000, concurrency=FixedConcurrency(4), clock=clock)
        assert gate.is_free_for(0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(gate.enter, 90)  # 50 are there
            await anyio.sleep(0.1)
            assert not gate.is_free_for(0)
        assert gate.is_free_for(0)
        assert gate.in_flight == 1

    run_virtual(main)
