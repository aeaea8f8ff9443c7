from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.sketch import LARGEST_S, MAX_BUCKETS, RELATIVE_ERROR, Sketch

VALUES = st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=200)


def filled(values):
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    return sketch


@given(VALUES, st.floats(0, 1))
def test_a_quantile_is_within_one_percent_of_the_value_at_its_rank(values, q):
    exact = sorted(values)[math.floor(q * (len(values) - 1))]
    assert filled(values).quantile(q) == pytest.approx(exact, rel=RELATIVE_ERROR * 1.000001)


@given(VALUES, VALUES)
def test_merging_is_the_same_as_adding_each(left, right):
    merged = filled(left)
    merged.merge(filled(right))
    whole = filled(left + right)
    assert merged.count == whole.count
    assert (merged.min, merged.max) == (whole.min, whole.max)
    assert all(merged.quantile(q / 10) == whole.quantile(q / 10) for q in range(11))


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 100), max_size=50))
def test_adding_all_is_the_same_as_adding_each(values):
    together, each = Sketch(), filled(values)
    together.add_all(values)
    left, right = together.to_dict(), each.to_dict()
    assert left.pop("total") == pytest.approx(right.pop("total"))
    assert left == right


@given(VALUES)
def test_it_survives_json(values):
    sketch = filled(values)
    again = Sketch.from_dict(sketch.to_dict())
    assert again.to_dict() == sketch.to_dict()


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=50))
def test_no_float_breaks_it(values):
    sketch = filled(values)
    assert sketch.count == len(values)
    for q in (0.0, 0.5, 1.0):
        found = sketch.quantile(q)
        assert (found is None) == (not values)
        assert found is None or 0 <= found <= LARGEST_S


def test_an_empty_one_knows_nothing():
    assert (Sketch().count, Sketch().min, Sketch().max, Sketch().quantile(0.5)) == (0, None, None, None)


def test_memory_is_bounded_whatever_comes():
    sketch = Sketch()
    for exponent in range(-400, 400):
        sketch.add(10.0 ** min(exponent, 308))
    for i in range(20_000):
        sketch.add(1e-9 * 1.002**i if i < 19_000 else float(i))
    assert len(sketch.to_dict()["buckets"]) <= MAX_BUCKETS


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_a_quantile_outside_of_its_range_is_refused(q):
    with pytest.raises(ValueError, match="between 0 and 1"):
        filled([1]).quantile(q)
