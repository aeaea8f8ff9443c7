from __future__ import annotations

import math
import random
import statistics
from itertools import islice, pairwise, takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import UsageError
from runner.load.arrivals import Flat, Process, Ramp, Replay, Steps, parse_arrivals, share

SEEDS = range(5)
RATES = st.floats(0, 1000)


def first(process, n, seed=0):
    return list(islice(process.times(random.Random(seed)), n))


def gaps(times):
    return [after - before for before, after in pairwise([0.0, *times])]


def ks_distance(values, cdf):
    """The Kolmogorov–Smirnov statistic: the largest distance between the sample's distribution and the asked one."""
    ordered, n = sorted(values), len(values)
    return max(max((i + 1) / n - cdf(x), cdf(x) - i / n) for i, x in enumerate(ordered))


def critical(n):
    """Beyond it one sample of a thousand lies, by Kolmogorov's asymptotic distribution."""
    return math.sqrt(-math.log(0.001 / 2) / 2) / math.sqrt(n)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rate", [0.5, 20, 3000])
def test_poisson_gaps_pass_a_kolmogorov_smirnov_test(rate, seed):
    times = first(Process(Flat(rate), "poisson"), 5_000, seed)
    assert ks_distance(gaps(times), lambda x: 1 - math.exp(-rate * x)) < critical(5_000)


def test_the_kolmogorov_smirnov_test_can_fail():
    for process in (Process(Flat(20)), Process(Flat(23), "poisson"), Process(Flat(20), "gamma", 1.2)):
        assert ks_distance(gaps(first(process, 5_000)), lambda x: 1 - math.exp(-20 * x)) > critical(5_000)


@pytest.mark.parametrize("seed", SEEDS)
def test_poisson_counts_a_second_are_spread_as_their_mean(seed):
    times = takewhile(lambda t: t < 500, Process(Flat(20), "poisson").times(random.Random(seed)))
    counts = [0] * 500
    for t in times:
        counts[int(t)] += 1
    assert statistics.fmean(counts) == pytest.approx(20, rel=0.05)
    assert statistics.pvariance(counts) / statistics.fmean(counts) == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("burstiness", [0.25, 1, 4])
def test_gamma_has_the_mean_of_the_rate_and_the_shape_of_the_burstiness(burstiness, seed):
    found = gaps(first(Process(Flat(50), "gamma", burstiness), 20_000, seed))
    assert statistics.fmean(found) == pytest.approx(1 / 50, rel=0.06)
    # Of a gamma distribution: (deviation ÷ mean)² is 1 ÷ shape.
    assert (statistics.stdev(found) * 50) ** 2 == pytest.approx(1 / burstiness, rel=0.15)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_burstiness_of_one_is_poisson(seed):
    found = gaps(first(Process(Flat(20), "gamma", 1.0), 5_000, seed))
    assert ks_distance(found, lambda x: 1 - math.exp(-20 * x)) < critical(5_000)


def test_a_constant_rate_does_not_drift():
    times = first(Process(Flat(30)), 100_001)
    assert times[0] == 0
    assert times[30_000] == 1000.0
    assert all(time == i / 30 for i, time in enumerate(times))


@given(RATES, RATES, st.floats(0.1, 1000), st.floats(0, 1))
def test_a_ramp_is_the_inverse_of_its_integral(a, b, within_s, part):
    ramp, t = Ramp(a, b, within_s), part * within_s * 2
    inside = min(t, within_s)
    place = a * inside + (b - a) * inside**2 / (2 * within_s) + b * (t - inside)
    found = ramp.time_of(place)
    if found == math.inf:
        assert b == 0
        return
    inside = min(found, within_s)
    again = a * inside + (b - a) * inside**2 / (2 * within_s) + b * (found - inside)
    assert again == pytest.approx(place, rel=1e-6, abs=1e-6)


