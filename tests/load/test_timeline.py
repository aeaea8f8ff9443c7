from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.load.timeline import MAX_STEPS, Timeline, overlap
from tests.load.answers import at, failed

REQUESTS = st.lists(st.tuples(st.floats(0, 5_000), st.floats(0.01, 900), st.booleans()), max_size=30)


def filled(requests):
    timeline = Timeline()
    for sent, length, ok in requests:
        timeline.add(at(sent, length=length, ttft=length / 2) if ok else failed(sent))
    return timeline


def test_what_takes_time_is_spread_over_the_steps_it_touches():
    timeline = Timeline()
    timeline.add(at(0.5, length=2.0, ttft=1.0, output_tokens=100))
    entries = timeline.entries(3)
    assert [step.busy_s for step in timeline.steps] == pytest.approx([0.5, 1.0, 0.5])
    assert [entry["output_tokens"] for entry in entries] == [0, 50, 50]
    assert [entry["sent"] for entry in entries] == [1, 0, 0]
    assert [entry["succeeded"] for entry in entries] == [0, 0, 1]
    assert [entry["ttft_p50"] for entry in entries] == [None, None, None]  # of one request there is no median
    for _ in range(3):
        timeline.add(at(0.5, length=2.0, ttft=1.0))
    assert [entry["ttft_p50"] for entry in timeline.entries(3)] == [None, pytest.approx(1.0), None]
    assert [entry["t"] for entry in entries] == [0, 1, 2]


def test_failures_and_429s_are_counted_apart_when_they_end():
    timeline = Timeline()
    timeline.add(failed(0.995))
    timeline.add(failed(2, "rate_limited"))
    entries = timeline.entries(3)
    assert [(e["failed"], e["throttled"]) for e in entries] == [(0, 0), (1, 0), (0, 1)]


def test_the_clients_lag_stands_beside():
    timeline = Timeline()
    for t_s, lag_s in ((0.1, 0.001), (0.2, 0.5), (1.3, 0.01)):
        timeline.lag(t_s, lag_s)
    assert [entry["lag_max_s"] for entry in timeline.entries(2)] == [0.5, 0.01]


@given(REQUESTS)
def test_steps_are_bounded_and_lose_nothing_when_they_grow(requests):
    timeline = filled(requests)
    assert len(timeline.steps) <= MAX_STEPS
    assert sum(step.sent for step in timeline.steps) == len(requests)
    assert sum(step.succeeded + step.failed for step in timeline.steps) == len(requests)
    busy = sum(length if ok else 0.01 for _, length, ok in requests)
    assert sum(step.busy_s for step in timeline.steps) == pytest.approx(busy)
    assert sum(step.output_tokens for step in timeline.steps) == pytest.approx(11 * sum(ok for *_, ok in requests))


@settings(max_examples=30)
@given(REQUESTS, REQUESTS)
def test_merging_is_the_same_as_adding_each(left, right):
    merged, whole = filled(left), filled(left + right)
    other = filled(right)
    before = other.to_dict()
    merged.merge(other)
    assert other.to_dict() == before
    assert merged.step_s == whole.step_s
    for ours, theirs in zip(merged.to_dict()["steps"], whole.to_dict()["steps"], strict=True):
        assert {**ours, "ttft": 0} == pytest.approx({**theirs, "ttft": 0})
        assert ours["ttft"]["buckets"] == theirs["ttft"]["buckets"]


@settings(max_examples=20)
@given(REQUESTS)
def test_it_survives_json(requests):
    timeline = filled(requests)
    assert Timeline.from_dict(timeline.to_dict()).to_dict() == timeline.to_dict()


def test_the_steady_stretch_of_a_closed_loop_leaves_out_filling_and_draining():
    timeline = Timeline()
    for slot in range(10):
        for turn in range(4):  # slot by slot they begin: a ramp of 5 s, and a drain as long
            timeline.add(at(slot / 2 + turn * 5, length=5, output_tokens=50))
    steady = timeline.steady(24.5)
    assert steady is not None
    assert (steady.from_s, steady.to_s) == (4, 20)
    assert steady.output_tokens_per_s == pytest.approx(100, rel=0.06)
    assert steady.requests_per_s == pytest.approx(2, rel=0.1)


def test_the_steady_stretch_of_an_open_loop_spans_its_ups_and_downs():
    rng = random.Random(5)
    timeline, t = Timeline(), 0.0
    while t < 60:
        timeline.add(at(t, length=2.0))
        t += rng.expovariate(50)
    steady = timeline.steady(62)
    assert steady is not None
    assert steady.to_s - steady.from_s > 20
    assert steady.requests_per_s == pytest.approx(50, rel=0.1)


def test_a_level_of_two_seconds_has_no_steady_stretch():
    timeline = Timeline()
    timeline.add(at(0, length=1.9))
    assert timeline.steady(1.9) is None
    assert Timeline().steady(0) is None


def test_a_part_of_a_step_at_the_end_is_a_mean_of_its_part():
    timeline = Timeline()
    for _ in range(8):
        timeline.add(at(0, length=3.5))
    assert timeline.in_flight(3.5) == pytest.approx([8, 8, 8, 8])


@pytest.mark.parametrize(("start", "end", "part"), [(0, 1, 0), (1, 3, 1), (2, 3, 1), (0, 9, 2), (4, 9, 0)])
def test_an_overlap_is_what_both_have(start, end, part):
    assert overlap(start, end, 2, 4) == part
