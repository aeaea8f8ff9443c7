from __future__ import annotations

import math

import pytest

from runner.capacity import MAX_ROUNDS, Capacity
from runner.concurrency import CUT, HOLD_S, SOON_S, AdaptiveConcurrency, FixedConcurrency


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
            chunks = min(in_flight * self.pace, self.capacity) * 0.01
            self.concurrency.received(chunks, int(in_flight), self.now)
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


def test_once_it_was_cut_twice_it_grows_by_a_twentieth_a_round():
    concurrency = AdaptiveConcurrency(start=100, maximum=1000)
    concurrency.throttled(0.0)
    concurrency.throttled(SOON_S)
    assert concurrency.limit == 100 * CUT * CUT
    throttle_free_rounds(concurrency, 1)
    assert concurrency.limit == 67
    throttle_free_rounds(concurrency, 70)
    assert concurrency.limit == 1000


@pytest.mark.parametrize("apart_s", [None, SOON_S + 1])
def test_episodes_that_are_seldom_do_not_end_the_slow_start(apart_s):
    """What was refused is mostly the rate; by twentieths answers of half a minute would take hours."""
    server = Server(AdaptiveConcurrency(start=100))
    server.concurrency.throttled(0.0)
    assert server.concurrency.limit == 80
    if apart_s is not None:
        server.now = apart_s
        server.concurrency.throttled(apart_s)
        assert server.concurrency.limit == 64
    assert server.run(20) >= 500


def test_chunks_alone_make_a_round_where_answers_last_for_minutes():
    concurrency = AdaptiveConcurrency(start=8, maximum=1000)
    now, begun = 0.0, 0
    while concurrency.limit < 1000 and now < 60:
        opened = concurrency.limit
        for in_flight in range(begun + 1, opened + 1):  # one by one, and none has ended yet
            concurrency.answered(in_flight, now)
        begun = opened
        while concurrency.limit == opened and now < 60:
            now += 0.1
            concurrency.received(5 * opened, opened, now)
    assert concurrency.limit == 1000
    assert now < 30


def test_what_was_sent_before_a_cut_does_not_undo_it():
    concurrency = AdaptiveConcurrency(start=100)
    for now in (0.0, 1.0):
        concurrency.throttled(now)
    for _ in range(1000):
        concurrency.answered(100, 2.0)
        concurrency.received(100, 100, 2.0)
    assert concurrency.limit == 64


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


def test_cuts_that_were_no_fault_of_ours_are_taken_back():
    concurrency = AdaptiveConcurrency(start=100)
    for now in (0.0, 1.0, 2.0):
        concurrency.throttled(now)
    assert concurrency.limit == 51
    concurrency.acquitted()
    assert concurrency.limit == 100


# ── What an overloaded server bears ──────────────────────────────────────────────────────────────────────────────────


def full(at: int) -> Capacity:
    """That of a server which refuses many while so many are under way."""
    capacity = Capacity()
    assert not capacity.refused(at, new=True)
    capacity.begin()
    return capacity


def test_nothing_bounds_a_server_that_did_not_refuse_many():
    capacity = Capacity()
    assert not capacity.refused(10, new=True)
    assert capacity.limit == math.inf


def test_an_overloaded_server_bears_what_was_under_way_when_it_refused():
    capacity = full(10)
    assert capacity.limit == 10
    assert capacity.refused(7, new=False)  # the other refusals of that time, of requests that were sent before
    assert capacity.limit == 7


def test_places_are_added_round_by_round_and_only_while_they_are_in_use():
    capacity = full(8)
    for _ in range(100):
        capacity.accepted(3)
    assert capacity.limit == 8
    for _ in range(8):
        capacity.accepted(8)
    assert capacity.limit == 10


def test_a_place_that_is_refused_again_and_again_is_tried_ever_less_often():
    capacity, tries = full(8), []
    for _ in range(9):
        answers = 0
        while capacity.limit == 8:
            capacity.accepted(8)
            answers += 1
        tries.append(answers // 8)
        assert capacity.refused(8, new=True)
    assert tries == [1, 2, 4, 8, 16, 32, MAX_ROUNDS, MAX_ROUNDS, MAX_ROUNDS]


@pytest.mark.parametrize("under_way", [0, 3])
def test_a_server_that_refuses_when_it_has_nothing_of_ours_is_not_filled_by_us(under_way):
    capacity = full(10)
    assert not capacity.refused(under_way, new=True)
    assert capacity.limit == (math.inf if under_way == 0 else 10)
