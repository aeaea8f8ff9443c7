"""A level as all of its processes know it: what counts of it, who sends what of it."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest

from runner.load.arrivals import Replay
from runner.load.spec import MIN_GAP_S, LevelSpec, describe_arrival


def level(kind="open", value=10.0, **changes):
    defaults: dict[str, Any] = {"arrivals": "constant", "max_in_flight": 10}
    return LevelSpec(kind, value, "x", **(defaults | changes))


def times(spec, trace=None):
    return list(spec.schedule(trace, 0, 1))


def test_a_level_is_the_same_behind_a_pipe():
    spec = level(requests=3, duration_s=4.0, seed=5, ends_s=1.5)
    assert LevelSpec(**orjson.loads(orjson.dumps(spec.to_dict()))) == spec


def test_warm_up_and_cool_down_are_left_out():
    assert level(duration_s=30.0, warmup_s=3.0, cooldown_s=2.0).window == (3.0, 28.0)


def test_without_a_time_everything_counts_to_the_last_answer():
    assert level("closed", requests=5).window == (0.0, math.inf)


def test_an_open_level_of_so_many_requests_ends_where_the_next_one_would_be_due():
    spec = level(requests=20).dated(None)
    assert spec.ends_s == pytest.approx(2.0)
    assert spec.window == (0.0, pytest.approx(2.0))
    assert all(when in spec.window for _, when in times(spec))


def test_a_poisson_level_of_so_many_requests_holds_all_of_them_and_no_more():
    spec = level(arrivals="poisson", requests=50, seed=7).dated(None)
    due = [when for _, when in times(spec)]
    assert len(due) == 50
    assert due[-1] < spec.ends_s


def test_the_end_of_a_trace_is_a_mean_gap_behind_its_last_request():
    spec = level(value=1.0, arrivals="trace").dated(Replay([0.0, 1.0, 4.0]))
    assert spec.ends_s == pytest.approx(6.0)


def test_a_trace_of_one_moment_has_a_length():
    assert level(value=1.0, arrivals="trace").dated(Replay([0.0, 0.0])).ends_s == MIN_GAP_S


def test_a_closed_level_has_no_such_end():
    spec = level("closed", requests=5)
    assert spec.dated(None) == spec


@pytest.mark.parametrize("arrivals", ["constant", "poisson", "gamma:0.5"])
def test_the_parts_of_all_processes_are_the_whole_schedule(arrivals):
    spec = level(arrivals=arrivals, requests=100, seed=3)
    parts = [list(spec.schedule(None, index, 3)) for index in range(3)]
    assert sorted(each for part in parts for each in part) == times(spec)


def test_a_repeat_has_a_schedule_of_its_own_and_the_same_seed_the_same_one():
    first, again, repeat = (level(arrivals="poisson", requests=5, seed=1, repeat=n) for n in (0, 0, 1))
    assert times(first) == times(again) != times(repeat)


@pytest.mark.parametrize(("value", "of"), [(1, 3), (7, 3), (8, 2)])
def test_lanes_and_room_are_shared_out_whole(value, of):
    spec = level("closed", float(value), max_in_flight=value)
    assert sum(spec.lanes(index, of) for index in range(of)) == value
    assert sum(spec.room(index, of) for index in range(of)) == value


def test_the_arrivals_of_several_rates_name_none():
    assert describe_arrival(level(), None, several=True) == {"kind": "constant"}
    assert describe_arrival(level(), None, several=False) == {"kind": "constant", "rate": 10.0}
    assert describe_arrival(level("closed"), None, several=False) == {"kind": "closed"}
