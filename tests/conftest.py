"""What holds for every test: no example is judged by its time, and a failing one can be replayed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, settings

from runner.simulator import PRESETS, Profile, Simulator, simulator_process

# A loaded CI machine is slow, not wrong. print_blob gives the line that replays a failure. The suite takes the same
# examples each time, since whether a change may land must not be drawn by lot; the others look for new ones.
settings.register_profile(
    "runner", deadline=None, print_blob=True, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", settings.get_profile("runner"), derandomize=False, max_examples=1_000)
settings.register_profile("soak", settings.get_profile("explore"), max_examples=5_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "runner"))

FAST = Profile(ttft_s=0.0, tokens_per_s=float("inf"), jitter=0.0)


def _process(profile: Profile) -> Iterator[Simulator]:
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(simulator_process(profile)) as simulator:
        yield simulator


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    """A simulator in a process of its own that answers at once."""
    yield from _process(FAST)


@pytest.fixture(scope="module")
def slow_simulator() -> Iterator[Simulator]:
    """One whose answers take a while: something to be killed in the middle of."""
    yield from _process(replace(FAST, ttft_s=0.05, tokens_per_s=200.0))


@pytest.fixture(scope="module")
def flaky_simulator() -> Iterator[Simulator]:
    """One where every fifth request meets a fault."""
    yield from _process(replace(PRESETS["flaky"], ttft_s=0.0, tokens_per_s=float("inf")))
