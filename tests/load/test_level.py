from __future__ import annotations

import math
import random

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.limits import MAX_COUNTED_NAMES
from runner.load.definitions import METRICS
from runner.load.level import LevelStatistics, Window
from runner.load.results import Level
from runner.load.samples import RequestSample
from runner.load.slo import Slo
from tests.load.answers import answered, at, failed, sketch


def filled(*samples, window=None, slo=None):
    level = LevelStatistics(window or Window(), slo)
    for sample in samples:
        level.add(sample)
    return level


def some(seed, n=60):
    """A mixed bag of requests."""
    rng = random.Random(seed)
    made = []
    for _ in range(n):
        sent = rng.uniform(0, 30)
        made.append(
            rng.choice(
                [
                    at(sent, length=rng.uniform(0.1, 9), ttft=rng.uniform(0.01, 0.09), coalesced=rng.randrange(9)),
                    answered(
                        scheduled=sent, sent=sent + 0.1, first_content=sent + 0.2, last_content=sent + 1, end=sent + 1
                    ),
                    failed(sent, rng.choice(["server_error", "truncated", "rate_limited"])),
                    at(sent, ok=False, end=None, first_content=None, last_content=None),
                    RequestSample(scheduled=sent),
                    RequestSample(scheduled=sent, waiting=True),
                ]
            )
        )
    return made


# ── Counts ───────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.integers(0, 10**6))
def test_offered_is_the_sum_of_what_requests_end_as(seed):
    report = filled(*some(seed)).report(40)
    requests = report["requests"]
    ended = requests["succeeded"] + requests["failed"] + report["throttled"] + requests["in_flight_at_end"]
    assert requests["sent"] == ended
    assert requests["offered"] == ended + requests["dropped"] + requests["waiting_at_end"] == 60
    assert sum(report["errors"].values()) == requests["failed"]


def test_errors_are_by_kind_and_429s_are_a_class_of_their_own():
    report = filled(
        failed(1), failed(2), failed(3, "truncated"), failed(4, "rate_limited", throttled_attempts=3)
    ).report(9)
    assert report["errors"] == {"server_error": 2, "truncated": 1}
    assert (report["throttled"], report["throttled_attempts"]) == (1, 3)


def test_what_still_waits_for_limits_at_the_end_was_neither_dropped_nor_sent():
    requests = filled(RequestSample(scheduled=1.0, waiting=True), RequestSample(scheduled=1.0)).report(9)["requests"]
    assert (requests["waiting_at_end"], requests["dropped"], requests["in_flight_at_end"]) == (1, 1, 0)
    assert (requests["offered"], requests["admitted"], requests["sent"]) == (2, 0, 0)


def test_pauses_of_processes_add_up():
    level, other = filled(), filled()
    level.add_pause(0.25)
    other.add_pause(0.5)
    level.merge(LevelStatistics.from_dict(orjson.loads(orjson.dumps(other.to_dict()))))
    assert (level.report(9)["backed_off"], level.report(9)["backed_off_s"]) == (2, 0.75)


def test_names_that_a_server_invents_fill_no_memory():
    level, other = filled(), filled()
    for i in range(300):
        level.add(failed(1, f"kind {i}"))
        other.add(failed(1, f"sort {i}"))
    level.merge(other)
    assert len(level.errors) <= MAX_COUNTED_NAMES + 1
    assert sum(level.errors.values()) == 600


# ── The window ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("sent", "inside"), [(4.99, 0), (5.0, 1), (24.9, 1), (25.0, 0)])
def test_a_request_counts_if_it_was_sent_within_the_window_however_long_it_took(sent, inside):
    report = filled(at(sent, length=60), window=Window(5, 25)).report(90)
    assert report["requests"]["in_window"] == inside
    assert report["metrics"]["e2e"]["n"] == inside
    assert report["metrics"]["icl"]["n"] == 10 * inside
    assert report["window_s"] == [5, 25]


