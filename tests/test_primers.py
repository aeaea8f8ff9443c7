from __future__ import annotations

import asyncio

import anyio

from runner import primers
from runner.primers import CACHED_S, Primers
from runner.testing.virtual_time import run_virtual


def in_time(body):
    async def main():
        await body(Primers(asyncio.get_running_loop().time))

    run_virtual(main)


def test_one_goes_ahead_and_the_rest_when_its_answer_begins():
    log = []

    async def job(them, name, key="k"):
        if await them.wait(key):
            log.append(("primer", name, anyio.current_time()))
            await anyio.sleep(3)
            them.begun(key)
            await anyio.sleep(5)
            them.ended(key)
        else:
            log.append(("rest", name, anyio.current_time()))

    async def body(them):
        start = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for i in range(4):
                tasks.start_soon(job, them, i)
            tasks.start_soon(job, them, "other", "other key")
        log[:] = [(kind, name, round(at - start, 3)) for kind, name, at in log]

    in_time(body)
    assert log[:2] == [("primer", 0, 0.0), ("primer", "other", 0.0)]
    assert log[2:] == [("rest", 1, 3.0), ("rest", 2, 3.0), ("rest", 3, 3.0)]


def test_a_primer_without_an_answer_hands_its_part_on_to_one():
    async def body(them):
        assert await them.wait("k")
        parts = []

        async def job():
            parts.append(await them.wait("k"))

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(job)
            await anyio.wait_all_tasks_blocked()
            them.ended("k")
            await anyio.wait_all_tasks_blocked()
            assert parts == [True]
            them.begun("k")
        assert parts == [True, False, False]

    in_time(body)


def test_a_key_unused_for_long_is_primed_again():
    async def body(them):
        assert await them.wait("k")
        them.begun("k")
        for _ in range(5):
            await anyio.sleep(CACHED_S - 1)
            assert not await them.wait("k")
        await anyio.sleep(CACHED_S + 1)
        assert await them.wait("k")

    in_time(body)


def test_keys_are_bounded_and_none_is_forgotten_while_others_wait_for_it(monkeypatch):
    monkeypatch.setattr(primers, "MAX_KEYS", 10)

    async def body(them):
        assert await them.wait("under way")
        for i in range(100):
            assert await them.wait(str(i))
            them.begun(str(i))
        assert len(them._keys) <= 11
        assert "under way" in them._keys

    in_time(body)
