from __future__ import annotations

import pytest

from runner.concurrency import CUT, HOLD_S, AdaptiveConcurrency, FixedConcurrency


class Server:
    """Streams at `pace` chunks a second each, up to `capacity` chunks a second over all; answers begin all the time."""

    def __init__(self, concurrency, capacity=float("inf"), pace=50.0):
        self.concurrency, self.capacity, self.pace = concurrency, capacity, pace
        self.now = 0.0
        self.limits = []

    def run(self, seconds, use=1.0):
        for _ in range(round(seconds * 100)):
            self.now += 0.01
            in_flight = self.concurrency.limit * use
            self.concurrency.work += min(in_flight * self.pace, self.capacity) * 0.01
            for _ in range(max(1, int(in_flight / 100))):  # an answer lasts a second
                self.concurrency.answered(int(in_flight), self.now)
            self.limits.append(self.concurrency.limit)
        return self.concurrency.limit


def test_slow_start_doubles_up_to_the_maximum_where_the_server_bears_it():
    server = Server(AdaptiveConcurrency(start=8, maximum=100))
    server.run(30)
    assert sorted(set(server.limits)) == [8, 16, 32, 64, 100]


def test_it_stops_growing_when_throughput_no_longer_rises():
    server = Server(AdaptiveConcurrency(start=8), capacity=64 * 50.0)
    server.run(120)
    # 64 streams use it up; a quarter more is tried now and then and taken back.
    assert max(server.limits) <= 128
    assert 64 <= server.run(60) <= 80
    assert server.limits.count(128) < 300


def test_a_server_that_recovers_is_used_again():
    server = Server(AdaptiveConcurrency(start=8), capacity=16 * 50.0)
    assert server.run(60) <= 20
    server.capacity = float("inf")
    assert server.run(20 * HOLD_S) >= 200


def test_a_server_that_gets_worse_does_not_freeze_it():
    server = Server(AdaptiveConcurrency(start=8), capacity=1_000.0)
    server.run(60)
    server.capacity = 1.0
    assert server.run(600) >= 1


def throttle_free_rounds(concurrency, count):
    for _ in range(count):
        for _ in range(concurrency.limit):
            concurrency.answered(concurrency.limit, 0.0)


def test_after_a_cut_it_grows_by_a_twentieth_a_round():
    concurrency = AdaptiveConcurrency(start=100, maximum=1000)
    concurrency.throttled(0.0)
    assert concurrency.limit == 100 * CUT
    throttle_free_rounds(concurrency, 1)
    assert concurrency.limit == 84
    throttle_free_rounds(concurrency, 60)
    assert concurrency.limit == 1000


def test_it_never_falls_below_one_and_always_grows_again():
    concurrency = AdaptiveConcurrency(start=8)
    for _ in range(100):
        concurrency.throttled(0.0)
    assert concurrency.limit == 1
    throttle_free_rounds(concurrency, 1)
    assert concurrency.limit == 2


@pytest.mark.parametrize("use", [0.1, 0.5, 0.7])
def test_what_is_not_in_use_earns_no_growth(use):
    server = Server(AdaptiveConcurrency(start=10))
    assert server.run(60, use) == 10


def test_a_fixed_one_stays():
    concurrency = FixedConcurrency(5)
    concurrency.throttled(0.0)
    throttle_free_rounds(concurrency, 10)
    assert concurrency.limit == 5