def test_in_an_open_loop_it_counts_if_it_was_due_even_if_it_was_sent_late_or_never():
    late = answered(scheduled=24.0, sent=26.0, first_content=27.0, last_content=28.0, end=28.0)
    report = filled(late, RequestSample(scheduled=24.5), window=Window(5, 25)).report(40)
    assert report["requests"]["in_window"] == 2
    assert report["metrics_with_failures"]["e2e"]["n"] == 2


def test_an_overloaded_server_does_not_seem_to_answer_as_fast_as_it_was_asked():
    # 100 a second are asked for 20 s, 50 a second answered.
    level = LevelStatistics(Window(0, 20))
    for i in range(2_000):
        level.add(at(i / 100, length=(i + 1) / 50 - i / 100, ttft=0.005, scheduled=i / 100))
    rates = level.report(40)["rates"]
    assert rates["offered_per_s"] == rates["achieved_per_s"] == 100
    assert rates["succeeded_per_s"] == pytest.approx(50, rel=0.01)


def test_tokens_are_counted_where_they_arrived():
    level = filled(at(0, length=10, ttft=2, output_tokens=80, input_tokens=8, chunks=40), window=Window(0, 6))
    rates = level.report(20)["rates"]
    assert rates["output_tokens_per_s"] == pytest.approx(40 / 6)
    assert rates["chunks_per_s"] == pytest.approx(20 / 6)
    assert rates["input_tokens_per_s"] == pytest.approx(8 / 6)
    assert rates["total_tokens_per_s"] == pytest.approx(48 / 6)
    whole = filled(at(1, first_content=None, last_content=None, chunks=0, output_tokens=30)).report(10)["rates"]
    assert whole["output_tokens_per_s"] == pytest.approx(3)


def test_where_no_answer_has_usage_the_inputs_are_unknown_and_not_none():
    uncounted = {"input_tokens": None, "output_tokens": None, "output_tokens_by_tokenizer": 12}
    rates = filled(at(0, **uncounted)).report(4)["rates"]
    assert (rates["input_tokens_per_s"], rates["total_tokens_per_s"]) == (None, None)
    assert rates["output_tokens_per_s"] == pytest.approx(3)
    rates = filled(at(0, **uncounted), at(0, input_tokens=8)).report(4)["rates"]
    assert rates["input_tokens_per_s"] == 2


def test_rates_of_a_level_without_an_end_are_over_what_it_lasted():
    assert filled(at(0), at(1)).report(4)["rates"]["succeeded_per_s"] == 0.5
    assert filled(at(0)).report(4)["window_s"] == [0, 4]


def test_a_level_that_ended_in_its_warm_up_has_no_rates():
    report = filled(at(0), window=Window(5, 25)).report(3)
    assert set(report["rates"].values()) == {None}
    assert report["goodput"] is None


# ── Latencies and goodput ────────────────────────────────────────────────────────────────────────────────────────


def test_failures_are_infinite_where_asked_and_absent_elsewhere():
    level = filled(*(at(i / 10) for i in range(36)), *(failed(i / 10) for i in range(4)))
    report = level.report(10)
    assert report["metrics"]["ttft"]["n"] == 36
    assert report["metrics"]["ttft"]["max"] == pytest.approx(0.2)
    found = report["metrics_with_failures"]["ttft"]
    assert (found["n"], found["p50"], found["p90"], found["max"]) == (
        40,
        pytest.approx(0.2, rel=0.01),
        found["p90"],
        "inf",
    )
    assert found["p90"] == pytest.approx(0.2, rel=0.01)
    level.add(failed(1))
    assert level.report(10)["metrics_with_failures"]["ttft"]["p90"] == "inf"


