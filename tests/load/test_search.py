from __future__ import annotations

import math
import random
from heapq import heappop, heappush
from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.load.arrivals import parse_arrivals
from runner.load.results import Search
from runner.load.search import Plan, Try, next_value, outcome, report


def goodput_at(capacity):
    """A server that keeps the SLO up to its capacity and then less and less."""
    return lambda value: 1.0 if value <= capacity else max(0.0, 1 - 2 * (value / capacity - 1))


def run(plan, server, bound_from=math.inf, requests=1_000):
    """Searches to the end."""
    tried: list[Try] = []
    while (value := next_value(plan, tried)) is not None:
        bound = value >= bound_from
        tried.append(Try(value, server(value), "client-bound" if bound else "ok", requests))
        assert len(tried) <= plan.max_tries
    return tried


@given(st.floats(0.5, 5e4), st.floats(0.5, 5e4))
def test_the_highest_rate_is_found_within_the_resolution(capacity, start):
    plan = Plan(start)
    tried = run(plan, goodput_at(capacity))
    found = outcome(plan, tried)
    if found.best is None:
        assert capacity < plan.minimum * 1.01
        assert found.limited_by == "nothing kept"
        return
    # Up to goodput 0.99 the server may be beyond its capacity by half a percent.
    assert capacity * 0.95 * 0.999 <= found.best <= capacity * 1.0051
    assert found.limited_by == "slo"
    assert found.agreed
    assert len(tried) <= 30


@given(st.integers(1, 5_000), st.integers(1, 500))
def test_the_highest_concurrency_is_found_to_the_one_or_within_the_resolution(capacity, start):
    plan = Plan(float(start), whole=True)
    found = outcome(plan, run(plan, lambda value: float(value <= capacity)))
    assert found.best is not None
    assert found.best == int(found.best)
    assert found.best <= capacity <= max(found.best, found.best * 1.06)


def test_a_server_that_keeps_nothing_at_all_ends_the_search_at_the_lowest_value():
    for plan, lowest in ((Plan(20), 0.02), (Plan(16, whole=True), 1)):
        tried = run(plan, lambda _: 0.0)
        found = outcome(plan, tried)
        assert (found.best, found.limited_by) == (None, "nothing kept")
        assert tried[-1].value == pytest.approx(lowest)
        assert f"{tried[-1].value:g} was the lowest" in found.reason


def test_a_level_so_low_that_no_request_was_due_ends_a_search_that_kept_nothing():
    plan = Plan(4)
    tried = run(plan, lambda value: 0.0 if value > 0.3 else None)
    assert [one.value for one in tried] == [4, 2, 1, 0.5, 0.25]
    found = outcome(plan, tried)
    assert (found.best, found.limited_by) == (None, "nothing kept")
    assert "0.25 was the lowest; no request was due at it: longer levels may tell more" in found.reason


@pytest.mark.parametrize("start", [1, 10, 500])
@pytest.mark.parametrize(("slots", "service_s"), [(5, 0.1), (8, 0.25), (32, 0.8), (1, 0.05), (100, 1.3)])
def test_the_capacity_of_a_server_with_slots_and_a_queue_is_found_within_5_percent(slots, service_s, start):
    def server(per_s):
        free = [0.0] * slots
        kept = due = 0
        for when in takewhile(lambda t: t < 30.0, parse_arrivals("constant", rate=per_s).times(random.Random(0))):
            end = max(when, heappop(free)) + service_s
            heappush(free, end)
            due += when >= 3.0
            kept += when >= 3.0 and end - when <= 1.5 * service_s
        return kept / due if due else None

    plan = Plan(start)
    tried = run(plan, server)
    assert outcome(plan, tried).best == pytest.approx(slots / service_s, rel=0.05)
    assert len(tried) <= 15


def test_a_server_that_keeps_everything_ends_the_search_at_the_maximum():
    plan = Plan(3, maximum=100)
    tried = run(plan, lambda _: 1.0)
    assert [one.value for one in tried] == [3, 6, 12, 24, 48, 96, 100, 100]
    assert outcome(plan, tried)[:2] == (100, "maximum")


