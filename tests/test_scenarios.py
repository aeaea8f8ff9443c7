"""Every scenario of the simulator, over a real socket and the real client → how the attempt must end. One table."""

from __future__ import annotations

import resource
from functools import partial
from typing import Any

import aiohttp
import anyio
import orjson
import pytest

from runner.attempt import run_attempt
from runner.client import Client
from runner.deadlines import Deadlines
from runner.faults import FaultKind
from runner.jobs import Api, Job
from runner.outcome import Completed, Failed
from runner.simulator import SCENARIOS, expected_text
from tests.scripted import ListSink, chat_job

SHORT = Deadlines(first_token_s=0.5, idle_s=0.5, total_s=2.5)
"""For what must run into one of them. A loaded machine may be slow in everything else."""
LONG = Deadlines(first_token_s=60, idle_s=60, total_s=60)
TIMEOUTS = {FaultKind.FIRST_TOKEN_TIMEOUT, FaultKind.IDLE_TIMEOUT, FaultKind.TOTAL_TIMEOUT}
OK = None

ENDINGS: dict[str, FaultKind | None] = {
    "http_400": FaultKind.BAD_REQUEST,
    "http_401": FaultKind.AUTH,
    "http_403": FaultKind.AUTH,
    "http_404": FaultKind.BAD_REQUEST,
    "http_408": FaultKind.TRY_AGAIN,
    "http_409": FaultKind.TRY_AGAIN,
    "http_422": FaultKind.BAD_REQUEST,
    "http_425": FaultKind.TRY_AGAIN,
    "http_429": FaultKind.RATE_LIMITED,
    "http_500": FaultKind.SERVER_ERROR,
    "http_502": FaultKind.SERVER_ERROR,
    "http_503": FaultKind.SERVER_ERROR,
    "http_504": FaultKind.SERVER_ERROR,
    "http_529": FaultKind.OVERLOADED,
    "slow_down": FaultKind.SLOW_DOWN,
    "overloaded": FaultKind.OVERLOADED,
    "insufficient_quota": FaultKind.QUOTA,
    "context_length": FaultKind.BAD_REQUEST,
    "redirect_307": FaultKind.REDIRECT,
    "redirect_302": FaultKind.REDIRECT,
    "retry_after_none": FaultKind.RATE_LIMITED,
    "retry_after_zero": FaultKind.RATE_LIMITED,
    "retry_after_negative": FaultKind.RATE_LIMITED,
    "retry_after_huge": FaultKind.RATE_LIMITED,
    "retry_after_inf": FaultKind.RATE_LIMITED,
    "retry_after_nan": FaultKind.RATE_LIMITED,
    "retry_after_past": FaultKind.RATE_LIMITED,
    "retry_after_future": FaultKind.RATE_LIMITED,
    "retry_after_broken": FaultKind.RATE_LIMITED,
    "echo_key_401": FaultKind.AUTH,
    "reset_before_headers": FaultKind.BROKEN,
    "reset_mid_stream": FaultKind.BROKEN,
    "fin_mid_stream": FaultKind.TRUNCATED,
    "cut_chunk": FaultKind.BROKEN,
    "half_event": FaultKind.TRUNCATED,
    "half_utf8": FaultKind.TRUNCATED,
    "no_finish": FaultKind.TRUNCATED,
    "done_without_finish": FaultKind.TRUNCATED,
    "finish_without_done": OK,
    "html_200": FaultKind.WRONG_CONTENT,
    "json_error_200": FaultKind.SERVER_ERROR,
    "empty_200": FaultKind.TRUNCATED,
    "wrong_content_type": FaultKind.WRONG_CONTENT,
    "gzip_200": FaultKind.WRONG_CONTENT,
    "gzip_bomb": FaultKind.WRONG_CONTENT,
    "split_bytes": OK,
    "coalesced": OK,
    "in_stream_error": FaultKind.SERVER_ERROR,
    "in_stream_rate_limit": FaultKind.RATE_LIMITED,
    "error_event": FaultKind.SERVER_ERROR,
    "response_failed": FaultKind.SERVER_ERROR,
    "response_incomplete": OK,
    "bad_json": FaultKind.MALFORMED,
    "bad_utf8": FaultKind.MALFORMED,
    "null_chunk": FaultKind.MALFORMED,
    "list_chunk": FaultKind.MALFORMED,
    "wrong_types": FaultKind.MALFORMED,
    "nan_usage": OK,  # the answer is whole; what it cost is unknown
    "unknown_fields": OK,
    "huge_line": FaultKind.TOO_LARGE,
    "endless": FaultKind.TOTAL_TIMEOUT,
    "empty_deltas": OK,
    "slow_headers": FaultKind.FIRST_TOKEN_TIMEOUT,
    "stall_first": FaultKind.FIRST_TOKEN_TIMEOUT,
    "stall_mid": FaultKind.IDLE_TIMEOUT,
    "comments_forever": FaultKind.FIRST_TOKEN_TIMEOUT,
    "one_byte_per_s": FaultKind.FIRST_TOKEN_TIMEOUT,
}
SIZES = {"huge_line": {"bytes": 40_000_000}, "gzip_bomb": {"bytes": 100_000_000}, "empty_deltas": {"count": 20_000}}


