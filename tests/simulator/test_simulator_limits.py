"""RPM and TPM as a client meets them: 429, Retry-After, x-ratelimit headers, charged before the answer."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace

import orjson
import pytest

from runner.simulator import Ledger, running_app
from runner.simulator.asked import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES
from runner.simulator.faults import NAMES
from runner.simulator.plan import charge, plan
from tests.simulator.simulator_client import FAST, Clock, chat, post
from tests.simulator.simulator_reference import BODIES, DELIVERIES, rehearse

GO_DURATION = re.compile(r"(\d+h)?(\d+m)?(\d+(\.\d+)?s)|\d+ms|0s")
NAMES_OF_SIX = {
    f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining", "reset") for kind in ("requests", "tokens")
}


def limited(rpm=None, tpm=None):
    clock = Clock()
    return replace(FAST, rpm=rpm, tpm=tpm), Ledger(clock=clock), clock


def rates(raw):
    return {name.removeprefix("x-ratelimit-"): v for name, v in raw.headers.items() if name.startswith("x-ratelimit-")}


@pytest.mark.parametrize(("endpoint", "stream"), DELIVERIES)
async def test_every_answer_carries_the_six_headers_before_its_body(endpoint, stream):
    profile, ledger, _ = limited(rpm=600, tpm=60_000)
    path, body = BODIES[endpoint]
    async with running_app(profile, ledger) as url:
        raw = await post(url, path, {**body, "stream": stream})
        broken = await post(url, path, rehearse("empty_200", body, stream))
        refused = await post(url, path, rehearse("http_500", body, stream))
    for one in (raw, broken, refused):
        assert set(one.headers) >= NAMES_OF_SIX
        assert all(GO_DURATION.fullmatch(v) for name, v in rates(one).items() if name.startswith("reset"))
    assert (rates(raw)["limit-requests"], rates(raw)["remaining-requests"]) == ("600", "599")
    # failed requests count
    assert rates(refused)["remaining-requests"] == "597"


async def test_one_second_of_requests_goes_through_and_the_next_is_told_exactly_when_to_come_back():
    profile, ledger, clock = limited(rpm=120, tpm=600_000)
    async with running_app(profile, ledger) as url:
        first = [await post(url, "/chat/completions", chat(str(number))) for number in range(2)]
        refused = await post(url, "/chat/completions", chat("third"))
        assert [raw.status for raw in first] == [200, 200]
        assert (refused.status, refused.headers["retry-after"], refused.headers["retry-after-ms"]) == (429, "1", "500")
        error = orjson.loads(refused.body)["error"]
        assert (error["type"], error["code"]) == ("requests", "rate_limit_exceeded")
        assert "Please try again in 500ms" in error["message"]
        assert (rates(refused)["remaining-requests"], rates(refused)["reset-requests"]) == ("0", "1s")
        clock.now_s += 0.499
        assert (await post(url, "/chat/completions", chat("too early"))).status == 429
        clock.now_s += 0.001
        assert (await post(url, "/chat/completions", chat("in time"))).status == 200
    assert ledger.by_status == {"200": 3, "429": 2}


async def test_tokens_are_charged_up_front_and_never_given_back():
    profile, ledger, clock = limited(tpm=60_000)
    async with running_app(profile, ledger) as url:
        raw = await post(url, "/chat/completions", chat("hello", max_tokens=900))
        spent = 2 + 3 + 900  # the prompt, its message, its maximum: not what the answer then has
        assert orjson.loads(raw.body)["usage"]["completion_tokens"] < 100
        assert rates(raw)["remaining-tokens"] == str(60_000 - spent)
        assert rates(raw)["reset-tokens"] == f"{spent}ms"
        refused = await post(url, "/chat/completions", chat("hello", max_tokens=900))
        assert refused.headers["retry-after-ms"] == str(2 * spent - 1_000)
        assert orjson.loads(refused.body)["error"]["type"] == "tokens"
        clock.now_s += (2 * spent - 1_000) / 1_000
        assert (await post(url, "/chat/completions", chat("hello", max_tokens=900))).status == 200


async def test_a_request_above_the_whole_minute_is_refused_for_good():
    profile, ledger, clock = limited(tpm=1_000)
    async with running_app(profile, ledger) as url:
        for _ in range(2):
            raw = await post(url, "/chat/completions", chat(max_tokens=2_000))
            assert raw.status == 429
            assert "retry-after" not in raw.headers
            assert "Request too large" in orjson.loads(raw.body)["error"]["message"]
            clock.now_s += 3_600


@pytest.mark.parametrize(
    ("api", "body", "tokens"),
    [
        (CHAT, chat("12345678"), 2 + 3 + 40),
        (CHAT, chat("12345678", max_completion_tokens=7, n=3), 2 + 3 + 21),
        (CHAT, chat("12345678", max_tokens=5), 2 + 3 + 5),
        (RESPONSES, {"model": "m", "input": "12345678", "instructions": "1234", "max_output_tokens": 9}, 3 + 3 + 9),
        (COMPLETIONS, {"model": "m", "prompt": ["1234", [1, 2, 3]], "n": 2, "max_tokens": 10}, 1 + 3 + 4 * 10),
        (EMBEDDINGS, {"model": "m", "input": ["1234", "12345678"]}, 3),
    ],
)
def test_a_request_is_charged_its_prompt_and_for_each_choice_its_maximum_or_the_mean(api, body, tokens):
    assert charge(plan(api, body, "0" * 32, FAST, NAMES), FAST) == tokens


async def test_a_crowd_gets_no_more_than_the_burst():
    profile, ledger, _ = limited(rpm=600)
    async with running_app(profile, ledger) as url:
        raws = await asyncio.gather(*(post(url, "/chat/completions", chat(str(number))) for number in range(40)))
    assert sorted(raw.status for raw in raws) == [200] * 10 + [429] * 30


async def test_limits_can_be_changed_while_the_server_runs():
    profile, ledger, _ = limited(rpm=60)
    async with running_app(profile, ledger) as url:
        assert (await post(url, "/chat/completions", chat())).status == 200
        assert (await post(url, "/chat/completions", chat())).status == 429
        root = url.removesuffix("/v1")
        changed = await post(root, "/limits", {"rpm": None, "tpm": 6_000})
        assert (changed.status, orjson.loads(changed.body)) == (200, {"rpm": None, "tpm": 6_000})
        raw = await post(url, "/chat/completions", chat())
        assert raw.status == 200
        assert rates(raw)["limit-tokens"] == "6000"
        assert "limit-requests" not in rates(raw)
        # what isn't named stays
        assert orjson.loads((await post(root, "/limits", {"rpm": 6_000})).body) == {"rpm": 6_000, "tpm": 6_000}
    assert ledger.requests == 3


@pytest.mark.parametrize("body", [{"rpm": 0}, {"rpm": "many"}, {"tpm": -1}, {"rmp": 60}, [], b"{", b"null", b"7"])
async def test_limits_that_are_none_change_nothing(body):
    profile, ledger, _ = limited(rpm=600)
    async with running_app(profile, ledger) as url:
        raw = await post(url.removesuffix("/v1"), "/limits", body)
        assert (raw.status, orjson.loads(raw.body)["error"]["type"]) == (400, "invalid_request_error")
        assert rates(await post(url, "/chat/completions", chat()))["limit-requests"] == "600"


@pytest.mark.parametrize("endpoint", BODIES)
async def test_usage_adds_up_and_is_the_same_streamed_or_not(endpoint):
    path, body = BODIES[endpoint]
    async with running_app(FAST) as url:
        usage = orjson.loads((await post(url, path, body)).body)["usage"]
        streamed = usage
        if endpoint != "embeddings":
            options = {} if endpoint.startswith("responses") else {"stream_options": {"include_usage": True}}
            payloads = (await post(url, path, {**body, "stream": True, **options})).payloads
            last = orjson.loads(payloads[-1] if endpoint.startswith("responses") else payloads[-2])
            streamed = last.get("response", last)["usage"]
    assert usage == streamed
    prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
    output = usage.get("completion_tokens", usage.get("output_tokens", 0))
    assert usage["total_tokens"] == prompt + output
    assert 1 <= prompt <= 200
    assert (1 if endpoint != "embeddings" else 0) <= output <= 200
    details = usage.get("completion_tokens_details", usage.get("output_tokens_details", {}))
    assert 0 <= details.get("reasoning_tokens", 0) <= output
    assert (details.get("reasoning_tokens", 0) > 0) == ("reasoning" in endpoint)
