from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.limits import MAX_RESET_S
from runner.ratelimits import Allowance, RateLimits, go_duration, read

UNKNOWN = Allowance()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("20ms", 0.02),
        ("6m0s", 360.0),
        ("1h2m", 3720.0),
        ("1h2m3.5s", 3723.5),
        ("0s", 0.0),
        ("120µs", 0.00012),
        (" 1S ", 1.0),
        ("7", 7.0),
        ("0.25", 0.25),
        (".5s", 0.5),
        ("", None),
        (None, None),
        ("-1s", None),
        ("soon", None),
        ("1d", None),
        ("nan", None),
        ("inf", None),
        ("99999h", None),
        ("1s later", None),
    ],
)
def test_a_go_duration_is_read_as_go_does(text, seconds):
    assert go_duration(text) == (seconds if seconds is None else pytest.approx(seconds))


@given(st.text())
def test_no_text_is_more_than_unknown(text):
    seconds = go_duration(text)
    assert seconds is None or 0 <= seconds <= MAX_RESET_S
    names = [f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")]
    found = read(dict.fromkeys(names, text))
    assert all(value is None or value >= 0 for allowance in found for value in allowance)


@given(st.integers(0, 23), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_every_duration_that_go_writes_is_read(hours, minutes, seconds, millis):
    text = f"{hours}h{minutes}m{seconds}.{millis:03d}s"
    assert go_duration(text) == pytest.approx(hours * 3600 + minutes * 60 + seconds + millis / 1000)


def test_the_headers_of_the_api_are_read():
    found = read(
        {
            "x-ratelimit-limit-requests": "500",
            "x-ratelimit-remaining-requests": "499",
            "x-ratelimit-reset-requests": "120ms",
            "x-ratelimit-limit-tokens": "30000",
            "x-ratelimit-remaining-tokens": "29000",
            "x-ratelimit-reset-tokens": "2s",
        }
    )
    assert found == RateLimits(Allowance(500, 499, 0.12), Allowance(30_000, 29_000, 2.0))


def named(what, allowance):
    return {
        f"x-ratelimit-{part}-{what}": text
        for part, text in zip(("limit", "remaining", "reset"), allowance, strict=True)
    }


LOW = ("30000", "29000", "2s"), Allowance(30_000, 29_000, 2.0)
HIGH = ("1000000", "28000", "58s"), Allowance(1_000_000, 28_000, 58.0)
EQUAL = ("30000", "100", "59.8s"), Allowance(30_000, 100, 59.8)
DAILY = ("20000", "19000", "1h12m"), Allowance(20_000, 19_000, 4_320.0)


@pytest.mark.parametrize("kinds", [("tokens", "project-tokens"), ("project-tokens", "tokens")])
@pytest.mark.parametrize(("first", "second"), [(LOW, HIGH), (EQUAL, LOW), (HIGH, DAILY), (LOW, DAILY)])
def test_of_tokens_and_project_tokens_both_are_kept_whole_and_the_lower_comes_first(kinds, first, second):
    found = read(named(kinds[0], first[0]) | named(kinds[1], second[0]))
    assert (found.tokens, found.more_tokens) == (first[1], second[1])


@given(*[st.tuples(st.integers(1, 10**7), st.integers(0, 10**7), st.integers(0, 600))] * 2)
def test_no_limit_is_made_of_two(one, other):
    sources = [
        Allowance(limit if limit >= 1_000 else None, float(left), float(reset)) for limit, left, reset in (one, other)
    ]
    found = read(named("tokens", map(str, one)) | named("project-tokens", map(str, other)))
    assert sorted([found.tokens, found.more_tokens], key=str) == sorted(sources, key=str)
    limits = [allowance.per_minute for allowance in sources if allowance.per_minute is not None]
    assert found.tokens.per_minute == min(limits, default=None)


@pytest.mark.parametrize("text", ["0.999", "0.001", "1e-323", "5e-324"])
def test_a_limit_of_less_than_a_request_a_minute_is_unknown(text):
    assert read({"x-ratelimit-limit-requests": text}).requests.per_minute is None


@pytest.mark.parametrize("what", ["tokens", "project-tokens"])
@pytest.mark.parametrize("text", ["10", "1", "999", "0.001", "1e-323"])
def test_a_limit_of_next_to_no_tokens_is_unknown(what, text):
    found = read({f"x-ratelimit-limit-{what}": text, f"x-ratelimit-remaining-{what}": "0"})
    assert found.tokens.per_minute is None
    assert found.more_tokens.per_minute is None


def test_the_lowest_limits_that_are_sold_are_believed():
    found = read({"x-ratelimit-limit-requests": "1", "x-ratelimit-limit-tokens": "1000"})
    assert (found.requests.per_minute, found.tokens.per_minute) == (1, 1_000)


@pytest.mark.parametrize("text", ["-1", "0", "", "unlimited", "nan", "inf", "1e30"])
def test_a_limit_that_makes_no_sense_is_unknown(text):
    assert read({"x-ratelimit-limit-requests": text}).requests == UNKNOWN


def test_nothing_remaining_is_known_and_not_unknown():
    assert read({"x-ratelimit-remaining-tokens": "0"}).tokens.remaining == 0


def test_without_headers_all_is_unknown():
    assert read({}) == RateLimits()


@pytest.mark.parametrize(
    ("allowance", "per_minute"),
    [
        (Allowance(600, 599, 0.1), 600),
        (Allowance(600, 9, 0.1), 600),  # a bucket of one second's worth
        (Allowance(600, 600, 0.0), 600),
        (Allowance(600), 600),
        (Allowance(10_000, 9_999, 8.64), None),  # a day's: 86,400 s / 10,000
        (Allowance(200, 0, 7_200.0), None),
        (Allowance(30_000, 29_990, 1.0), 30_000),  # 20 ms, rounded up to a second
        (Allowance(1_000, 999, 86.0), None),  # a day's, rounded
        (Allowance(), None),
    ],
)
def test_a_limit_of_a_day_is_not_taken_for_one_of_a_minute(allowance, per_minute):
    assert allowance.per_minute == per_minute


@pytest.mark.parametrize(
    ("remaining", "reset_s", "per_minute"),
    [
        (19.0, 0.05, 1_200.0),
        (11.0, 0.45, 1_200.0),
        (19.0, 3.0, 20.0),  # a minute's
        (9.0, 0.55, 20.0),  # may be the bucket of a second that another limit is kept by
        (0.0, 1.0, 20.0),
        (19.0, 0.0, 20.0),
        (20.0, 0.0, 20.0),
    ],
)
def test_a_limit_of_a_second_is_known_by_its_reset_while_most_of_it_is_left(remaining, reset_s, per_minute):
    assert Allowance(20.0, remaining, reset_s).per_minute == per_minute