@pytest.mark.parametrize(
    "bad",
    [
        failed(1),
        failed(1, "rate_limited"),
        failed(1, "total_timeout"),
        failed(1, "truncated"),
        at(1, ok=False, end=None),
        RequestSample(scheduled=1.0),
        at(1, ttft=0.6),
    ],
)
def test_whatever_keeps_no_slo_stays_in_the_denominator_of_goodput(bad):
    level = filled(*(at(1) for _ in range(3)), bad, slo=Slo({"ttft": 0.5}))
    assert level.goodput == 0.75
    assert level.report(10)["rates"]["goodput_per_s"] == pytest.approx(0.3)


def test_without_an_slo_there_is_no_goodput():
    report = filled(at(1)).report(10)
    assert (report["goodput"], report["rates"]["goodput_per_s"], report["unjudged"]) == (None, None, None)


def test_a_goodput_of_nothing_for_want_of_usage_says_so():
    report = filled(answered(output_tokens=None), answered(), slo=Slo({"tpot": 1})).report(20)
    assert (report["goodput"], report["unjudged"], report["without_usage"]) == (0.5, 1, 1)


def test_gaps_are_pooled_over_requests():
    level = filled(at(1, gaps=sketch(*[0.01] * 300)), at(2, gaps=sketch(*[0.1] * 100)))
    found = level.report(9)["metrics"]["icl"]
    assert found["n"] == 400
    assert found["p50"] == pytest.approx(0.01, rel=0.011)
    assert found["p90"] == pytest.approx(0.1, rel=0.011)
    assert found["mean"] == pytest.approx(0.0325)


def test_answers_of_one_chunk_have_no_gaps_and_that_is_no_error():
    level = filled(*(at(i, chunks=1, gaps=sketch(), output_tokens=1) for i in range(5)))
    report = level.report(9)
    assert report["metrics"]["icl"]["n"] == 0
    assert report["metrics"]["icl"]["stddev"] is None
    assert report["metrics"]["ttft"]["n"] == 5
    Level.model_validate({"label": "x", "kind": "closed", "value": 1.0, **report})
    level.add(at(6, gaps=sketch(0.1), chunks=2))
    assert level.report(9)["metrics"]["icl"]["stddev"] is None


def test_waits_are_those_of_all_that_were_sent():
    level = filled(answered(), failed(10, scheduled=9.0), RequestSample(scheduled=9.0))
    assert level.report(20)["metrics"]["queue_wait"]["n"] == 2
    assert level.report(20)["metrics"]["ttft"]["n"] == 1


# ── The client ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_verdict_is_on_lag_schedule_delay_cpu_and_chunks_read_together():
    level = LevelStatistics(Window(1, 9))
    level.add_lag(0.5, 3.0)  # warming up
    for i in range(400):
        level.add_lag(1 + i / 50, 0.001)
    level.add_cpu(0.2)
    assert level.report(10)["client"]["verdict"] == "ok"
    for i in range(400):
        level.add(answered(scheduled=1 + i / 80, sent=1.05 + i / 80, chunks=10, coalesced=4))
    level.add_cpu(0.6)
    level.add_cpu(0.1)
    client = level.report(10)["client"]
    assert client["verdict"] == "client-bound"
    assert client["cpu_share"] == 0.6
    assert client["coalesced_share"] == 0.4
    assert client["schedule_delay_p99_s"] == pytest.approx(0.05, rel=0.011)
    assert client["lag_max_s"] == 0.001
    assert client["reasons"][0].startswith("requests were sent 5")
    assert level.report(10)["timeline"][0]["lag_max_s"] == 3.0


def test_the_verdict_goes_by_the_percentile_that_is_shown():
    """In 398 sends the 394th was in time, the 395th, which is at p99, wasn't."""
    level = LevelStatistics()
    level.add_cpu(0.1)
    for k in range(1_000):
        level.add_lag(k / 100, 0.001)
    for k in range(398):
        late = 0.05 if k >= 394 else 0.001
        level.add(answered(scheduled=float(k), sent=k + late, first_content=k + 0.2, last_content=k + 1.0, end=k + 1.0))
    client = level.report(400)["client"]
    assert client["schedule_delay_p99_s"] == pytest.approx(0.05, rel=0.01)
    assert client["verdict"] == "client-bound"


