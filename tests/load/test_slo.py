from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import UsageError
from runner.load.slo import NAMES, Slo, parse_slo
from runner.sketch import Sketch
from tests.load.answers import answered, sketch


def test_an_slo_is_read_as_users_write_it():
    found = parse_slo("ttft=500ms, ITL = 50ms,e2e=10s,tpot=0.04s,ttfv=1m,icl=500us")
    assert found.limits == pytest.approx({"ttft": 0.5, "itl": 0.05, "e2e": 10, "tpot": 0.04, "ttfv": 60, "icl": 0.0005})
    assert Slo({"ttft": 0.5, "e2e": 10}).describe() == "ttft ≤ 500 ms, e2e ≤ 10 s"
    assert parse_slo("e2el=1s").limits == {"e2e": 1}


@pytest.mark.parametrize(
    "text",
    [
        *("", "ttft", "ttft=", "ttft=500", "ttft=5h", "ttft=-1s", "ttft=nan", "ttft=infs", "ttft=1s,", "ttft=1e3s"),
        *("output_tokens=5s", "goodput=1s", "ttft=1s,ttft=2s", "e2e=1s,e2el=1s", "ttft<1s"),
    ],
)
def test_what_is_no_slo_is_refused(text):
    with pytest.raises(UsageError, match="SLO"):
        parse_slo(text)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ttft", 0.3),
        ("ttft_from_schedule", 0.8),
        ("ttfv", 0.4),
        ("tpot", 0.02),
        ("itl", 0.02),
        ("icl", 0.02),
        ("e2e", 0.5),
        ("e2e_from_schedule", 1.0),
        ("queue_wait", 0.5),
        ("send_lag", 0.5),
        ("limiter_wait", 0.0),
    ],
)
def test_a_limit_is_kept_by_what_is_at_or_below_it(name, value):
    assert name in NAMES
    assert Slo({name: value * 1.02}).judge(answered()) == "kept"
    if value:
        assert Slo({name: value * 0.97}).judge(answered()) == "missed"


def test_every_limit_must_be_kept():
    assert Slo({"ttft": 1, "e2e": 0.1}).judge(answered()) == "missed"
    assert Slo({"ttft": 1, "e2e": 1}).judge(answered()) == "kept"


@pytest.mark.parametrize(
    "changes",
    [
        {"ok": False, "fault": "rate_limited"},
        {"ok": False, "fault": "truncated"},
        {"ok": False, "end": None},
        {"sent": None, "ok": False},
    ],
)
def test_what_did_not_succeed_keeps_nothing_however_fast_it_failed(changes):
    assert Slo({"e2e": 100}).judge(answered(**changes)) == "missed"


def test_what_can_not_be_judged_is_unknown_unless_something_else_is_missed():
    without_usage = answered(output_tokens=None)
    assert Slo({"tpot": 1}).judge(without_usage) == "unknown"
    assert Slo({"tpot": 1, "ttft": 1}).judge(without_usage) == "unknown"
    assert Slo({"tpot": 1, "ttft": 0.1}).judge(without_usage) == "missed"
    whole = answered(first_content=None, last_content=None, chunks=0, gaps=Sketch())
    assert Slo({"ttft": 1}).judge(whole) == "unknown"
    assert Slo({"e2e": 1}).judge(whole) == "kept"


@pytest.mark.parametrize("name", ["tpot", "itl", "icl"])
def test_an_answer_of_one_piece_keeps_every_limit_on_gaps(name):
    assert Slo({name: 1e-9}).judge(answered(chunks=1, gaps=Sketch())) == "kept"
    assert Slo({name: 1e-9}).judge(answered(output_tokens=1, chunks=0, gaps=Sketch())) == "kept"


@pytest.mark.parametrize(("name", "judgement"), [("tpot", "unknown"), ("itl", "unknown"), ("icl", "missed")])
def test_a_server_that_counts_one_token_in_many_chunks_keeps_no_limit_on_gaps_by_that(name, judgement):
    assert Slo({name: 1e-9}).judge(answered(output_tokens=1)) == judgement


@pytest.mark.parametrize(
    ("good", "bad", "judgement"), [(98, 1, "missed"), (99, 1, "kept"), (198, 2, "kept"), (197, 2, "missed")]
)
def test_one_gap_in_a_hundred_may_be_longer(good, bad, judgement):
    gaps = sketch(*[0.02] * good, *[5.0] * bad)
    assert Slo({"icl": 0.05}).judge(answered(gaps=gaps)) == judgement


@given(st.floats(0, 1e3), st.floats(0, 1e3))
def test_a_wider_limit_is_never_harder_to_keep(limit, more):
    if Slo({"ttft": limit}).judge(answered()) == "kept":
        assert Slo({"ttft": limit + more}).judge(answered()) == "kept"
