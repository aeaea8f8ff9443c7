"""The pure parts together, against servers that are computed: no clock, no socket."""

from __future__ import annotations

import heapq
import random
from itertools import takewhile

import pytest

from runner.load.arrivals import Flat, Process
from runner.load.level import LevelStatistics, Window
from runner.load.samples import RequestSample
from runner.load.search import Plan, Try, next_value, outcome
from runner.load.slo import Slo
from tests.load.answers import sketch

TTFT_S = 0.05
GAPS = sketch(*[0.01] * 20)


def served(arrivals, *, slots, service_s, stall=(0.0, 0.0)):
    """What a server with so many slots makes of requests in the order they come; none begins during its stall."""
    free = [0.0] * slots
    for due in arrivals:
        begin = max(due, heapq.heappop(free))
        if stall[0] <= begin < stall[1]:
            begin = stall[1]
        heapq.heappush(free, begin + service_s)
        yield answer(due, begin, service_s, scheduled=due)


def answer(sent, begin, service_s, scheduled=None):
    return RequestSample(
        scheduled=scheduled,
        admitted=sent,
        sent=sent,
        first_content=begin + TTFT_S,
        first_text=begin + TTFT_S,
        last_content=begin + service_s,
        end=begin + service_s,
        input_tokens=100,
        output_tokens=21,
        first_chunk_tokens=1,
        chunks=21,
        gaps=GAPS,
        ok=True,
    )


def level_of(samples, window, slo=None):
    level = LevelStatistics(window, slo)
    for sample in samples:
        level.add(sample)
    level.add_cpu(0.1)
    level.add_lag(10, 0.001)
    return level


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("slots", "service_s"), [(8, 0.4), (20, 1.0)])
def test_the_search_finds_the_rate_that_a_queue_can_bear(slots, service_s, seed):
    capacity, slo = slots / service_s, Slo({"ttft": 0.5})
    plan = Plan(5)
    tried: list[Try] = []
    while (rate := next_value(plan, tried)) is not None:
        rng = random.Random(f"{seed}:{len(tried)}")
        arrivals = takewhile(lambda t: t < 50, Process(Flat(rate), "poisson").times(rng))
        level = level_of(served(arrivals, slots=slots, service_s=service_s), Window(10, 45), slo)
        tried.append(Try(rate, level.goodput, level.judged().verdict, level.counts["in_window"]))
    found = outcome(plan, tried)
    print(found, [(one.value, one.goodput) for one in tried])
    assert found.best is not None
    # A queue with chance arrivals keeps a TTFT of half a second up to somewhat below its capacity, never above.
    assert 0.6 * capacity < found.best < 1.03 * capacity
    assert found.limited_by == "slo"


def test_a_stall_of_the_server_shows_in_the_tail_of_an_open_loop_and_hides_from_a_closed_one():
    stall = (30.0, 35.0)
    arrivals = takewhile(lambda t: t < 60, Process(Flat(50)).times(random.Random(0)))
    opened = level_of(served(arrivals, slots=100, service_s=0.2, stall=stall), Window(0, 60)).report(70)
    # 250 of 3,000 requests were due in the stall: of these the worst waited 5 s.
    assert opened["metrics"]["ttft"]["p99"] == pytest.approx(4.4, abs=0.3)
    assert opened["metrics"]["ttft"]["max"] == pytest.approx(5.05, abs=0.05)

    closed, t = [], 0.0
    while t < 60:
        begin = stall[1] if stall[0] <= t < stall[1] else t
        closed.append(answer(t, begin, 0.02))
        t = begin + 0.02
    found = level_of(closed, Window(0, 60)).report(60)
    assert found["metrics"]["ttft"]["p99"] == pytest.approx(0.05, rel=0.02)
    assert found["metrics"]["ttft"]["max"] == pytest.approx(5.05, abs=0.05)


def test_a_client_that_sends_late_is_shown_by_the_figures_from_schedule_and_bound():
    samples = []
    for i in range(500):
        due, sent = i / 10, i / 10 + 0.4
        samples.append(answer(sent, sent, 0.2, scheduled=due))
    level = level_of(samples, Window(0, 50))
    metrics = level.report(60)["metrics"]
    assert metrics["ttft"]["p99"] == pytest.approx(0.05, rel=0.02)
    assert metrics["ttft_from_schedule"]["p99"] == pytest.approx(0.45, rel=0.02)
    assert metrics["send_lag"]["p50"] == pytest.approx(0.4, rel=0.02)
    assert level.judged().verdict == "client-bound"


def test_throughput_of_the_steady_stretch_is_the_servers_capacity():
    arrivals = takewhile(lambda t: t < 20, Process(Flat(200), "poisson").times(random.Random(1)))
    report = level_of(served(arrivals, slots=50, service_s=0.5), Window(5, 18)).report(50)
    # 100 a second is what it can do; twice as much was asked for.
    assert report["rates"]["achieved_per_s"] == pytest.approx(200, rel=0.05)
    assert report["rates"]["succeeded_per_s"] == pytest.approx(100, rel=0.01)
    assert report["rates"]["output_tokens_per_s"] == pytest.approx(2_100, rel=0.02)