# ── The client's limit ───────────────────────────────────────────────────────────────────────────────────────────


@given(st.floats(1, 1e4), st.floats(1, 1e4), st.booleans())
def test_a_client_bound_level_is_never_evidence_and_caps_the_search(capacity, bound_from, flattering):
    # What a bound client reports may look as good or as bad as it likes.
    plan = Plan(10.0)
    tried = run(plan, lambda v: goodput_at(capacity)(v) if v < bound_from else float(flattering), bound_from)
    found = outcome(plan, tried)
    true_limit = min(capacity, bound_from)
    if found.best is not None:
        assert true_limit * 0.94 <= found.best < bound_from
        assert found.best <= capacity * 1.0051
    if bound_from < capacity * 0.9:
        assert found.limited_by == "client"
        assert "limited by the client" in found.reason
    if bound_from > capacity * 1.2 and found.best is not None:
        assert found.limited_by == "slo"


def test_a_client_that_is_bound_at_every_value_finds_nothing_and_says_why():
    plan = Plan(16, whole=True)
    found = outcome(plan, run(plan, lambda _: 1.0, bound_from=0))
    assert (found.best, found.limited_by) == (None, "client")
    assert "limited by the client: at 1 it could not keep up" in found.reason


def test_a_bound_level_below_a_sound_one_was_a_hiccup():
    plan = Plan(10)
    tried = [Try(10, 1.0, "client-bound"), Try(5, 1.0, "ok"), Try(20, 1.0, "ok"), Try(40, 0.2, "ok")]
    assert outcome(plan, tried).best == 20
    assert next_value(plan, tried) == 30


def test_a_bound_level_below_a_sound_miss_is_tried_again_and_caps_only_if_it_is_bound_again():
    plan = Plan(start=16, confirmations=0)
    tried = [Try(24, 1.0, "ok"), Try(26, 0.4, "ok"), Try(25, 1.0, "client-bound")]
    assert next_value(plan, tried) == 25
    assert outcome(plan, tried)[:2] == (24, None)
    assert outcome(plan, [*tried, Try(25, 0.9, "ok")]).best == 24
    again = outcome(plan, [*tried, Try(25, 1.0, "client-bound")])
    assert (again.best, again.limited_by) == (24, "client")


def test_one_sound_repeat_is_enough_to_judge_a_value():
    plan = Plan(10, repeats=2)
    assert outcome(plan, [Try(10, 0.0, "client-bound"), Try(10, 1.0, "ok")]).best == 10


# ── Noise ────────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(5, 500), st.integers(1, 3), st.sampled_from([0.0, 0.01, 0.1, 1.0]))
def test_however_noisy_the_server_the_search_ends_and_its_best_has_no_miss_at_or_below_it(
    seed, capacity, repeats, noise
):
    rng = random.Random(seed)
    plan = Plan(10, repeats=repeats, max_tries=40)

    def server(value):
        return min(1.0, max(0.0, goodput_at(capacity)(value) + rng.uniform(-noise, noise)))

    tried = run(plan, server)
    found = outcome(plan, tried)
    by_value: dict[float, list[float]] = {}
    for one in tried:
        by_value.setdefault(one.value, []).append(one.goodput or 0.0)
    missed = [value for value, goodputs in by_value.items() if sum(goodputs) / len(goodputs) < plan.goal - 1e-9]
    assert found.best is None or all(value > found.best for value in missed)
    assert len(tried) <= 40


def test_a_lucky_pass_does_not_survive_its_confirmation():
    answers = {40: [0.0], 35: [0.0], 30: [1.0, 0.5]}
    plan = Plan(10, resolution=0.15)
    tried = run(plan, lambda value: answers.get(value, [1.0] * 9).pop(0))
    assert [one.value for one in tried] == [10, 20, 40, 30, 35, 30, 25, 27.5, 27.5]
    assert outcome(plan, tried).best == 27.5


