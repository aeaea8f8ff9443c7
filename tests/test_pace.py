from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runner.chance import ALONE, RECENT, SEVERAL
from runner.pace import (
    AGAIN,
    AGAIN_AT,
    AHEAD_S,
    BACK,
    BACK_OFF,
    BACK_S,
    DEEPEST,
    ENOUGH_PER_S,
    FEW,
    FLOOR_PER_S,
    MAX_BACK,
    MAX_BACK_S,
    MEMORY_S,
    SAVED_S,
    START_PER_S,
    Pace,
)


class Clock:
    """One that is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def new_pace() -> tuple[Pace, Clock]:
    clock = Clock()
    pace = Pace(clock)
    assert pace.per_s == START_PER_S  # the start begins when it is first asked
    return pace, clock


def bear(pace: Pace, clock: Clock, per_s: float, seconds: float) -> None:
    """The server accepts so many requests a second for a while."""
    for _ in range(round(per_s * seconds)):
        clock.now += 1 / per_s
        pace.bore()


def refused(per_s: float = 50.0) -> tuple[Pace, Clock]:
    """A pace that a server of that rate has refused once."""
    pace, clock = new_pace()
    bear(pace, clock, per_s, MEMORY_S)
    pace.exceeded(0)
    return pace, clock


# ── The start ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_start_doubles_every_second_until_one_process_sends_no_faster():
    pace, clock = new_pace()
    for second in range(6):
        clock.now = float(second)
        assert pace.per_s == START_PER_S * 2**second
    clock.now = math.log2(ENOUGH_PER_S / START_PER_S) + 1e-6
    assert pace.per_s == math.inf
    assert pace.searching


def test_a_rate_that_is_not_used_does_not_grow():
    pace, clock = new_pace()
    for _ in range(100):
        clock.now += 1.0  # of 20 a second
        pace.sent()
    assert pace.per_s < 10 * START_PER_S
    for _ in range(4_000):
        clock.now += 1 / pace.per_s if pace.per_s < math.inf else 0.0
        pace.sent()
    assert pace.per_s == math.inf


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_rate_that_is_used_in_bursts_grows_as_if_it_were_used_evenly(share):
    pace, clock = new_pace()
    for tenth in range(1, 31):
        for _ in range(max(1, int(share * pace.per_s / 10))):
            pace.sent()
        clock.now = tenth / 10
    assert pace.per_s >= 0.9 * START_PER_S * 2**3


def test_limits_that_are_known_need_no_pace_until_they_are_refused():
    pace, clock = new_pace()
    pace.know()
    assert pace.per_s == math.inf
    bear(pace, clock, 50, 10)
    pace.exceeded(0)
    assert pace.per_s < 50


def test_a_refusal_before_anything_was_borne_starts_again():
    pace, clock = new_pace()
    clock.now = 5.0
    pace.exceeded(2.0)
    assert pace.per_s == START_PER_S
    clock.now = 8.0
    assert pace.per_s == 2 * START_PER_S
    assert pace.searching


# ── After a refusal ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("per_s", [1, 10, 50, 500])
def test_a_refusal_backs_off_to_what_was_borne(per_s):
    """A lower bound, short by the second's worth that the server may have saved up, and no more."""
    pace, clock = new_pace()
    bear(pace, clock, per_s, MEMORY_S)
    pace.exceeded(0)
    assert not pace.searching
    failed = pace.per_s / (1 - BACK_OFF)
    assert 0.99 * MEMORY_S / (MEMORY_S + 1) <= failed / per_s <= 1.01


def test_nothing_is_gained_while_nothing_is_sent():
    pace, clock = new_pace()
    bear(pace, clock, 50, 10)
    pace.exceeded(30.0)
    low = pace.per_s
    clock.now += 30.0
    assert pace.per_s == low
    clock.now += 1.0
    assert pace.per_s > low


