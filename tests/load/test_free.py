"""The door of a load test without limits, and when the run's own stands in its place."""

from __future__ import annotations

import anyio
import pytest

from runner.concurrency import FixedConcurrency
from runner.faults import Fault, FaultKind
from runner.load.engine import has_limits
from runner.load.free import FreeAdmission
from runner.ratelimits import UNKNOWN
from runner.settings import EndpointSettings, ModelLimits, Settings
from runner.testing.virtual_time import run_virtual
from runner.tickets import AdmissionClosed, AllDisabled, Need


def door():
    return FreeAdmission.of_one(rpm=None, tpm=None, concurrency=FixedConcurrency(1), clock=lambda: 0.0)


async def ticket(admission):
    with anyio.fail_after(0.001):
        return await admission.acquire("m", Need(10, 10))


def test_nobody_waits_whatever_the_server_says():
    async def pass_through():
        admission = door()
        for _ in range(200):
            given = await ticket(admission)
            admission.answered(given, UNKNOWN)
            admission.throttled(given, UNKNOWN, 60.0)
            admission.received(given)
            admission.concluded(given, Fault(FaultKind.SERVER_ERROR, "x"))
            admission.settle(given, None)
            admission.release(given)
            assert given.limiter_wait_s == 0.0

    run_virtual(pass_through)


def test_after_the_end_nobody_passes():
    async def close():
        admission = door()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(admission.run)
            admission.close()
        with pytest.raises(AdmissionClosed):
            await ticket(admission)

    run_virtual(close)


def test_an_endpoint_that_refused_the_key_gets_nothing_more():
    async def refuse():
        admission = door()
        given = await ticket(admission)
        assert not admission.disable(given.endpoint, Fault(FaultKind.AUTH, "no"), "m")
        with pytest.raises(AllDisabled):
            await ticket(admission)

    run_virtual(refuse)


@pytest.mark.parametrize(
    ("settings", "limited"),
    [
        ({}, False),
        ({"rpm": 5}, True),
        ({"tpm": 5}, True),
        ({"limits": {"m": ModelLimits(rpm=1)}}, True),
        ({"endpoints": (EndpointSettings(name="a"),)}, False),
        ({"endpoints": (EndpointSettings(name="a", rpm=3),)}, True),
    ],
)
def test_limits_are_kept_where_the_user_gave_some(settings, limited):
    assert has_limits(Settings(**settings)) == limited