def test_few_sends_and_few_wake_ups_decide_the_verdict_and_are_called_no_percentile():
    level = LevelStatistics(Window(0, 9))
    for i in range(30):
        level.add_lag(i / 50, 0.02)
        level.add(answered(scheduled=1 + i / 10, sent=1.05 + i / 10))
    level.add_cpu(0.1)
    client = level.report(9)["client"]
    assert client["verdict"] == "client-bound"
    assert (client["lag_p99_s"], client["schedule_delay_p99_s"]) == (None, None)
    assert client["schedule_delay_max_s"] == pytest.approx(0.05)
    assert [reason.partition(" were")[0] for reason in client["reasons"]] == [
        "the worst sends",
        "the event loop's worst wake-ups",
    ]


def test_of_what_is_still_in_flight_no_wait_is_known():
    level = LevelStatistics()
    level.add(RequestSample(1.0, 1.0, 1.0))
    level.add(RequestSample(1.0, 1.0, 1.25, end=2.0, fault="server_error"))
    metrics = level.report(20)["metrics"]
    assert [metrics[name]["n"] for name in ("queue_wait", "send_lag", "limiter_wait")] == [1, 1, 1]
    assert metrics["send_lag"]["min"] == 0.25


def test_what_is_still_in_flight_shows_in_the_timeline_to_the_end():
    level = filled(at(1.0, end=None, ok=False, first_content=None, last_content=None))
    report = level.report(4)
    assert [step["in_flight"] for step in report["timeline"]][:4] == [0, 1, 1, 1]
    assert report["requests"]["in_flight_at_end"] == 1
    assert level.report(4) == report


# ── Processes and files ──────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_processes_merge_to_what_one_would_have_seen(left, right):
    options = {"window": Window(3, 25), "slo": Slo({"ttft": 0.05})}
    merged, other = filled(*some(left), **options), filled(*some(right), **options)
    merged.add_lag(4, 0.02)
    other.add_cpu(0.3)
    merged.merge(LevelStatistics.from_dict(orjson.loads(orjson.dumps(other.to_dict()))))
    whole = filled(*some(left), *some(right), **options)
    whole.add_lag(4, 0.02)
    whole.add_cpu(0.3)
    ours, theirs = merged.report(40), whole.report(40)
    for name in ("requests", "errors", "throttled", "goodput", "unjudged", "histograms"):
        assert ours[name] == theirs[name], name
    for name in ("rates", "client"):
        assert ours[name].keys() == theirs[name].keys()
        for key, value in theirs[name].items():
            assert ours[name][key] == (pytest.approx(value) if isinstance(value, float) else value), key
    assert ours["metrics"]["e2e"]["p50"] == theirs["metrics"]["e2e"]["p50"]


def test_levels_that_differ_can_not_be_merged():
    for other in (filled(window=Window(1)), filled(slo=Slo({"ttft": 1}))):
        with pytest.raises(ValueError, match="different levels"):
            filled().merge(other)


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.booleans())
def test_a_report_is_a_level_of_load_json(seed, empty):
    level = filled(*([] if empty else some(seed)), slo=Slo({"ttft": 0.05}))
    report = {"label": "16 concurrent", "kind": "closed", "value": 16.0, **level.report(40)}
    assert report["metrics"].keys() == {metric.key for metric in METRICS}
    read = Level.model_validate_json(orjson.dumps(report))
    assert read.requests.offered == (0 if empty else 60)
    if read.metrics_with_failures["ttft"].max is not None:
        assert read.metrics_with_failures["ttft"].max == math.inf


def test_memory_does_not_grow_with_the_number_of_requests():
    few, many = filled(*some(1, 1_000)), filled(*some(2, 8_000))
    few._open, many._open = [], []
    assert len(orjson.dumps(many.to_dict())) < 2 * len(orjson.dumps(few.to_dict()))
