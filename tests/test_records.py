"""What a line of results.jsonl looks like."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from runner import records
from runner.attempt import Attempted
from runner.faults import Fault, FaultKind
from runner.jobs import Rejected
from runner.outcome import Completed, Failed, Usage
from runner.records import History, Retry
from runner.written import of_any
from tests.scripted import chat_job

BODY = {"id": "c", "model": "m-2026", "choices": []}
DONE = Completed(BODY, "stop", Usage(10, 5, cached_tokens=4, reasoning_tokens=2))


def record(outcome, *, job=None, retries=(), **kwargs) -> Any:
    history = History("m", "http://h/v1", attempts=1 + len(retries), queue_s=1.5, limiter_wait_s=0.25)
    history.started = datetime(2026, 1, 2, tzinfo=UTC)
    history.retries.extend(retries)
    attempted = Attempted(outcome, status=200, request_id="req", ttft_s=0.1, duration_s=1.0, chunks=3)
    attempted.gaps.add(0.4)
    made = records.of_job(job or chat_job(), history, attempted, outcome, **kwargs)
    return orjson.loads(records.record_line(made))


def test_a_success_has_the_batch_shape_and_no_error():
    made = record(DONE)
    assert {"id", "custom_id", "response", "error", "runner"} == made.keys()
    assert made["id"] == made["custom_id"] == "j"
    assert made["response"] == {"status_code": 200, "request_id": "req", "body": BODY}
    assert made["error"] is None


def test_runner_says_how_it_went():
    runner = record(DONE, retries=[Retry(1, "server_error", "boom", 500, "b")], cost=0.5)["runner"]
    assert runner["attempts"] == 2
    assert runner["endpoint"] == "http://h/v1"
    assert runner["model"] == "m-2026"  # the one that answered
    assert runner["started"] == "2026-01-02T00:00:00+00:00"
    assert (runner["queue_s"], runner["limiter_wait_s"], runner["ttft_s"], runner["duration_s"]) == (1.5, 0.25, 0.1, 1)
    assert runner["icl"]["max"] == 0.4
    assert runner["usage"] == {"input_tokens": 10, "cached_tokens": 4, "output_tokens": 5, "reasoning_tokens": 2}
    assert (runner["cost"], runner["finish"], runner["chunks"]) == (0.5, "stop", 3)
    assert runner["retries"] == [
        {"attempt": 1, "reason": "server_error", "message": "boom", "status": 500, "endpoint": "b"}
    ]


def test_a_refused_request_keeps_the_servers_answer_beside_the_error():
    fault = Fault(
        FaultKind.BAD_REQUEST, "no", status=400, server_code="bad", request_id="r", body={"error": {"code": "bad"}}
    )
    made = record(Failed(fault))
    assert made["response"] == {"status_code": 400, "request_id": "r", "body": {"error": {"code": "bad"}}}
    assert made["error"]["code"] == "bad_request"
    assert (made["error"]["status_code"], made["error"]["server_code"]) == (400, "bad")


def test_a_cut_stream_keeps_its_partial_text_and_has_no_response():
    made = record(Failed(Fault(FaultKind.TRUNCATED, "cut"), partial=BODY))
    assert made["response"] is None
    assert made["error"]["partial"] == BODY
    assert made["runner"]["finish"] is None


def test_an_unwanted_finish_is_an_error_that_keeps_the_answer():
    made = record(DONE, unwanted=Fault(FaultKind.UNWANTED_FINISH, "length"))
    assert made["error"]["code"] == "unwanted_finish"
    assert made["response"]["body"] == BODY


def test_metadata_is_copied_whatever_it_is():
    values: tuple[Any, ...] = ({"a": [1]}, "text", 0, False, [])
    for metadata in values:
        assert record(DONE, job=chat_job(metadata=metadata))["metadata"] == metadata
    assert "metadata" not in record(DONE)


def test_a_rejected_line_names_its_reason_and_was_never_sent():
    rejected = Rejected(id="line-1", custom_id=None, line=7, code="bad_json", reason="f:7: it isn't JSON")
    made = records.of_rejected(rejected)
    assert made["custom_id"] is None
    assert made["error"] == {"code": "bad_json", "message": "f:7: it isn't JSON", "line": 7}
    assert made["runner"]["attempts"] == 0


@pytest.mark.parametrize(
    "outcome",
    [DONE, Failed(Fault(FaultKind.TRUNCATED, "cut")), Failed(Fault(FaultKind.NEVER_FITS, "too big"))],
    ids=["success", "failure", "never sent"],
)
def test_what_counts_is_read_back_from_the_record(outcome):
    counted = of_any(record(outcome))
    assert (counted.error is None) == isinstance(outcome, Completed)
    assert counted.runner.chunks == 3
    assert counted.runner.icl is not None
    assert counted.runner.icl.max == 0.4


@pytest.mark.parametrize("wrong", [{}, {"error": None}, {"error": 3, "runner": {}}, {"runner": []}])
def test_what_is_no_record_is_said_to_be_none(wrong):
    with pytest.raises(ValueError, match="not a record"):
        of_any(wrong)
