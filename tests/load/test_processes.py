"""What the processes of `--workers` get of the limits."""

from __future__ import annotations

import pytest

from runner.load.processes import divided
from runner.settings import EndpointSettings, ModelLimits, Settings


def test_limits_are_divided_by_the_number_of_processes():
    found = divided(Settings(rpm=600, tpm=9_000, limits={"m": ModelLimits(rpm=60, concurrency=5)}), 3)
    assert (found.rpm, found.tpm) == (200, 3_000)
    assert (found.limits["m"].rpm, found.limits["m"].concurrency) == (20, 1)
    assert found.limits["m"].tpm is None


def test_what_is_not_limited_stays_so():
    found = divided(Settings(), 4)
    assert (found.rpm, found.tpm, found.limits) == (None, None, {})


@pytest.mark.parametrize("concurrency", [1, 8])
def test_an_endpoint_keeps_at_least_one_stream_a_process(concurrency):
    endpoint = EndpointSettings(name="a", rpm=40, concurrency=concurrency, limits={"*": ModelLimits(tpm=800)})
    (found,) = divided(Settings(endpoints=(endpoint,)), 4).endpoints
    assert found.limits is not None
    assert (found.rpm, found.limits["*"].tpm) == (10, 200)
    assert found.concurrency == max(1, concurrency // 4)