def test_the_table_has_every_scenario():
    assert ENDINGS.keys() == SCENARIOS.keys()


def job_of(api: Api, name: str, *, stream: bool = True) -> Job:
    body: dict[str, Any] = {"model": "synthetic-1", "simulate": {"fault": name, **SIZES.get(name, {})}}
    if api is Api.RESPONSES:
        body["input"] = "Say something."
    else:
        body["messages"] = [{"role": "user", "content": "Say something."}]
    return chat_job(api=api, body=body, stream=stream)


async def attempt(base_url, job, *, deadlines=LONG, key="sk-canary-0123456789", transport="native"):
    client = Client(base_url=base_url, api_key=key, trust_env=False, transport=transport)
    sink = ListSink()
    try:
        content = orjson.dumps({**job.body, "stream": job.stream})
        attempted = await run_attempt(
            client, job, content, choices=1, deadlines=deadlines, sink=sink, on_headers=lambda response: None
        )
    finally:
        await client.aclose()
    return attempted, sink


def text_of(api: Api, body: dict[str, Any]) -> str:
    if api is Api.CHAT:
        return body["choices"][0]["message"]["content"]
    parts = [part for item in body["output"] if item["type"] == "message" for part in item["content"]]
    return "".join(part["text"] for part in parts)


@pytest.fixture
def base_url(simulator):
    return simulator.base_url


@pytest.mark.parametrize("api", [Api.CHAT, Api.RESPONSES], ids=["chat", "responses"])
@pytest.mark.parametrize("name", sorted(ENDINGS))
async def test_a_scenario_ends_as_the_table_says(base_url, name, api):
    job = job_of(api, name)
    attempted, _ = await attempt(base_url, job, deadlines=SHORT if ENDINGS[name] in TIMEOUTS else LONG)
    outcome = attempted.outcome
    if ENDINGS[name] is OK:
        assert isinstance(outcome, Completed), outcome
        if name != "response_incomplete":
            assert text_of(api, outcome.body) == expected_text(job.body)
    else:
        assert isinstance(outcome, Failed), outcome
        assert outcome.fault.kind is ENDINGS[name], outcome.fault
    retry_after = None if isinstance(outcome, Completed) else outcome.fault.retry_after_s
    assert retry_after is None or 0 <= retry_after <= 3600


@pytest.mark.parametrize("name", ["endless", "huge_line", "gzip_bomb", "empty_deltas"])
async def test_memory_stays_within_its_bound_whatever_is_sent(base_url, name):
    sizes = {"huge_line": {"bytes": 200_000_000}, "gzip_bomb": {"bytes": 1_200_000_000}}
    body = {"model": "synthetic-1", "messages": [{"role": "user", "content": "x"}]}
    job = chat_job(body={**body, "simulate": {"fault": name, **sizes.get(name, {"count": 50_000})}})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(partial(attempt, base_url, job, deadlines=SHORT if name == "endless" else LONG))
    # endless keeps what it got until its deadline: 8 × what arrives in 2.5 s, far below the bound of a stream.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 160 * 1024


@pytest.mark.parametrize("transport", ["native", "aiohttp"])
async def test_a_redirect_is_not_followed(base_url, transport):
    async with aiohttp.ClientSession() as session:
        stats = f"{base_url.removesuffix('/v1')}/stats"
        for name in ("redirect_302", "redirect_307"):
            attempted, _ = await attempt(base_url, job_of(Api.CHAT, name), transport=transport)
            assert isinstance(attempted.outcome, Failed)
            assert attempted.outcome.fault.kind is FaultKind.REDIRECT
        async with session.get(stats) as response:
            text = (await response.read()).decode()
    assert "/redirected" not in text


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("api", [Api.CHAT, Api.RESPONSES], ids=["chat", "responses"])
async def test_streamed_or_whole_the_body_is_the_same(base_url, api, stream):
    body = {"model": "synthetic-1"} | (
        {"input": "Same."} if api is Api.RESPONSES else {"messages": [{"role": "user", "content": "Same."}]}
    )
    attempted, sink = await attempt(base_url, chat_job(api=api, body=body, stream=stream))
    whole, _ = await attempt(base_url, chat_job(api=api, body=body, stream=False))
    assert isinstance(attempted.outcome, Completed)
    assert isinstance(whole.outcome, Completed)
    volatile = {"id", "created", "created_at", "completed_at", "usage", "output"}
    assert {k: v for k, v in attempted.outcome.body.items() if k not in volatile} == {
        k: v for k, v in whole.outcome.body.items() if k not in volatile
    }
    assert text_of(api, attempted.outcome.body) == text_of(api, whole.outcome.body) == expected_text(body)
    assert bool(sink.deltas) == stream