def test_it_comes_back_along_a_cubic():
    """Quickly at first, hardly at all about the rate that failed, then ever faster."""
    pace, clock = refused()
    start, rates = clock.now, []
    for tenth in range(31):
        clock.now = start + tenth * BACK_S / 10
        rates.append(pace.per_s)
    failed = rates[10]
    assert rates[0] == pytest.approx((1 - BACK_OFF) * failed)
    steps = [later - earlier for earlier, later in itertools.pairwise(rates)]
    assert all(step >= 0 for step in steps)
    assert steps[0] > 50 * steps[9]
    assert steps[29] > steps[20] > steps[11]
    assert rates[20] == pytest.approx((1 + BACK_OFF) * failed)


def test_every_refusal_makes_the_way_back_longer_up_to_a_bound():
    pace, clock = refused(10)
    took = []
    for _ in range(4):
        bear(pace, clock, 10, 200)  # no contradiction: it comes after the way back
        pace.exceeded(0)
        low, start = pace.per_s, clock.now
        while pace.per_s < low / (1 - BACK_OFF) * (1 - 1e-9):
            clock.now += 0.1
        took.append(clock.now - start)
    borne = 10 * MEMORY_S / (MEMORY_S + 1)
    assert took == pytest.approx([2 * BACK / borne, MAX_BACK / borne, MAX_BACK / borne, MAX_BACK / borne], rel=0.05)


@pytest.mark.parametrize(("per_s", "seconds"), [(1.0, MAX_BACK_S * 0.8), (500.0, BACK_S)])
def test_the_way_back_takes_so_many_requests_but_neither_too_long_nor_too_short(per_s, seconds):
    pace, clock = refused(per_s)
    for _ in range(2):
        bear(pace, clock, per_s, 200)
        pace.exceeded(0)
    clock.now += 0.99 * seconds
    low = pace.per_s
    assert low < per_s
    clock.now += 2 * MAX_BACK_S
    assert pace.per_s > 1.2 * per_s


def test_a_tenth_above_the_rate_that_failed_the_search_goes_on():
    pace, clock = refused(100)
    failed = pace.per_s / (1 - BACK_OFF)
    clock.now += AGAIN_AT * BACK_S
    assert pace.per_s == pytest.approx(AGAIN * failed)
    clock.now += 1.0
    assert pace.per_s == pytest.approx(2 * AGAIN * failed)


# ── What comes alone ─────────────────────────────────────────────────────────────────────────────────────────────────


def answers(pace: Pace, clock: Clock, pattern: str, per_s: float = 100.0) -> None:
    """What the server says to one request after the other: yes or no."""
    for letter in pattern:
        clock.now += 1 / per_s
        if letter == "y":
            pace.bore()
        else:
            pace.refused()


@pytest.mark.parametrize(
    ("pattern", "many", "excused"),
    [
        ("y" * 20 + "n", ALONE, True),
        ("y" * 20 + "nyyynyn", ALONE, True),
        ("y" * 20 + "nyynyynyn", ALONE, False),
        ("y" * 20 + "n" + "y" * 20 + "n" + "y" * 20 + "n" + "y" * 20 + "n", ALONE, True),
        ("yyyn", ALONE, True),
        ("nnn", ALONE, True),
        ("nnnn", ALONE, False),
        ("y" * 20 + "n", 1, False),
    ],
)
def test_a_refusal_that_comes_alone_is_excused(pattern, many, excused):
    pace, clock = new_pace()
    answers(pace, clock, pattern)
    assert pace.excuses(many) is excused


def test_refusals_that_come_alone_below_what_was_borne_free_the_rate():
    pace, clock = refused(10)
    for nth in range(1, SEVERAL + 1):
        answers(pace, clock, "y" * 20 + "n")
        assert pace.excuses(ALONE)
        assert pace.is_free is (nth == SEVERAL)


def test_a_single_refusal_at_the_rate_that_failed_is_one():
    pace, clock = refused(10)
    clock.now += 1.01 * BACK / 9
    answers(pace, clock, "y" * 20 + "n")
    assert not pace.excuses(ALONE)
    assert not pace.is_free


def test_more_than_chance_explains_is_a_limit_whatever_was_found_out():
    pace, clock = refused(10)
    answers(pace, clock, "yyyyyyyyyn" * SEVERAL)
    assert pace.is_free
    answers(pace, clock, "y" * RECENT + "nyynynyn")
    assert pace.excuses(1)
    answers(pace, clock, "n" * 6)
    assert not pace.excuses(ALONE)
    pace.exceeded(0)
    assert pace.per_s < 100


