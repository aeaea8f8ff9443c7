from __future__ import annotations

import math
import random

import pytest

from runner.breaker import FAILURES, OPEN_MAX_S, OPEN_S, Breaker


def opened(at_s=0.0):
    breaker = Breaker()
    for i in range(FAILURES):
        assert breaker.failed(object(), at_s) == (i == FAILURES - 1)
    return breaker


def test_failures_in_a_row_open_it_and_a_success_between_starts_the_count_anew():
    breaker = Breaker()
    for _ in range(10):
        for _ in range(FAILURES - 1):
            breaker.failed(object(), 0.0)
        breaker.succeeded(object())
    assert breaker.closed
    assert breaker.opens_in(0.0) == 0
    assert opened().opens_in(0.0) == OPEN_S


def test_half_open_it_lets_one_probe_through_and_a_good_one_closes_it():
    breaker = opened()
    assert breaker.opens_in(OPEN_S) == 0
    probe, other = object(), object()
    breaker.sent(probe)
    assert breaker.opens_in(OPEN_S) == math.inf
    assert not breaker.succeeded(other)  # it was sent before
    assert not breaker.closed
    assert breaker.succeeded(probe)
    assert breaker.closed
    assert breaker.opens_in(OPEN_S) == 0


def test_each_bad_probe_doubles_the_wait_up_to_a_minute():
    breaker, now_s, waits = opened(), 0.0, []
    for _ in range(9):
        waits.append(breaker.opens_in(now_s))
        now_s += waits[-1]
        probe = object()
        breaker.sent(probe)
        assert breaker.failed(probe, now_s)
    assert waits == [min(OPEN_S * 2**i, OPEN_MAX_S) for i in range(9)]


def test_a_probe_that_proves_nothing_is_followed_by_another():
    breaker = opened()
    probe = object()
    breaker.sent(probe)
    breaker.ended(probe)
    assert breaker.opens_in(OPEN_S) == 0


def test_failures_of_what_was_sent_before_it_opened_prolong_nothing():
    breaker = opened()
    for _ in range(100):
        assert not breaker.failed(object(), 0.5)
    assert breaker.opens_in(0.5) == OPEN_S - 0.5


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_it_always_opens_again(seed):
    print("seed", seed)
    rng, breaker, now_s, out = random.Random(seed), Breaker(), 0.0, []
    for _ in range(2000):
        now_s += rng.expovariate(1)
        if breaker.opens_in(now_s) == 0:
            out.append(object())
            breaker.sent(out[-1])
        if out:
            attempt = out.pop(rng.randrange(len(out)))
            match rng.randrange(3):
                case 0:
                    breaker.succeeded(attempt)
                case 1:
                    breaker.failed(attempt, now_s)
            breaker.ended(attempt)
    for attempt in out:
        breaker.ended(attempt)
    assert breaker.opens_in(now_s + OPEN_MAX_S) == 0
