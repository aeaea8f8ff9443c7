"""Scenarios that aren't a 200: status, error object, Retry-After and Location, on every endpoint."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

import orjson
import pytest

from runner.simulator import SCENARIOS, Ledger, running_app
from runner.simulator.scenarios.refused import STATUSES
from tests.simulator.simulator_client import FAST, chat, post
from tests.simulator.simulator_reference import BODIES, DELIVERIES, rehearse

CODES = {
    "slow_down": (429, "slow_down"),
    "overloaded": (503, "server_is_overloaded"),
    "insufficient_quota": (429, "insufficient_quota"),
    "context_length": (400, "context_length_exceeded"),
    "echo_key_401": (401, "invalid_api_key"),
    **{f"http_{status}": (status, words.code) for status, words in STATUSES.items()},
    **{name: (429, "rate_limit_exceeded") for name in SCENARIOS if name.startswith("retry_after_")},
}
PROXIES = {"http_502", "http_504"}


async def ask(name, **more):
    async with running_app(FAST) as url:
        return await post(url, "/chat/completions", rehearse(name, chat(), **more))


def retry_headers(raw):
    return {name: value for name, value in raw.headers.items() if name.startswith("retry-after")}


@pytest.mark.parametrize("name", CODES)
async def test_a_refusal_has_its_status_and_code_however_it_is_asked(name):
    status, code = CODES[name]
    async with running_app(FAST) as url:
        for endpoint, stream in DELIVERIES:
            path, body = BODIES[endpoint]
            raw = await post(url, path, rehearse(name, body, stream))
            assert (raw.status, raw.ending) == (status, "whole")
            assert raw.headers["x-request-id"].startswith("req_")
            if name in PROXIES:
                assert raw.headers["content-type"] == "text/html"
                assert raw.body.startswith(b"<html>")
            else:
                assert raw.headers["content-type"] == "application/json"
                error = orjson.loads(raw.body)["error"]
                assert set(error) == {"message", "type", "param", "code"}
                assert error["code"] == code
                assert error["message"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("none", None), ("zero", "0"), ("negative", "-1"), ("huge", "1e9")),
        *(("inf", "inf"), ("nan", "nan"), ("broken", "soon")),
    ],
)
async def test_retry_after_is_what_the_scenario_says(name, value):
    assert retry_headers(await ask(f"retry_after_{name}")) == ({} if value is None else {"retry-after": value})


@pytest.mark.parametrize(("name", "sign"), [("past", -1), ("future", 1)])
async def test_retry_after_can_be_a_date(name, sign):
    date = retry_headers(await ask(f"retry_after_{name}"))["retry-after"]
    assert date.endswith(" GMT")
    assert (parsedate_to_datetime(date).timestamp() - time.time()) * sign > 3_000


async def test_a_429_says_how_long_to_wait_rounded_up_and_as_the_request_wishes():
    assert retry_headers(await ask("http_429")) == {"retry-after": "1", "retry-after-ms": "100"}
    asked = rehearse("slow_down", chat(), retry_after_s=2.0004)
    async with running_app(FAST) as url:
        assert retry_headers(await post(url, "/chat/completions", asked)) == {
            "retry-after": "3",
            "retry-after-ms": "2001",
        }


async def test_an_empty_account_and_a_plain_error_name_no_time_to_come_back():
    assert retry_headers(await ask("insufficient_quota")) == {}
    assert retry_headers(await ask("http_503")) == {}
    assert retry_headers(await ask("http_503", retry_after_s=1)) == {"retry-after": "1", "retry-after-ms": "1000"}


@pytest.mark.parametrize("status", [302, 307])
async def test_a_redirect_leads_to_where_following_it_is_counted(status):
    ledger = Ledger()
    async with running_app(FAST, ledger) as url:
        for endpoint, stream in DELIVERIES:
            path, body = BODIES[endpoint]
            raw = await post(url, path, rehearse(f"redirect_{status}", body, stream))
            assert (raw.status, raw.headers["location"]) == (status, url.removesuffix("/v1") + "/redirected")
        assert ledger.by_endpoint["/redirected"] == 0
        followed = await post(url.removesuffix("/v1"), "/redirected", chat())
    assert orjson.loads(followed.body)["choices"][0]["finish_reason"] == "stop"
    assert ledger.by_endpoint["/redirected"] == 1


async def test_the_key_that_was_sent_comes_back_in_the_message_and_nowhere_else():
    async with running_app(FAST) as url:
        for name in SCENARIOS.keys() - {"slow_headers", "stall_first", "stall_mid", "comments_forever", "endless"}:
            body = rehearse(name, chat(), tokens=1) | {"max_tokens": 1}
            if name == "one_byte_per_s":
                continue
            raw = await post(url, "/chat/completions", body, ["authorization: Bearer sk-canary-000000000"])
            assert (b"sk-canary-000000000" in raw.body) == (name == "echo_key_401")
            assert "canary" not in str(raw.headers)
