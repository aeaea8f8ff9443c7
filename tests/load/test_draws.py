from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import UsageError
from runner.load.draws import Constant, Recorded, noise, parse_draw, uniforms

TEXTS = ["512", "uniform:100..500", "normal:512,100", "lognormal:400,0.8", "exponential:2"]


def drawn(text, n=20_000):
    draw = parse_draw(text, maximum=1e6)
    return [draw.at(uniforms(1, "test", k)[0], k) for k in range(n)]


@pytest.mark.parametrize("text", TEXTS)
def test_a_distribution_is_described_as_it_was_written(text):
    assert parse_draw(f" {text} ", maximum=1e6).describe() == text


@pytest.mark.parametrize(
    ("text", "mean", "deviation"),
    [
        ("512", 512, 0),
        ("uniform:100..500", 300, 115.5),
        ("normal:512,100", 512, 100),
        ("lognormal:400,0.5", 453.3, 241.4),
        ("exponential:2", 2, 2),
    ],
)
def test_a_distribution_has_its_mean_and_deviation(text, mean, deviation):
    values = drawn(text)
    assert statistics.fmean(values) == pytest.approx(mean, rel=0.02)
    assert statistics.pstdev(values) == pytest.approx(deviation, rel=0.03, abs=1e-9)


def test_a_lognormals_median_is_the_one_that_was_asked_for():
    assert statistics.median(drawn("lognormal:400,0.8")) == pytest.approx(400, rel=0.03)


@given(st.sampled_from(TEXTS), st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_no_draw_is_negative_or_endless(text, u):
    assert 0 <= parse_draw(text, maximum=1e6).at(u, 0) < 1e5


@pytest.mark.parametrize(
    ("text", "most"), [("normal:512,100", 885), ("lognormal:400,0.8", 7_900), ("exponential:2", 18.5)]
)
def test_the_endless_ones_are_cut_where_a_request_in_ten_thousand_would_be(text, most):
    assert 0.97 * most < parse_draw(text, maximum=1e6).at(1 - 2**-53, 0) < most


def test_recorded_values_come_in_order_and_again():
    draw = Recorded([3, 1, 2], "t")
    assert [draw.at(0.5, k) for k in range(5)] == [3, 1, 2, 3, 1]
    assert draw.describe() == "file:t"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "-1",
        "nan",
        "inf",
        "1e3",
        "2000000",
        "uniform:5..1",
        "uniform:1",
        "normal:1",
        "lognormal:1,6",
        "normal:1,2,3",
    ],
)
def test_what_is_no_distribution_is_refused(text):
    with pytest.raises(UsageError):
        parse_draw(text, maximum=1e6)


def test_chance_is_the_same_for_the_same_key_and_longer_noise_begins_alike():
    assert uniforms(2, "a", 1) == uniforms(2, "a", 1)
    assert len({*uniforms(1, "a", 1), *uniforms(1, "a", 2), *uniforms(1, "a1"), *uniforms(1, "b", 1)}) == 4
    assert noise(64, "a").startswith(noise(16, "a"))
    assert Constant(3).at(0.1, 2) == 3
