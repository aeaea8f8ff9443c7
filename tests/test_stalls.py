"""No attempt waits for ever, for a day, or beside a free slot: one test for each way in which one did."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from runner.admission import Admission
from runner.concurrency import FixedConcurrency
from runner.endpoints import favourite
from runner.faults import Fault, FaultKind
from runner.gate import Gate
from runner.limits import MAX_LANES
from runner.ratelimits import UNKNOWN, Allowance, RateLimits
from runner.retries import AttemptFailed, _Policy
from runner.settings import ModelLimits
from runner.testing.virtual_time import run_virtual
from runner.tickets import Need, NeverFits
from tests.test_fairness import KNOWN, Field, endpoint, flood, play
from tests.worlds import Server

BAD_KEY = Fault(FaultKind.AUTH, "bad key")


def test_what_a_job_gives_back_of_a_days_limit_is_used_at_once():
    """Two jobs reserve the whole day's tokens and use a five-hundredth of it: the third must not wait for a day."""

    async def body(world: Field) -> None:
        with anyio.fail_after(5):
            await flood(world, 3, tokens=5000, used=10)

    play(body, a={"limits": {"*": ModelLimits(tpd=10_000, rpm=1e9)}})


def test_an_endpoint_whose_day_is_used_up_takes_nobody_from_the_others():
    async def body(world: Field) -> None:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for _ in range(6):
                    tasks.start_soon(lambda: world.job(hold_s=5.0))
                    await anyio.sleep(0.1)

    play(body, a={"limits": {"*": ModelLimits(rpd=2, rpm=1e9)}}, b={"slots": 1})


def test_an_endpoint_whose_first_in_line_waits_for_a_day_is_left_nobody_else():
    """B would leave the small job, which failed there, to a: but a is at the large one that only a may have."""

    async def body(world: Field) -> None:
        a, b = world.endpoints
        admission = world.admission
        admission.release(await admission.acquire("m", Need(600, 0), only=a.name))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(admission.acquire, "m", Need(600, 0), only=a.name))
            await anyio.sleep(0.1)
            small = asyncio.create_task(admission.acquire("m", Need(10, 0), avoid=b))
            for _ in range(100):  # turns, not time: none passes while lanes wake each other
                await anyio.lowlevel.checkpoint()
            assert small.done()
            assert small.result().endpoint is b
            admission.release(small.result())
            tasks.cancel_scope.cancel()

    play(body, a={"limits": {"*": ModelLimits(tpd=1000, rpm=1e9)}}, b={"rpm": 1e9})


def test_no_slot_of_the_run_is_kept_for_a_model_whose_endpoint_is_full():
    async def body(world: Field) -> None:
        async with anyio.create_task_group() as tasks:
            for model, hold_s in (("z", 1.0), ("z", 2.0), ("x", 100.0), ("y", 1.0), *[("z", 1.0)] * 5):
                tasks.start_soon(partial(world.job, model=model, hold_s=hold_s))
                await anyio.sleep(0.01)

    world = play(body, slots=2, a={"slots": 1, "models": ["x", "y"]}, b={"models": ["z"]})
    assert max(sent.waited_s for sent in world.sent if sent.model == "z") < 10


@pytest.mark.parametrize(("models", "slots"), [("xyw", (3, 1, 3)), ("xyw", (2, 1, 3)), ("", (3, 2, 2))])
def test_no_slot_of_the_run_stays_empty_while_somebody_could_use_it(models, slots):
    total, one, other = slots

    async def body(world: Field) -> None:
        async def jobs(model: str) -> None:
            while True:
                await world.job(model=model, hold_s=rng.uniform(0.5, 1.5))

        async with anyio.create_task_group() as tasks:
            for model in "xywzv":
                for _ in range(5):
                    tasks.start_soon(jobs, model)
            for _ in range(300):
                await anyio.sleep(1)
                seen.append(world.busy["all"])
            tasks.cancel_scope.cancel()

    rng = random.Random(1)
    seen: list[int] = []
    play(body, slots=total, a={"slots": one, "models": models}, b={"slots": other, "models": ["z", "v"]})
    assert sum(seen) >= 0.99 * total * len(seen)


def test_while_one_endpoint_pays_the_next_in_line_goes_to_another():
    async def body(world: Field) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(lambda: world.job(model="only b", hold_s=200.0))
            await anyio.sleep(0.1)
            for _ in range(2):
                await world.job(model="m", hold_s=0.0)
            await anyio.sleep(70)
            for _ in range(10):
                tasks.start_soon(lambda: world.job(3000, model="m", hold_s=50.0))

    limited = {"*": ModelLimits(tpm=60_000, rpm=1e9)}
    world = play(body, a={"limits": limited, "models": ["m"]}, b={"slots": 100})
    assert max(sent.waited_s for sent in world.sent) < 4


def test_who_was_left_to_an_endpoint_that_took_another_is_taken_by_the_next():
    key = next(f"k{i}" for i in range(100) if favourite(f"k{i}", "ab") == "b")

    async def body(world: Field) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(lambda: world.job(model="only a", hold_s=100.0))
            await anyio.sleep(0.1)
            tasks.start_soon(lambda: world.job(50_000, model="m", key=key))
            tasks.start_soon(lambda: world.job(10, model="m"))

    limited = {"*": ModelLimits(tpm=60_000, rpm=1e9)}
    world = play(body, a={}, b={"limits": limited, "models": ["m"]})
    assert next(sent for sent in world.sent if sent.tokens == 10).waited_s < 0.1


