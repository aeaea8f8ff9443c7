from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.load.quantiles import (
    HISTOGRAM_BINS,
    PERCENTILES,
    Distribution,
    at_rank,
    histogram,
    interval,
    over_repeats,
    student_t,
)
from runner.sketch import Sketch, needed

VALUES = st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=100)


def filled(values, failures=0):
    made = Distribution()
    for value in values:
        made.add(value)
    for _ in range(failures):
        made.fail()
    return made


def sketched(values):
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    return sketch


@pytest.mark.parametrize(("name", "n"), [("p50", 4), ("p90", 35), ("p95", 73), ("p99", 381), ("p99_9", 3838)])
def test_a_percentile_is_shown_from_the_count_on_that_supports_it(name, n):
    assert needed(PERCENTILES[name]) == n
    assert filled([1.0] * (n - 1)).quantiles()[name] is None
    assert filled([1.0] * n).quantiles()[name] == 1.0


def test_at_that_count_the_largest_value_is_beyond_the_percentile_nearly_always():
    # Of n values the largest is below the q-quantile with a probability of q ** n.
    assert all(q ** needed(q) < 0.07 for q in PERCENTILES.values())


@given(st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=100), st.data())
def test_a_rank_gives_the_value_that_stands_there(values, data):
    rank = data.draw(st.integers(0, len(values) - 1))
    assert at_rank(sketched(values), rank) == pytest.approx(sorted(values)[rank], rel=0.0101)
    assert at_rank(sketched(values), len(values)) is None


def test_mean_and_deviation_are_exact():
    rng = random.Random(3)
    values = [rng.uniform(0.19, 0.21) for _ in range(500)]
    found = filled(values).quantiles()
    assert found["mean"] == pytest.approx(statistics.fmean(values), rel=1e-12)
    assert found["stddev"] == pytest.approx(statistics.stdev(values), rel=1e-9)
    assert (found["min"], found["max"]) == (min(values), max(values))


@given(VALUES, VALUES)
def test_merging_is_the_same_as_adding_each(left, right):
    merged, whole = filled(left, 1), filled(left + right, 3)
    merged.merge(filled(right, 2))
    for summary in ("quantiles", "quantiles_with_failures"):
        ours, theirs = getattr(merged, summary)(), getattr(whole, summary)()
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            # Deviations of values whose sizes are far apart lose digits; nothing else does.
            assert ours[name] == (value if value is None else pytest.approx(value, rel=1e-6, abs=1e-6)), name


@given(VALUES, VALUES)
def test_adding_a_sketch_gives_the_deviation_within_a_percent_of_the_size(left, right):
    made = filled(left)
    made.add_sketch(sketched(right))
    both = left + right
    found = made.quantiles()
    assert found["n"] == len(both)
    assert found["mean"] == pytest.approx(statistics.fmean(both))
    assert found["stddev"] == pytest.approx(statistics.stdev(both), abs=0.0101 * math.sqrt(2) * max(both))


def test_a_percentile_is_the_nearest_rank():
    found = filled(range(1, 1_000)).quantiles()
    assert found["p50"] == pytest.approx(500, rel=0.0101)
    assert filled([1, 2, 4, 8, 16]).quantiles()["p50"] == pytest.approx(4, rel=0.0101)


def test_the_deviation_of_sketches_survives_a_merge():
    gaps = Distribution()
    gaps.add_sketch(sketched([1, 3] * 50))
    made = filled([2.0] * 100)
    made.merge(gaps)
    assert made.quantiles()["stddev"] == pytest.approx(statistics.stdev([1, 3] * 50 + [2] * 100), rel=0.02)


def test_equal_gaps_have_no_deviation():
    made = Distribution()
    made.add_sketch(sketched([0.02] * 50))
    made.add_sketch(Sketch())
    assert made.quantiles()["stddev"] == pytest.approx(0, abs=1e-9)


def test_failures_stand_at_infinity_and_only_where_asked():
    made = filled([0.1] * 96, failures=4)
    assert made.quantiles()["p95"] == pytest.approx(0.1)
    found = made.quantiles_with_failures()
    assert (found["n"], found["mean"], found["max"], found["stddev"]) == (100, math.inf, math.inf, None)
    assert found["p95"] == pytest.approx(0.1)
    assert filled([0.1] * 94, failures=6).quantiles_with_failures()["p95"] == math.inf


def test_only_failures_are_infinite_throughout():
    found = filled([], failures=10).quantiles_with_failures()
    assert (found["min"], found["p50"], found["p90"]) == (math.inf, math.inf, None)