def test_a_ramp_sends_what_its_rate_asks_in_every_second():
    counts = [0] * 20
    for t in takewhile(lambda t: t < 20, Process(Ramp(0, 100, 10)).times(random.Random(0))):
        counts[int(t)] += 1
    assert counts[:10] == pytest.approx([10 * i + 5 for i in range(10)], abs=1)
    assert counts[10:] == pytest.approx([100] * 10, abs=1)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_poisson_ramp_is_poisson_on_the_line_of_its_integral(seed):
    times = first(Process(Ramp(10, 200, 30), "poisson"), 3_000, seed)
    places = [10 * t + 190 / 60 * t * t if t < 30 else 3150 + 200 * (t - 30) for t in times]
    assert ks_distance(gaps(places), lambda x: 1 - math.exp(-x)) < critical(3_000)


def test_a_ramp_to_nothing_ends():
    times = list(Process(Ramp(10, 0, 10)).times(random.Random(0)))
    assert len(times) == 51
    assert times[-1] == pytest.approx(10)


def test_steps_have_each_rate_for_their_time_and_keep_the_last():
    times = first(Process(Steps(((10, 2), (0, 3), (5, 1)))), 40)
    assert times[:20] == pytest.approx([i / 10 for i in range(20)])
    assert times[20:] == pytest.approx([5 + i / 5 for i in range(20)])
    assert len(list(Process(Steps(((10, 2), (0, 3)))).times(random.Random(0)))) == 20


@pytest.mark.parametrize(
    "process",
    [
        Process(Flat(7), "poisson"),
        Process(Flat(7), "gamma", 0.1),
        Process(Ramp(50, 1, 5), "poisson"),
        Process(Ramp(0, 9, 5)),
        Process(Steps(((9, 1), (0, 2), (3, 2))), "poisson"),
        Replay([0.0, 0.0, 1.0, 4.0], 2),
    ],
    ids=lambda process: process.describe()["kind"],
)
def test_times_never_decrease_and_a_seed_gives_the_same_ones(process):
    times = first(process, 500, 1)
    assert times == sorted(times)
    assert times == first(process, 500, 1)


def test_a_trace_is_sent_as_recorded_or_faster():
    assert first(Replay([0, 0.5, 3], 1), 9) == [0, 0.5, 3]
    assert first(Replay([0, 0.5, 3], 2), 9) == [0, 0.25, 1.5]


def test_processes_share_one_schedule_without_a_gap_or_a_double():
    process = Process(Flat(10), "poisson")
    parts = [list(islice(share(process.times(random.Random(4)), i, 3), 50)) for i in range(3)]
    together = sorted(request for part in parts for request in part)
    assert together == list(enumerate(first(process, 150, 4)))


@pytest.mark.parametrize(
    ("text", "described"),
    [
        ("constant", {"kind": "constant", "rate": 20}),
        (" poisson ", {"kind": "poisson", "rate": 20}),
        ("gamma:0.5", {"kind": "gamma", "rate": 20, "burstiness": 0.5}),
        ("ramp:1..50/60s", {"kind": "ramp", "from": 1, "to": 50, "within_s": 60, "spacing": "even"}),
        ("ramp:1.5..0/60,poisson", {"kind": "ramp", "from": 1.5, "to": 0, "within_s": 60, "spacing": "poisson"}),
        ("step:10x30s,20x30", {"kind": "step", "levels": [[10, 30], [20, 30]], "spacing": "even"}),
        ("step:0x5s,20x30s,poisson", {"kind": "step", "levels": [[0, 5], [20, 30]], "spacing": "poisson"}),
    ],
)
def test_what_users_write_is_what_load_json_says(text, described):
    assert parse_arrivals(text, rate=20).describe() == described


@pytest.mark.parametrize(
    "text",
    [
        *("", "uniform", "constant:3", "gamma", "gamma:", "gamma:0", "gamma:-1", "gamma:nan", "gamma:inf", "gamma:x"),
        *("ramp:1..2", "ramp:1..2/0s", "ramp:0..0/5s", "ramp:-1..2/5s", "ramp:1..2/5s,poissonx", "step:", "step:1x0s"),
        *("step:0x5s", "step:1x5s,,", "step:9e9x1s", "ramp:1..9999999/5s"),
    ],
)
def test_what_is_no_arrival_process_is_refused(text):
    with pytest.raises(UsageError):
        parse_arrivals(text, rate=20)


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf, 1e7])
def test_a_rate_that_can_not_be_sent_is_refused(rate):
    with pytest.raises(UsageError, match="a rate is above 0"):
        parse_arrivals("poisson", rate=rate)
