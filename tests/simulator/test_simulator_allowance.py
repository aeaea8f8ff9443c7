"""RPM and TPM of the simulator in virtual time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.simulator.allowance import Allowance, Refusal, come_back, duration, rate_limited
from tests.simulator.simulator_client import Clock


def allowance(rpm=None, tpm=None, burst_s=1.0):
    clock = Clock()
    return Allowance(rpm, tpm, burst_s, clock), clock


def test_one_seconds_worth_goes_at_once_and_then_the_rate_holds():
    gate, clock = allowance(rpm=600)
    assert [gate.take(1) for _ in range(10)] == [None] * 10
    refused = gate.take(1)
    assert refused == Refusal("requests", refused.retry_after_s, 600, 1)
    assert refused.retry_after_s == pytest.approx(0.1)
    clock.now_s += 0.1
    assert gate.take(1) is None
    assert gate.take(1) is not None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("rpm", "tpm"), [(600, None), (None, 30_000), (600, 30_000), (30, 6_000)])
def test_no_window_of_a_minute_holds_more_than_the_limit_and_one_burst(rpm, tpm, seed):
    gate, clock = allowance(rpm, tpm)
    rng = random.Random(seed)
    taken = []
    while clock.now_s < 1_200:
        clock.now_s += rng.expovariate(40)
        tokens = rng.randint(1, 400)
        if gate.take(tokens) is None:
            taken.append((clock.now_s, tokens))
    left = requests = spent = 0
    for at_s, tokens in taken:
        requests += 1
        spent += tokens
        while taken[left][0] <= at_s - 60:
            requests -= 1
            spent -= taken[left][1]
            left += 1
        assert rpm is None or requests <= rpm + max(1, rpm / 60) + 1e-6
        # the request that a debt lets in is itself a part of the burst
        assert tpm is None or spent <= tpm + tpm / 60 + 400
    # and it isn't stricter than it says: what is offered is twenty times what is allowed
    assert rpm is None or tpm is not None or len(taken) >= rpm * 200 / 60 * 0.98


def test_requests_and_tokens_are_taken_together_or_not_at_all():
    gate, clock = allowance(rpm=60, tpm=6_000)
    assert gate.take(100) is None
    clock.now_s += 1
    assert gate.take(50) is None
    refused = gate.take(100)
    assert refused is not None
    clock.now_s += refused.retry_after_s
    # had the refused one cost a request or tokens, this would have to wait
    assert gate.take(100) is None


@given(
    st.floats(1, 10_000),
    st.one_of(st.none(), st.floats(1_000, 1e7)),
    st.floats(0.1, 60),
    st.lists(st.integers(1, 1_000), min_size=1, max_size=50),
)
def test_who_comes_back_after_retry_after_is_let_in(rpm, tpm, burst_s, sizes):
    gate, clock = allowance(rpm, tpm, burst_s)
    for tokens in sizes:
        refused = gate.take(tokens)
        if refused is not None:
            clock.now_s += int(come_back(refused.retry_after_s)["retry-after-ms"]) / 1_000
            assert gate.take(tokens) is None


def test_a_request_above_the_burst_leaves_a_debt_that_is_waited_out():
    gate, clock = allowance(tpm=6_000)
    assert gate.take(1_000) is None
    assert gate.take(1).retry_after_s == pytest.approx(9.01)
    clock.now_s += 9.02
    assert gate.take(1) is None


def test_a_request_above_the_whole_limit_never_fits_and_is_not_told_to_come_back():
    gate, _ = allowance(tpm=6_000)
    refused = gate.take(6_001)
    error = rate_limited(refused, "m")
    assert refused.retry_after_s == float("inf")
    assert (error.status, error.headers) == (429, {})
    assert error.error["type"] == "tokens"
    assert "Request too large" in error.error["message"]


def test_headers_count_from_the_whole_minute_and_reset_until_the_bucket_is_full():
    gate, clock = allowance(rpm=60, tpm=60_000)
    gate.take(500)
    assert gate.headers() == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "60000",
        "x-ratelimit-remaining-tokens": "59500",
        "x-ratelimit-reset-tokens": "500ms",
    }
    clock.now_s += 1
    assert gate.headers()["x-ratelimit-remaining-tokens"] == "60000"
    assert gate.headers()["x-ratelimit-reset-tokens"] == "0s"
    assert gate.headers("tokens")["x-ratelimit-remaining-tokens"] == "0"


def test_without_limits_there_are_no_limit_headers_and_no_refusal():
    gate, _ = allowance()
    assert gate.take(10**9) is None
    assert gate.headers() == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0s"), (-1, "0s"), (0.02, "20ms"), (0.0001, "1ms"), (1, "1s"), (1.5, "1.5s")),
        *((6 * 60, "6m0s"), (3_723, "1h2m3s"), (61.25, "1m1.25s")),
    ],
)
def test_durations_are_written_as_go_writes_them(seconds, text):
    assert duration(seconds) == text


def test_limits_that_change_take_effect_at_once_and_forgive_no_debt():
    gate, clock = allowance(rpm=600, tpm=60_000)
    assert gate.take(3_000) is None
    gate.limit(60, 60_000)
    assert gate.headers()["x-ratelimit-limit-requests"] == "60"
    assert gate.take(1).retry_after_s == pytest.approx(2.001)
    gate.limit(60, None)
    # what the bucket held above its new size is gone: one request at once, not nine
    assert gate.take(1) is None
    assert gate.take(1).retry_after_s == pytest.approx(1)
    gate.limit(600, None)
    assert gate.take(1).retry_after_s == pytest.approx(0.1)
    clock.now_s += 0.1
    assert gate.take(1) is None
    gate.limit(None, None)
    assert [gate.take(10**9) for _ in range(100)] == [None] * 100
    assert gate.headers() == {}
