from __future__ import annotations

import pytest

from runner.faults import FaultKind
from runner.load.definitions import METRICS
from runner.load.samples import THROTTLED, RequestSample, values
from tests.load.answers import answered, at, failed


def test_every_metric_has_the_value_of_its_definition():
    found = dict(values(answered(output_tokens=23, first_chunk_tokens=3, limiter_wait_s=0.4)))
    assert found == pytest.approx(
        {
            "ttft": 0.3,
            "ttft_from_schedule": 0.8,
            "ttfv": 0.4,
            "tpot": 0.2 / 20,
            "itl": 0.2 / 22,
            "e2e": 0.5,
            "e2e_from_schedule": 1.0,
            "queue_wait": 0.5,
            "send_lag": 0.1,
            "limiter_wait": 0.4,
            "output_tokens_per_s_per_user": 100,
            "input_tokens": 5,
            "output_tokens": 23,
        }
    )


def test_no_metric_of_the_definitions_is_forgotten():
    assert {name for name, _ in values(answered())} | {"icl"} == {metric.key for metric in METRICS}


def test_a_closed_loop_has_no_schedule():
    found = dict(values(at(3.0)))
    assert not {"ttft_from_schedule", "e2e_from_schedule", "queue_wait", "send_lag"} & set(found)
    assert found["ttft"] == pytest.approx(0.2)


def test_without_usage_what_is_per_token_is_unknown_and_the_tokenizer_stands_in_for_rates_alone():
    sample = answered(output_tokens=None, output_tokens_by_tokenizer=12)
    assert not {"tpot", "itl", "output_tokens", "output_tokens_per_s_per_user"} & {name for name, _ in values(sample)}
    assert sample.tokens == 12
    assert answered(output_tokens_by_tokenizer=12).tokens == 11


@pytest.mark.parametrize(
    "changes",
    [{"output_tokens": 1}, {"output_tokens": 0}, {"output_tokens": 4, "first_chunk_tokens": 4}, {"chunks": 1}],
)
def test_one_token_or_chunk_has_no_time_between(changes):
    assert answered(**changes).value("tpot") is None


def test_a_first_chunk_of_unknown_size_is_taken_as_one_token():
    assert answered(first_chunk_tokens=None).value("tpot") == answered(first_chunk_tokens=1).value("tpot")


def test_an_answer_in_one_piece_ends_end_to_end_at_its_end():
    sample = answered(first_content=None, first_text=None, last_content=None, chunks=0)
    assert sample.value("e2e") == pytest.approx(0.6)
    assert sample.value("ttft") is None


def test_reasoning_counts_for_ttft_and_not_for_ttfv():
    assert answered(first_text=None).value("ttfv") is None
    assert answered(first_text=None).value("ttft") == pytest.approx(0.3)


def test_waiting_for_limits_and_retries_are_no_lag_of_the_client():
    assert answered(limiter_wait_s=0.6).value("send_lag") == 0
    assert answered(attempts=2).value("send_lag") is None
    assert answered(attempts=2).value("queue_wait") == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("sample", "ending"),
    [
        (answered(), "succeeded"),
        (failed(1), "failed"),
        (failed(1, fault=None), "failed"),
        (failed(1, fault="rate_limited"), "throttled"),
        (failed(1, fault="slow_down"), "throttled"),
        (failed(1, fault="overloaded"), "failed"),
        (at(1, end=None, ok=False), "in_flight"),
        (RequestSample(scheduled=1.0), "dropped"),
        (RequestSample(scheduled=1.0, waiting=True), "waiting"),
        (RequestSample(scheduled=1.0, fault="never_fits"), "dropped"),
    ],
)
def test_every_request_ends_as_one_thing(sample, ending):
    assert sample.ending == ending


def test_throttled_are_kinds_of_fault():
    assert {kind.value for kind in FaultKind} > THROTTLED


@pytest.mark.parametrize(
    ("changes", "due"),
    [
        ({}, 9.5),
        ({"scheduled": None}, 10.0),
        ({"scheduled": None, "sent": None}, 9.9),
        ({"sent": None}, 9.5),
        ({"scheduled": None, "sent": None, "admitted": None, "asked": 9.7}, 9.7),
    ],
)
def test_a_request_is_due_when_scheduled_in_a_closed_loop_when_sent(changes, due):
    assert answered(**changes).due == due