def test_a_long_payment_at_one_endpoint_does_not_hold_up_other_models_that_another_serves():
    models = [f"m{i}" for i in range(20)]

    async def body(world: Field) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(lambda: world.job(model="only b", hold_s=100.0))
            await anyio.sleep(0.1)
            tasks.start_soon(lambda: world.job(50_000, model="only a"))
            await anyio.sleep(0.1)
            for model in models:
                tasks.start_soon(partial(world.job, 10, model=model))

    world = play(body, a={"tpm": 60_000, "models": ["only a", *models]}, b={"models": ["only b", *models]})
    assert max(sent.waited_s for sent in world.sent if sent.model in models) < 1


def test_who_fits_at_no_endpoint_that_is_left_is_told():
    """B is disabled, and a turns out to allow less than the job needs."""
    low = RateLimits(tokens=Allowance(1000.0))

    async def body(world: Field) -> None:
        admission = world.admission
        tickets = [await admission.acquire("m", Need(1, 0)) for _ in "ab"]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: world.job(5000))
            await anyio.sleep(0.1)
            at_a = next(ticket for ticket in tickets if ticket.endpoint.name == "a")
            admission.disable(world.endpoints[1], BAD_KEY, "m")
            for _ in range(4):
                admission.answered(at_a, low)
            for ticket in tickets:
                admission.release(ticket)
            with anyio.move_on_after(3600) as waiting:
                while not world.ended:  # noqa: ASYNC110 - virtual time
                    await anyio.sleep(1)
            assert not waiting.cancelled_caught

    world = play(body, a={"slots": 1}, b={"slots": 1})
    assert world.ended == {NeverFits.__name__: 1}


def test_of_more_models_than_lanes_none_loses_the_endpoints_that_are_left():
    async def body(world: Field) -> None:
        for i in range(MAX_LANES + 10):
            await world.job(model=f"m{i}", hold_s=0.0)
        assert world.admission.disable(world.endpoints[0], BAD_KEY, f"m{MAX_LANES + 9}")

    play(body, a={}, b={})


def test_a_configured_limit_holds_however_many_other_models_came_before():
    async def body(world: Field) -> None:
        for i in range(MAX_LANES + 10):
            await world.job(model=f"m{i}", hold_s=0.0)
        with anyio.move_on_after(60):
            await flood(world, 50, model="slow", hold_s=0.0)

    world = play(body, a={"limits": {**KNOWN, "slow": ModelLimits(rpm=1)}})
    assert sum(sent.model == "slow" for sent in world.sent) == 1


def test_a_cool_down_that_nobody_waits_for_is_not_what_limited_the_run():
    async def body(world: Field) -> None:
        admission = world.admission
        refused, other = [await admission.acquire("m", Need(1, 0)) for _ in "ab"]
        admission.throttled(refused, UNKNOWN, 60.0)
        for ticket in (refused, other):
            admission.release(ticket)
        for _ in range(70):
            await world.job(hold_s=1.0)
        blocked.update(admission.statistics().blocked_s)

    blocked: dict[str, float] = {}
    world = play(body, a={}, b={})
    assert max(sent.waited_s for sent in world.sent) < 0.01
    assert sum(blocked.values()) < 1, blocked


def test_an_endpoint_out_of_use_does_not_look_like_room_for_others():
    async def body(world: Field) -> None:
        await world.job()
        world.admission.disable(world.endpoints[0], BAD_KEY, "m")
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(world.job)
            await anyio.sleep(0.5)
            assert not world.admission.room_for_others

    play(body, a={}, b={"slots": 1})


def test_a_job_that_one_endpoint_refuses_for_long_is_not_kept_from_the_others():
    """The endpoint's cool-down is that long; the job's own backoff isn't."""
    policy = _Policy(5, random.Random(1))
    failed = AttemptFailed(Fault(FaultKind.RATE_LIMITED, "slow", retry_after_s=600.0))
    state: Any = SimpleNamespace(outcome=SimpleNamespace(exception=lambda: failed))
    assert policy.retry(state)
    assert policy.wait(state) <= 5


@pytest.mark.parametrize("headers", [True, False])
def test_a_limit_of_the_run_does_not_count_as_one_of_its_endpoints(headers):
    """The run may send 100,000 a minute; its two servers bear 600 each, and say so late or never."""

    async def main() -> list[Server]:
        clock, rng = asyncio.get_running_loop().time, random.Random(1)
        whole = Gate(rpm=100_000, tpm=None, concurrency=FixedConcurrency(1000), clock=clock)
        servers = {name: Server(600, headers=headers) for name in "ab"}
        made = [endpoint(name, clock, whole, slots=200, limits={}) for name in servers]
        admission = Admission(made, clock=clock, whole=whole)

        async def worker() -> None:
            while True:
                ticket = await admission.acquire("m", Need(0, 10))
                await anyio.sleep(rng.uniform(0, 0.04))
                server = servers[ticket.endpoint.name]
                good, said = server.take(10), server.says()
                if good:
                    admission.answered(ticket, said)
                    admission.received(ticket, 10)
                    await anyio.sleep(rng.uniform(0.15, 0.45))
                else:
                    admission.throttled(ticket, said, 1.0)
                admission.settle(ticket, None)
                admission.release(ticket)
                if not good:
                    await anyio.sleep(rng.uniform(0, 0.5))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(admission.run)
            for _ in range(300):
                tasks.start_soon(worker)
            await anyio.sleep(60)
            tasks.cancel_scope.cancel()
        return list(servers.values())

    servers = run_virtual(main)
    good, refused = sum(len(one.good) for one in servers), sum(len(one.refused) for one in servers)
    assert refused <= 0.02 * (good + refused)
    assert good >= 0.9 * 1200
