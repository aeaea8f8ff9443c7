"""Background responses of the simulator: generated once, whoever listens, and forgotten in the end."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import aiohttp
import openai
import orjson
import pytest

from runner.simulator import Ledger, Profile, background, expected_text, prompt_key, running_app
from runner.simulator.allowance import REQUESTS, Allowance
from tests.simulator.simulator_client import FAST, FLAT_TOOLS, Clock, post, sdk

PACED = replace(FAST, ttft_s=0.02, tokens_per_s=400.0)
BODY = {"model": "m", "input": "a question", "background": True}
STREAMED = BODY | {"stream": True}
NEVER = {"ttft_s": 3_600.0}
FINISHED = ("response.completed", "response.failed", "response.incomplete")


def rehearse(**simulate):
    return {**STREAMED, "simulate": simulate}


def events_of(body: bytes):
    return [orjson.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: ")]


async def get(url, name, **query):
    async with aiohttp.ClientSession() as session, session.get(f"{url}/responses/{name}", params=query) as answer:
        return answer.status, await answer.read()


async def begin(url, body):
    """POSTs, and hangs up as soon as the response has shown its id."""
    async with aiohttp.ClientSession() as session, session.post(f"{url}/responses", json=body) as answer:
        line = b""
        while not line.startswith(b"data: "):
            line = await answer.content.readline()
    return orjson.loads(line[6:])["response"]["id"]


async def until_finished(url, name):
    while (state := orjson.loads((await get(url, name))[1]))["status"] in ("queued", "in_progress"):  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    return state


@pytest.mark.parametrize("more", [
    {},
    {"reasoning": {"effort": "low", "summary": "auto"}},
    {"tools": FLAT_TOOLS, "tool_choice": "required"},
    {"max_output_tokens": 5},
])  # fmt: skip
async def test_behind_any_event_comes_the_rest_of_the_same_stream(more):
    async with running_app(FAST) as url:
        whole = events_of((await post(url, "/responses", STREAMED | more)).body)
        name = whole[0]["response"]["id"]
        assert [event["sequence_number"] for event in whole] == list(range(len(whole)))
        assert whole[-1]["type"] in FINISHED
        assert events_of((await get(url, name, stream="true"))[1]) == whole
        for after in range(len(whole)):
            status, rest = await get(url, name, stream="true", starting_after=after)
            assert (status, events_of(rest)) == (200, whole[after + 1 :])
        assert (await get(url, name, stream="true", starting_after=10**6))[1] == b""
        assert orjson.loads((await get(url, name))[1]) == whole[-1]["response"]


async def test_it_goes_on_when_nobody_listens_and_its_tokens_are_counted_once():
    ledger = Ledger()
    async with running_app(PACED, ledger) as url:
        name = await begin(url, STREAMED)
        state = await until_finished(url, name)
        assert state["status"] == "completed"
        await get(url, name, stream="true")
    assert state["output"][0]["content"][0]["text"] == expected_text(BODY)
    assert ledger.by_endpoint["/responses"] == 1
    assert ledger.by_endpoint["/responses/{id}"] >= 2
    assert sum(entry.tokens for entry in ledger.log) == state["usage"]["output_tokens"]
    assert {entry.key for entry in ledger.log} == {prompt_key(BODY)}


async def test_a_listener_that_comes_back_is_sent_what_it_missed_at_once_and_the_rest_when_it_is_due():
    loop = asyncio.get_running_loop()
    async with running_app(replace(FAST, tokens_per_s=100.0, output_tokens=40)) as url:
        began = loop.time()
        name = await begin(url, STREAMED)
        await asyncio.sleep(0.1)
        _, rest = await get(url, name, stream="true", starting_after=4)
        tokens = events_of(rest)[-1]["response"]["usage"]["output_tokens"]
        # On the schedule of the POST: as if nobody had gone, and no token sooner.
        assert loop.time() - began >= (tokens - 1) / 100


async def test_what_is_not_streamed_is_queued_then_in_progress_then_there():
    async with running_app(PACED) as url:
        first = orjson.loads((await post(url, "/responses", BODY)).body)
        assert (first["status"], first["background"], first["output"], first["usage"]) == ("queued", True, [], None)
        slow = orjson.loads((await post(url, "/responses", {**BODY, "input": "slow", "simulate": NEVER})).body)
        assert orjson.loads((await get(url, slow["id"]))[1])["status"] == "in_progress"
        state = await until_finished(url, first["id"])
        assert state["output"][0]["content"][0]["text"] == expected_text(BODY)
        status, refusal = await get(url, first["id"], stream="true")
        assert (status, orjson.loads(refusal)["error"]["param"]) == (400, "stream")


async def test_each_post_is_a_response_of_its_own_with_the_same_words():
    async with running_app(FAST) as url:
        one, two = [events_of((await post(url, "/responses", STREAMED)).body)[-1]["response"] for _ in range(2)]
    assert one["id"] != two["id"]
    assert one["output"][0]["content"] == two["output"][0]["content"]


async def test_the_apis_own_client_goes_on_and_cancels():
    async with sdk(PACED) as (client, _):
        seen = []
        async for event in await client.responses.create(model="m", input="x", background=True, stream=True):
            seen.append(event)
            if event.sequence_number == 6:
                break
        name = seen[0].response.id
        rest = await client.responses.retrieve(name, stream=True, starting_after=6)
        seen += [event async for event in rest]
        assert [event.sequence_number for event in seen] == list(range(len(seen)))
        assert seen[-1].type == "response.completed"
        with pytest.raises(openai.BadRequestError, match="completed"):
            await client.responses.cancel(name)
        slow = await client.responses.create(model="m", input="y", background=True, extra_body={"simulate": NEVER})
        assert (await client.responses.cancel(slow.id)).status == "cancelled"
        assert (await client.responses.retrieve(slow.id)).status == "cancelled"
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve("resp_unknown")


async def test_a_cancelled_stream_ends_where_it_is():
    async with running_app(replace(FAST, tokens_per_s=20.0)) as url, aiohttp.ClientSession() as session:
        async with session.post(f"{url}/responses", json=rehearse(tokens=1_000)) as answer:
            first = await answer.content.readuntil(b"\n\n")
            name = events_of(first)[0]["response"]["id"]
            await (await session.post(f"{url}/responses/{name}/cancel")).read()
            rest = events_of(await answer.content.read())
        assert not [event for event in rest if event["type"] in FINISHED]


async def test_a_scenario_befalls_each_delivery_and_the_response_goes_on():
    ledger = Ledger()
    async with running_app(FAST, ledger) as url:
        body = rehearse(fault="reset_mid_stream", times=3, after=2)
        first = events_of((await post(url, "/responses", body)).body)
        seen, name = first, first[0]["response"]["id"]
        for _ in range(2):
            with pytest.raises(aiohttp.ClientError):
                await get(url, name, stream="true", starting_after=seen[-1]["sequence_number"])
        rest = events_of((await get(url, name, stream="true", starting_after=seen[-1]["sequence_number"]))[1])
    assert rest[-1]["type"] == "response.completed"
    assert [event["sequence_number"] for event in seen + rest] == list(range(len(seen + rest)))
    assert [entry.fault for entry in ledger.log] == ["reset_mid_stream"] * 3 + [None]


@pytest.mark.parametrize("fault", ["response_failed", "response_incomplete"])
async def test_a_response_that_failed_has_failed_for_everybody(fault):
    ended = fault.replace("_", ".")
    async with running_app(FAST) as url:
        whole = events_of((await post(url, "/responses", rehearse(fault=fault, times=1, after=3))).body)
        name = whole[0]["response"]["id"]
        assert whole[-1]["type"] == ended
        for after in (None, 0, len(whole) - 2):
            query = {} if after is None else {"starting_after": after}
            _, rest = await get(url, name, stream="true", **query)
            assert events_of(rest) == whole[0 if after is None else after + 1 :]
        assert orjson.loads((await get(url, name))[1])["status"] == ended.partition(".")[2]
        plain = {**BODY, "simulate": {"fault": fault, "times": 1}, "input": "another"}
        first = orjson.loads((await post(url, "/responses", plain)).body)
        assert first["status"] == "queued"
        assert (await until_finished(url, first["id"]))["status"] == ended.partition(".")[2]


async def test_it_can_be_streamed_and_had_for_as_long_as_the_request_says():
    async with running_app(FAST) as url:
        name = await begin(url, rehearse(stream_s=0.0))
        assert (await get(url, name, stream="true"))[0] == 400
        assert (await get(url, name))[0] == 200
        name = await begin(url, {**rehearse(expires_s=0.0), "input": "another"})
        assert (await get(url, name))[0] == 404
        assert (await get(url, name, stream="true"))[0] == 404


@pytest.mark.parametrize("after", ["x", "-1", "1.5", "9" * 40, ""])
async def test_a_number_that_is_none_is_a_400(after):
    async with running_app(FAST) as url:
        name = await begin(url, STREAMED)
        status, body = await get(url, name, stream="true", starting_after=after)
        assert (status, orjson.loads(body)["error"]["param"]) == (400, "starting_after")


async def test_a_get_needs_the_key_and_counts_for_the_limits():
    async with running_app(replace(FAST, api_key="sk-right")) as url:
        assert (await get(url, "resp_1"))[0] == 401
    async with running_app(replace(FAST, rpm=60)) as url:
        name = await begin(url, STREAMED)
        assert (await get(url, name))[0] == 429


def test_what_costs_no_tokens_waits_for_no_debt_of_tokens():
    clock = Clock()
    allowance = Allowance(6_000, 600, 1.0, clock)
    assert allowance.take(600) is None
    assert allowance.take(1) is not None
    assert allowance.take(0) is None
    while allowance.take(0) is None:
        pass
    refusal = allowance.take(0)
    assert refusal is not None
    assert refusal.kind == REQUESTS


async def test_the_oldest_are_forgotten_beyond_a_number_and_beyond_their_tokens(monkeypatch):
    async with running_app(FAST) as url:
        monkeypatch.setattr(background, "MAX_RESPONSES", 3)
        names = [await begin(url, {**STREAMED, "input": f"question {i}"}) for i in range(5)]
        assert [(await get(url, name))[0] for name in names] == [404, 404, 200, 200, 200]
        monkeypatch.setattr(background, "MAX_TOKENS", 60)
        large = await begin(url, {**STREAMED, "simulate": {"tokens": 100}})
        assert [(await get(url, name))[0] for name in [*names, large]] == [404] * 5 + [200]


async def test_a_storm_and_a_full_server_hold_for_gets_too():
    async with running_app(Profile(ttft_s=0.0, storm_period_s=1_000.0, storm_s=0.2)) as url:
        assert (await post(url, "/responses", STREAMED)).status == 429
        await asyncio.sleep(0.25)
        name = await begin(url, STREAMED)
    async with running_app(replace(FAST, max_concurrency=1)) as url, aiohttp.ClientSession() as session:
        name = await begin(url, STREAMED)
        stalled = {"model": "m", "input": "x", "stream": True, "simulate": {"fault": "stall_first"}}
        async with session.post(f"{url}/responses", json=stalled):
            assert (await get(url, name))[0] == 503