def test_nothing_is_known_of_nothing():
    found = Distribution().quantiles()
    assert found.pop("n") == 0
    assert set(found.values()) == {None}
    merged = Distribution()
    merged.merge(Distribution())
    assert merged.quantile(0.5) is None


@given(st.lists(st.floats(allow_nan=True), max_size=30))
def test_no_float_breaks_it(values):
    found = filled(values).quantiles()
    assert found["n"] == len(values)
    assert all(value is None or 0 <= value < math.inf for value in found.values())


@given(VALUES, st.integers(0, 5))
def test_it_survives_json(values, failures):
    made = filled(values, failures)
    assert Distribution.from_dict(made.to_dict()).quantiles_with_failures() == made.quantiles_with_failures()


@given(st.lists(st.floats(1e-9, 1e6) | st.just(0.0), max_size=200))
def test_a_histogram_holds_every_value_in_the_bin_below_its_edge(values):
    bins = histogram(sketched(values))
    assert sum(count for _, count in bins) == len(values)
    assert len(bins) <= HISTOGRAM_BINS + 1
    edges = [edge for edge, _ in bins]
    assert edges == sorted(set(edges))
    for edge in edges:  # a value beside an edge, nearer than floats can tell powers apart, may be on either side
        counted = sum(count for other, count in bins if other <= edge)
        low, high = (sum(value <= edge * (1 + by) for value in values) for by in (-1e-8, 1e-8))
        assert low <= counted <= high


def test_two_far_values_still_make_few_bins():
    assert len(histogram(sketched([1e-9, 1e9]))) <= HISTOGRAM_BINS


# ── Over repeats ─────────────────────────────────────────────────────────────────────────────────────────────────


def t_cdf(t, freedom):
    """Student's distribution for whole degrees of freedom: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    theta = math.atan(t / math.sqrt(freedom))
    cos2, term, total = math.cos(theta) ** 2, 1.0, 1.0
    if freedom % 2 == 0:
        for k in range(1, freedom // 2):
            term *= (2 * k - 1) / (2 * k) * cos2
            total += term
        between = math.sin(theta) * total
    else:
        for k in range(1, (freedom - 1) // 2):
            term *= 2 * k / (2 * k + 1) * cos2
            total += term
        rest = math.sin(theta) * math.cos(theta) * total if freedom > 1 else 0.0
        between = 2 / math.pi * (theta + rest)
    return 0.5 + between / 2


@pytest.mark.parametrize("freedom", [*range(1, 41), 100, 1000])
def test_students_t_is_the_one_of_the_books(freedom):
    assert t_cdf(student_t(freedom), freedom) == pytest.approx(0.975, abs=3e-5)


def test_an_interval_holds_the_true_mean_in_95_of_100_cases():
    seed = 11
    print("seed", seed)
    rng = random.Random(seed)
    hits = 0
    for _ in range(2_000):
        found = interval([rng.gauss(5, 1) for _ in range(4)])
        assert found is not None
        hits += found.low <= 5 <= found.high
    assert 1_860 <= hits <= 1_940


@pytest.mark.parametrize("true", [0.1002, 0.1443, 0.2509, 3.377])
def test_percentiles_of_sketches_hold_the_true_one_in_95_of_100_cases_though_the_repeats_are_of_one_bucket(true):
    seed = 12
    print("seed", seed)
    rng = random.Random(seed)
    hits = 0
    for _ in range(200):
        repeats = [{"ttft": filled([true * rng.gauss(1, 0.001)] * 4).quantiles()} for _ in range(3)]
        found = over_repeats(repeats)["ttft_p50"]
        hits += found.low <= true <= found.high
    assert hits >= 190


@pytest.mark.parametrize("values", [[], [1.0], [1.0, None], [1.0, math.inf], [None, 1.0, 1.0]])
def test_nothing_is_said_of_one_repeat_or_where_one_is_unknown(values):
    assert interval(values) is None


def test_repeats_are_summed_up_for_what_all_of_them_support():
    one: dict = {"ttft": {"n": 9, "mean": 1.0, "p50": 1.0, "p99": None}, "icl": {"mean": None}}
    two: dict = {"ttft": {"n": 9, "mean": 3.0, "p50": 1.0, "p99": 2.0}, "icl": {"mean": 1.0}}
    found = over_repeats([one, two])
    assert set(found) == {"ttft_mean", "ttft_p50"}
    assert found["ttft_p50"] == (1.0, 0.99, 1.01)
    assert found["ttft_mean"].mean == 2.0
    assert found["ttft_mean"].high == pytest.approx(2 + 12.706)
    assert over_repeats([]) == {}
