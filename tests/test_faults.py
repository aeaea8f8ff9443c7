from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import faults
from runner.faults import TABLE, Fault, FaultKind
from runner.limits import MAX_ERROR_TEXT_CHARS, MAX_RETRY_AFTER_S

NOW = 1_700_000_000.0


def kind_of(status, code=None, type_=None, **headers):
    body = {"error": {"message": "m", "code": code, "type": type_}}
    return faults.from_status(status, headers, body, NOW).kind


def test_every_kind_has_a_row():
    assert set(TABLE) == set(FaultKind)
    assert all(not (row.retry and row.stops_run) for row in TABLE.values())


@pytest.mark.parametrize(
    ("status", "code", "type_", "kind"),
    [
        (429, "rate_limit_exceeded", "tokens", FaultKind.RATE_LIMITED),
        (429, None, None, FaultKind.RATE_LIMITED),
        (429, "slow_down", None, FaultKind.SLOW_DOWN),
        (429, None, "insufficient_quota", FaultKind.QUOTA),
        (429, "insufficient_quota", "insufficient_quota", FaultKind.QUOTA),
        (429, "credit_balance_exhausted", None, FaultKind.QUOTA),
        (429, "project_spend_limit_exceeded", None, FaultKind.QUOTA),
        (429, "org_usage_limit_exceeded", None, FaultKind.QUOTA),
        (429, "resource_unavailable", None, FaultKind.CAPACITY),
        (503, "server_is_overloaded", None, FaultKind.OVERLOADED),
        (503, "slow_down", None, FaultKind.SLOW_DOWN),
        (503, None, None, FaultKind.SERVER_ERROR),
        (529, None, None, FaultKind.OVERLOADED),
        (500, "invalid_request_error", None, FaultKind.SERVER_ERROR),
        (599, None, None, FaultKind.SERVER_ERROR),
        (408, None, None, FaultKind.TRY_AGAIN),
        (409, None, None, FaultKind.TRY_AGAIN),
        (425, None, None, FaultKind.TRY_AGAIN),
        (400, "context_length_exceeded", "invalid_request_error", FaultKind.BAD_REQUEST),
        (400, "rate_limit_exceeded", None, FaultKind.BAD_REQUEST),
        (404, "model_not_found", None, FaultKind.BAD_REQUEST),
        (413, None, None, FaultKind.BAD_REQUEST),
        (422, None, None, FaultKind.BAD_REQUEST),
        (418, None, None, FaultKind.BAD_REQUEST),
        (401, "invalid_api_key", None, FaultKind.AUTH),
        (402, None, None, FaultKind.QUOTA),
        (402, "invalid_request_error", None, FaultKind.QUOTA),
        (403, "rate_limit_exceeded", None, FaultKind.AUTH),
        (307, None, None, FaultKind.REDIRECT),
        (302, "server_error", None, FaultKind.REDIRECT),
    ],
)
def test_status_and_code_name_the_kind(status, code, type_, kind):
    assert kind_of(status, code, type_) is kind


def test_a_message_about_quota_does_not_make_it_quota():
    body = {"error": {"message": "insufficient_quota", "code": "rate_limit_exceeded"}}
    assert faults.from_status(429, {}, body, NOW).kind is FaultKind.RATE_LIMITED


def test_an_error_in_a_list_says_what_was_wrong():
    body = [{"error": {"code": 400, "message": "API key not valid", "status": "INVALID_ARGUMENT"}}]
    assert faults.from_status(400, {}, body, NOW).message == "API key not valid"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"error": {"code": "rate_limit_exceeded"}}, FaultKind.RATE_LIMITED),
        ({"error": {"type": "server_error"}}, FaultKind.SERVER_ERROR),
        ({"type": "error", "code": "server_error", "message": "m"}, FaultKind.SERVER_ERROR),
        ({"type": "error", "code": "insufficient_quota"}, FaultKind.QUOTA),
        ({"code": "invalid_prompt", "message": "m"}, FaultKind.BAD_REQUEST),
        ({"code": 429, "message": "m"}, FaultKind.RATE_LIMITED),
        ({"error": {"code": 400}}, FaultKind.BAD_REQUEST),
        ({"error": "it broke"}, FaultKind.SERVER_ERROR),
        ([{"error": {"code": 429}}], FaultKind.RATE_LIMITED),
        (None, FaultKind.SERVER_ERROR),
        ("text", FaultKind.SERVER_ERROR),
    ],
)
def test_the_same_codes_count_inside_a_200_stream(error, kind):
    assert faults.from_in_stream(error).kind is kind


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "-1"}, 0.0),
        ({"retry-after": "1e9"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "-inf"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Tue, 99 Foo 2023"}, None),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "9"}, 9.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:25 GMT"}, 5.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:15 GMT"}, 0.0),
        ({"retry-after": "Fri, 14 Nov 2400 22:13:15 GMT"}, None),
        ({"retry-after": "Tue, 14 Nov 2023 22:13:25 GMT", "date": "Tue, 14 Nov 2023 22:13:24 GMT"}, 1.0),
    ],
)
def test_retry_after_is_read_and_clamped(headers, seconds):
    assert faults.retry_after(headers, NOW) == seconds


@pytest.mark.parametrize(
    "date",
    [
        "Tue, 14 Nov 2023 22:14:20 GMT",
        "Tuesday, 14-Nov-23 22:14:20 GMT",
        "Tue Nov 14 22:14:20 2023",
        "Tue, 14 Nov 2023 22:14:20 -0000",
        "Tue, 14 Nov 2023 17:14:20 -0500",
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"])
def test_a_date_means_the_same_wherever_the_runner_runs(monkeypatch, date, zone):
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert faults.retry_after({"retry-after": date}, NOW) == 60
    finally:
        monkeypatch.undo()
        time.tzset()


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "date"]), st.text()))
def test_no_header_gives_an_unbounded_wait_or_an_exception(headers):
    wait = faults.retry_after(headers, NOW)
    assert wait is None or (0 <= wait <= MAX_RETRY_AFTER_S and math.isfinite(wait))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["error", "code", "type", "message", "x"]), inner),
    max_leaves=10,
)


@given(st.integers(300, 999), json_values)
def test_any_error_body_becomes_a_fault_with_a_bounded_message(status, body):
    fault = faults.from_status(status, {}, body, NOW)
    assert isinstance(fault, Fault)
    assert len(fault.message) <= MAX_ERROR_TEXT_CHARS
    assert isinstance(faults.from_in_stream(body), Fault)


def test_the_servers_own_word_on_retrying_outranks_the_table_but_never_saves_a_fatal_one():
    assert not faults.from_status(500, {"x-should-retry": "false"}, None, NOW).retry
    assert faults.from_status(400, {"x-should-retry": "true"}, None, NOW).retry
    assert not faults.from_status(401, {"x-should-retry": "true"}, None, NOW).retry
    assert faults.from_status(500, {"x-should-retry": "perhaps"}, None, NOW).retry
