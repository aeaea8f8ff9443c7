"""Jobs from the reader to the workers: in order, none twice, none lost, and the reader is told in time."""

from __future__ import annotations

import asyncio
import random

import pytest

from runner.handover import Handover
from runner.jobs import Job
from runner.testing.virtual_time import run_virtual
from tests.scripted import chat_job


def jobs(count: int) -> list[Job]:
    return [chat_job(id=f"job-{number}") for number in range(count)]


def test_jobs_are_taken_in_the_order_of_the_file_without_giving_up_the_loop():
    async def body():
        handover, given = Handover(), jobs(5)
        handover.put(given)
        taking = [handover.take() for _ in given]
        taken = []
        for each in taking:
            with pytest.raises(StopIteration) as ended:
                each.send(None)
            taken.append(ended.value.value)
        assert taken == given

    run_virtual(body)


def test_of_ten_idle_workers_as_many_wake_as_there_are_jobs():
    async def body():
        handover, taken = Handover(), []

        async def worker():
            while (job := await handover.take()) is not None:
                taken.append(job.id)
                await asyncio.sleep(1)

        workers = [asyncio.ensure_future(worker()) for _ in range(10)]
        await asyncio.sleep(0)
        handover.put(jobs(3))
        assert handover.wanting == 0
        await asyncio.sleep(0.5)
        assert sorted(taken) == ["job-0", "job-1", "job-2"]
        handover.close()
        await asyncio.gather(*workers)

    run_virtual(body)


def test_jobs_that_nobody_is_idle_for_want_a_worker():
    async def body():
        handover = Handover()
        handover.put(jobs(7))
        assert handover.wanting == 7
        await handover.take()
        assert handover.wanting == 6

    run_virtual(body)


def test_the_reader_goes_on_when_few_jobs_are_left_and_is_done_when_none_is():
    async def body():
        handover, seen = Handover(), []

        async def reader():
            handover.put(jobs(6))
            await handover.down_to(2)
            seen.append(len(handover._ready))
            await handover.down_to(0)
            seen.append(len(handover._ready))

        reading = asyncio.ensure_future(reader())
        await asyncio.sleep(0)
        for _ in range(6):
            await handover.take()
            await asyncio.sleep(0)
        await reading
        assert seen == [2, 0]

    run_virtual(body)


def test_what_is_there_when_it_closes_is_taken_and_then_all_are_told():
    async def body():
        handover, given = Handover(), jobs(2)
        handover.put(given)
        handover.close()
        assert [await handover.take() for _ in range(3)] == [*given, None]

    run_virtual(body)


@pytest.mark.parametrize("seed", range(10))
def test_every_job_is_taken_once_whoever_comes_when(seed):
    rng = random.Random(seed)

    async def body():
        handover, given, taken = Handover(), jobs(300), []

        async def worker():
            await asyncio.sleep(rng.random())
            while (job := await handover.take()) is not None:
                taken.append(job)
                if rng.random() < 0.7:
                    await asyncio.sleep(rng.random() / 10)

        async def reader():
            rest = list(given)
            while rest:
                size = rng.randint(1, 64)
                batch, rest = rest[:size], rest[size:]
                handover.put(batch)
                await handover.down_to(rng.randint(0, 16))
                await asyncio.sleep(rng.random() / 5)
            await handover.down_to(0)
            handover.close()

        await asyncio.gather(reader(), *(worker() for _ in range(rng.randint(1, 20))))
        assert taken == given, f"seed {seed}"

    run_virtual(body)