def test_one_of_the_first_answers_shows_no_rate_the_first_time():
    pace, clock = new_pace()
    answers(pace, clock, "yyyn")
    pace.exceeded(1.0)
    assert pace.searching
    clock.now += 1.0
    answers(pace, clock, "yyyn")
    pace.exceeded(1.0)
    assert pace.per_s < 5


def test_a_refusal_right_after_a_cut_cuts_no_further_and_is_not_taken_for_chance():
    """A server whose Retry-After is milliseconds has nothing saved up then: one request comes a little early."""
    pace, clock = refused(10)
    low = pace.per_s
    for _ in range(2 * SEVERAL):
        clock.now += 0.9 * SAVED_S / (2 * SEVERAL)
        pace.bore()
        pace.refused()
        pace.exceeded(0)
    assert pace.per_s == pytest.approx(low)
    assert not pace.is_free
    clock.now += SAVED_S
    pace.bore()
    pace.exceeded(0)
    assert pace.per_s == pytest.approx(DEEPEST * low)


def test_no_cut_is_deeper_than_half():
    pace, clock = refused(100)
    failed = pace.per_s / (1 - BACK_OFF)
    clock.now += 60
    pace.bore()
    clock.now += 60  # a single one in two minutes
    pace.exceeded(0)
    assert pace.per_s == pytest.approx((1 - BACK_OFF) * DEEPEST * failed)


@pytest.mark.parametrize("failed", [FLOOR_PER_S, 1.0, 100.0])
def test_a_limit_that_has_risen_is_used_however_low_it_was(failed):
    """Also one that had gone down to the floor: the way up must not end before it is of no account."""
    pace, clock = new_pace()
    bear(pace, clock, failed, max(MEMORY_S, 3 / failed))
    pace.exceeded(0)
    clock.now += 2 * 3_600
    assert pace.per_s == math.inf


# ── Refusals that the rate has no part in ────────────────────────────────────────────────────────────────────────────


def contradict(pace: Pace, clock: Clock) -> None:
    """Refusals below the rate that was borne, a tenth of all."""
    for _ in range(SEVERAL):
        answers(pace, clock, "yyyyyyyyyn")


def test_refusals_below_what_was_borne_free_the_rate():
    pace, clock = refused(50)
    failed = pace.per_s / (1 - BACK_OFF)
    answers(pace, clock, ("yyyyyyyyyn" * SEVERAL)[:-1])
    assert pace.per_s < 50
    pace.refused()
    assert pace.is_free
    assert pace.per_s == pytest.approx(failed * AGAIN * 2**AHEAD_S)
    clock.now += 5
    assert pace.per_s == math.inf


def test_once_chance_is_known_it_takes_more_than_its_share_to_lower_the_rate():
    pace, clock = refused(50)
    contradict(pace, clock)
    clock.now += 10
    for _ in range(1_000):
        answers(pace, clock, "yyyyyyyyyn")
        assert pace.excuses(ALONE)
        assert pace.excuses(1)  # …nor does it, where the server asks for a pause each time


def test_what_is_known_of_chance_outlives_a_limit():
    pace, clock = refused(50)
    contradict(pace, clock)
    bear(pace, clock, 50, MEMORY_S)
    answers(pace, clock, "n" * RECENT)
    assert not pace.excuses(ALONE)
    pace.exceeded(0)
    assert pace.per_s < 50
    answers(pace, clock, "yyyyyyyyyn" * 3)
    assert pace.excuses(1)
    assert not pace.is_free


def test_a_share_that_a_limit_refuses_is_forgotten_below_it():
    """A limit that was halved refuses half of what comes at first, and nothing when the rate is down there."""
    pace, clock = refused(20)
    answers(pace, clock, "y" * FEW + "yn" * SEVERAL, per_s=20)
    assert pace.is_free
    answers(pace, clock, "n" * RECENT, per_s=80)
    pace.exceeded(0)
    low = pace.per_s
    answers(pace, clock, "y" * 60, per_s=low)
    answers(pace, clock, "n" * 7, per_s=20)  # at a third it would take 18
    assert not pace.excuses(ALONE)