def test_a_value_kept_above_one_that_was_not_is_told_and_not_believed():
    plan = Plan(10)
    tried = [Try(10, 1.0, "ok", 500), Try(20, 0.5, "ok", 500), Try(40, 1.0, "ok", 500)]
    found = outcome(plan, tried)
    assert (found.best, found.agreed) == (10, False)
    assert "the tries don't agree" in found.reason
    assert next_value(plan, tried) == 15


def test_repeats_are_judged_by_their_mean():
    plan = Plan(10, repeats=3)
    assert outcome(plan, [Try(10, g, "ok") for g in (1.0, 1.0, 0.98)]).best == 10
    assert outcome(plan, [Try(10, g, "ok") for g in (1.0, 1.0, 0.96)]).best is None
    assert [one.value for one in run(plan, goodput_at(12))][:4] == [10, 10, 10, 20]


# ── Ending and telling ───────────────────────────────────────────────────────────────────────────────────────────


def test_an_interrupted_search_goes_on_where_it_was():
    plan = Plan(7, repeats=2)
    whole = run(plan, goodput_at(333))
    for n in range(len(whole)):
        assert next_value(plan, whole[:n]) == whole[n].value


def test_the_bound_on_tries_ends_it_and_is_told():
    plan = Plan(1, max_tries=5)
    tried = run(plan, goodput_at(1000))
    assert outcome(plan, tried)[:2] == (16, "tries")
    assert "ended after 5 levels" in outcome(plan, tried).reason


def test_too_few_requests_for_the_goal_are_told():
    plan = Plan(10)
    few, many = run(plan, goodput_at(100), requests=40), run(plan, goodput_at(100), requests=400)
    assert "measured on 80 requests, and 0.99 takes 381 to tell" in outcome(plan, few).reason
    assert "takes" not in outcome(plan, many).reason


def test_a_level_in_which_nothing_was_due_kept_nothing():
    assert outcome(Plan(10), [Try(10, None, "ok")]).best is None


def test_before_the_first_try_nothing_is_known():
    assert next_value(Plan(10), []) == 10
    assert outcome(Plan(10), []).best is None


def test_it_is_written_as_load_json_has_it():
    plan = Plan(10, maximum=20, resolution=0.5, confirmations=0)
    tried = [Try(10, 1.0, "suspect", 900), Try(20, 1.0, "client-bound", 900)]
    found = report(plan, tried, {"ttft": 0.5})
    assert found["limited_by"] == "client"
    made = Search.model_validate(found, strict=False)
    assert made.best == 10
    assert [(one.value, one.kept, one.verdict) for one in made.tried] == [
        (10, True, "suspect"),
        (20, False, "client-bound"),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        *({"start": 0}, {"start": math.nan}, {"start": 5, "maximum": 4}, {"start": 1, "goal": 0}),
        *({"start": 1, "goal": 1.1}, {"start": 1, "resolution": 0}, {"start": 1, "repeats": 0}),
        *({"start": 1.5, "whole": True}, {"start": 1, "maximum": 4.5, "whole": True}, {"start": 0.5, "whole": True}),
        *({"start": 1, "confirmations": -1}, {"start": 1, "max_tries": 0}),
    ],
)
def test_what_can_not_be_searched_is_refused(wrong):
    with pytest.raises(ValueError, match=r"not a plan|whole number"):
        Plan(**wrong)


def test_a_search_that_has_not_ended_does_not_say_what_limits_it():
    plan = Plan(8, maximum=60)
    found = outcome(plan, [Try(8, 1.0, "ok", 1_000)])
    assert (found.best, found.limited_by) == (8, None)
    assert found.reason == "8 kept the SLO for 0.99 of the requests; the search has not ended"
    found = outcome(plan, [Try(8, 1.0, "ok", 1_000), Try(16, 0.5, "ok", 1_000)])
    assert (found.best, found.limited_by) == (8, None)
    assert found.reason == "8 kept the SLO for 0.99 of the requests; the search has not ended"
    found = outcome(plan, [Try(8, 0.5, "ok", 1_000)])
    assert found.reason == "nothing tried kept the SLO for 0.99 of the requests; the search has not ended"
