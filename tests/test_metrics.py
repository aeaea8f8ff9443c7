from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import totals
from runner.admission import AdmissionStatistics
from runner.limits import MAX_COUNTED_NAMES
from runner.metrics import RunMetrics
from runner.totals import Tally
from runner.written import of_any, of_record


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def metrics(total=None):
    clock = Clock()
    return RunMetrics(clock, total=total), clock


def record(error=None, **runner):
    return {"id": "a", "error": error, "runner": {"digest": None, **runner}}


def test_a_rate_is_that_of_the_last_ten_seconds():
    run, clock = metrics()
    for _ in range(100):
        clock.now += 0.1
        for _ in range(5):
            run.chunks += 1
    assert run.snapshot(AdmissionStatistics()).chunks_per_s == pytest.approx(50, rel=0.05)
    clock.now += 60
    assert run.snapshot(AdmissionStatistics()).chunks_per_s == 0


def test_live_tokens_follow_the_tokens_a_chunk_carried():
    run, clock = metrics()
    clock.now += 1
    for _ in range(10):
        run.chunks += 1
    run.record(record(usage={"output_tokens": 40}, chunks=10))
    clock.now += 9
    now = run.snapshot(AdmissionStatistics())
    assert now.tokens_per_s == pytest.approx(4 * now.chunks_per_s)


def test_eta_is_unknown_until_something_finished_and_for_stdin():
    run, clock = metrics(total=10)
    clock.now += 10
    assert run.snapshot(AdmissionStatistics()).eta_s is None
    run.record(record())
    assert run.snapshot(AdmissionStatistics()).eta_s == pytest.approx(90, rel=0.1)
    unknown, _ = metrics(total=None)
    unknown.record(record())
    assert unknown.snapshot(AdmissionStatistics()).eta_s is None


def test_resumed_jobs_are_done_but_not_this_runs():
    run, clock = metrics(total=4)
    run.skipped()
    run.record(record({"code": "truncated"}, attempts=5))
    clock.now += 1
    now = run.snapshot(AdmissionStatistics(in_flight=1))
    assert (now.done, now.succeeded, now.failed, now.resumed) == (2, 0, 1, 1)
    assert now.errors == {"truncated": 1}


def test_names_that_a_server_invents_do_not_fill_memory():
    tally = Tally()
    for i in range(MAX_COUNTED_NAMES + 1000):
        tally.note(f"code-{i}")
    assert len(tally) == MAX_COUNTED_NAMES + 1
    assert tally["other"] == 1000


@given(st.lists(st.sampled_from([f"code-{i}" for i in range(8)] + ["other"]), max_size=40))
def test_names_noted_together_are_those_noted_one_by_one(names):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(totals, "MAX_COUNTED_NAMES", 4)
        together, each = Tally({"code-3": 1}), Tally({"code-3": 1})
        together.note_all(names)
        for name in names:
            each.note(name)
    assert list(together.items()) == list(each.items())


@pytest.mark.parametrize("junk", [None, "x", [], {}, True, -1, 10**400])
def test_a_field_of_the_wrong_type_is_unknown_not_an_error(junk):
    runner: dict[str, Any] = dict.fromkeys(("usage", "finish", "retries", "chunks", "icl", "attempts", "line"), junk)
    found = of_any({"error": None, "runner": runner})
    assert found.error is None
    assert found.runner.usage is None or found.runner.usage.input_tokens is None
    assert of_record({"id": "a", "error": None, "runner": {"digest": None, **runner}}).runner == found.runner


def test_what_limits_the_run_is_what_the_first_in_line_waits_for():
    run, clock = metrics()
    blocked = {"requests": 100.0, "tokens": 0.0}
    found = []
    for _ in range(30):
        clock.now += 1
        blocked["tokens"] += 0.9
        found.append(run.snapshot(AdmissionStatistics(blocked_s=blocked)).limited_by)
    assert found == [None] + ["tokens"] * 29
    for _ in range(30):
        clock.now += 1
        blocked["tokens"] += 0.05
        found.append(run.snapshot(AdmissionStatistics(blocked_s=blocked)).limited_by)
    assert found[-1] is None