@pytest.mark.parametrize("times", [1, 5])
def test_refused_probes_are_no_chance(times):
    """Where nothing was borne since the last refusal, how slowly one sends has nothing to do with it."""
    pace, clock = refused(1)
    for _ in range(times * SEVERAL):
        answers(pace, clock, "n", per_s=1)
        pace.exceeded(1.0)
    assert not pace.is_free
    answers(pace, clock, "yn", per_s=1)
    assert not pace.excuses(1)


def test_a_refusal_after_a_long_time_is_no_contradiction():
    pace, clock = refused()
    for _ in range(3 * SEVERAL):
        bear(pace, clock, 50, 2 * MAX_BACK_S)
        pace.exceeded(0)
        assert pace.per_s < 55


# ── A slow ramp ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("free", [False, True])
def test_after_a_slow_down_it_grows_by_half_in_15_minutes_and_no_faster(free):
    """A slow_down is a request and no guess: nothing contradicts it, not even where others were found to be chance."""
    pace, clock = refused(50)
    if free:
        contradict(pace, clock)
        clock.now += 10
        assert pace.per_s == math.inf
    for _ in range(2 * SEVERAL):
        bear(pace, clock, 40, MEMORY_S)
        pace.refused()
        pace.exceeded(1.0, gently=True)
        assert pace.per_s < 50
    contradict(pace, clock)
    clock.now += 1.0
    start, low = clock.now, pace.per_s
    for minute in range(60):
        clock.now = start + 60 * minute
        assert pace.per_s == pytest.approx(low * 1.5 ** (minute / 15))


def test_an_ordinary_refusal_ends_the_slow_ramp():
    pace, clock = refused()
    bear(pace, clock, 40, 10)
    pace.exceeded(0, gently=True)
    bear(pace, clock, 40, 60)
    pace.exceeded(0)
    low = pace.per_s
    clock.now += 200
    assert pace.per_s > 2 * low


# ── Extremes ─────────────────────────────────────────────────────────────────────────────────────────────────────────

PAUSES = st.one_of(
    st.sampled_from([0.0, 1e-9, 0.1, 1.0, 10.0, 600.0, 86_400.0, 1e6, 1e9, 1e15, 1e300, -1.0, -100.0]),
    st.floats(0, 1e4),
)
WAITS = st.one_of(st.sampled_from([0.0, 1.0, 60.0, 3_600.0, -1.0, 1e300, math.inf, math.nan]), st.floats(0, 1e4))
STEP = st.one_of(
    st.tuples(st.just("pause"), PAUSES),
    st.tuples(st.just("bore"), st.integers(1, 1_000)),
    st.tuples(st.just("refused"), st.integers(1, 30)),
    st.tuples(st.just("free"), st.none()),
    st.tuples(st.just("exceeded"), WAITS),
    st.tuples(st.just("gently"), WAITS),
    st.tuples(st.just("know"), st.none()),
)


@given(st.lists(STEP, max_size=40))
@example([("bore", 1), ("gently", 0.0), ("pause", 1e9)])
@example([("bore", 1), ("exceeded", 0.0), ("pause", 1e300)])
@example([("bore", 1), ("pause", -1.0), ("exceeded", 0.0)])
@example([("bore", 1), ("pause", 1e9), ("exceeded", 0.0)])
def test_the_rate_is_between_the_floor_and_infinity_whatever_happens(steps):
    clock = Clock()
    pace = Pace(clock)
    for what, value in steps:
        if what == "pause":
            clock.now += value
        elif what == "bore":
            for _ in range(value):
                pace.bore()
        elif what == "refused":
            for _ in range(value):
                pace.refused()
        elif what == "know":
            pace.know()
        elif what == "free":
            pace.set_free()
        else:
            pace.exceeded(value, gently=what == "gently")
        assert FLOOR_PER_S <= pace.per_s <= math.inf


@pytest.mark.parametrize("seed", range(5))
def test_what_is_remembered_does_not_grow(seed):
    print("seed", seed)
    rng = random.Random(seed)
    pace, clock = new_pace()
    for _ in range(20_000):
        clock.now += rng.expovariate(100)
        pace.bore()
    assert len(pace._bins) <= MEMORY_S / 0.25 + 2
