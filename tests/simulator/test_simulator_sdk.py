"""The simulator as the API's own client sees it: the SDK's types and accumulators are the independent oracle."""

from __future__ import annotations

import base64
import json
import math
import struct
from typing import Any

import orjson
import pytest
from openai import AuthenticationError, BadRequestError, InternalServerError, NotFoundError, RateLimitError
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from runner.simulator import Profile, expected_text, running_app
from tests.simulator.simulator_client import FAST, FLAT_TOOLS, TOOLS, chat, post, sdk

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "size": {"type": "number", "minimum": 3},
        "kinds": {"type": "array", "items": {"$ref": "#/$defs/kind"}, "minItems": 2},
        "maybe": {"type": ["integer", "null"]},
    },
    "$defs": {"kind": {"enum": ["a", "b"]}},
}
CHAT_BODIES = {
    "plain": chat("What is the capital of France?"),
    "empty prompt": chat(""),
    "several choices": chat("three", n=3),
    "maximum": chat("long", max_tokens=5),
    "max_completion_tokens": chat("long", max_completion_tokens=7, n=2),
    "stop": chat("stop here", stop=[".", ","]),
    "tools required": chat("call", tools=TOOLS, tool_choice="required"),
    "tools one at a time": chat("call", tools=TOOLS, tool_choice="required", parallel_tool_calls=False),
    "named tool": chat("x", tools=TOOLS, tool_choice={"type": "function", "function": {"name": "get_time"}}),
    "tools cut": chat("call", tools=TOOLS, tool_choice="required", max_tokens=3),
    "tools unwanted": chat("no call", tools=TOOLS, tool_choice="none"),
    "tools, two choices": chat("call twice", tools=TOOLS, tool_choice="required", n=2),
    "functions": chat("old", functions=[tool["function"] for tool in TOOLS], function_call={"name": "get_weather"}),
    "logprobs": chat("probable", logprobs=True, top_logprobs=3),
    "json": chat("json", response_format={"type": "json_object"}),
    "reasoning": chat("think", reasoning_effort="high"),
    "reasoning cut": chat("think", reasoning_effort="high", max_completion_tokens=3),
    "reasoning is not stopped": chat("think", reasoning_effort="high", max_completion_tokens=30, stop=[" "]),
    "refusal": chat("no", simulate={"refuse": True}),
    "tier": chat("cheap", service_tier="flex"),
}
RESPONSES_BODIES: dict[str, dict[str, Any]] = {
    "plain": {"model": "m", "input": "Say something"},
    "empty": {"model": "m", "input": ""},
    "items": {"model": "m", "input": [{"role": "user", "content": [{"type": "input_text", "text": "x"}]}]},
    "maximum": {"model": "m", "input": "long", "max_output_tokens": 4, "instructions": "Be brief.", "temperature": 0},
    "reasoning": {"model": "m", "input": "think", "reasoning": {"effort": "low", "summary": "auto"}},
    "reasoning cut": {"model": "m", "input": "think", "reasoning": {"effort": "low"}, "max_output_tokens": 2},
    "tools": {"model": "m", "input": "call", "tools": FLAT_TOOLS, "tool_choice": "required"},
    "named tool": {
        "model": "m",
        "input": "call",
        "tools": FLAT_TOOLS,
        "tool_choice": {"type": "function", "name": "get_time"},
    },
    "logprobs": {"model": "m", "input": "p", "include": ["message.output_text.logprobs"], "top_logprobs": 2},
    "schema": {
        "model": "m",
        "input": "json",
        "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA, "strict": True}},
    },
    "refusal": {"model": "m", "input": "no", "simulate": {"refuse": True}},
}


def sdk_arguments(body):
    return {k: v for k, v in body.items() if k != "simulate"} | {"extra_body": {"simulate": body.get("simulate", {})}}


@pytest.mark.parametrize("name", CHAT_BODIES)
async def test_a_streamed_chat_answer_accumulates_to_the_whole_one(name):
    body = CHAT_BODIES[name]
    async with sdk() as (client, _):
        whole = await client.chat.completions.create(**sdk_arguments(body))
        options = {"stream": True, "stream_options": {"include_usage": True}}
        stream = await client.chat.completions.create(**sdk_arguments(body), **options)
        state = ChatCompletionStreamState()
        async for chunk in stream:
            state.handle_chunk(chunk)
    streamed = without_indices(state.current_completion_snapshot.model_dump(exclude_none=True))
    assert streamed == without_indices(whole.model_dump(exclude_none=True))


def without_indices(answer):
    """The SDK's accumulator keeps the index of a tool call and its own `parsed` field; the API's body has neither."""
    for choice in answer["choices"]:
        choice["message"].pop("parsed", None)
        for call in choice["message"].get("tool_calls") or []:
            call.pop("index", None)
            call["function"].pop("parsed_arguments", None)
    return answer


@pytest.mark.parametrize("name", CHAT_BODIES)
async def test_chat_bodies_and_chunks_validate_as_the_sdks_types(name):
    async with running_app(FAST) as url:
        whole = await post(url, "/chat/completions", CHAT_BODIES[name])
        ChatCompletion.model_validate_json(whole.body, strict=True)
        streamed = await post(url, "/chat/completions", CHAT_BODIES[name] | {"stream": True})
    assert streamed.headers["content-type"] == "text/event-stream; charset=utf-8"
    *payloads, done = streamed.payloads
    assert done == b"[DONE]"
    chunks = [ChatCompletionChunk.model_validate_json(payload, strict=True) for payload in payloads]
    assert all(chunk.choices for chunk in chunks)
    assert not any(b'"usage"' in payload for payload in payloads)
    assert chunks[0].choices[0].delta.role == "assistant"
    finishes = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert len(finishes) == CHAT_BODIES[name].get("n", 1)


async def test_usage_comes_last_and_is_null_before():
    async with running_app(FAST) as url:
        body = chat(stream=True, stream_options={"include_usage": True})
        *chunks, last, done = (await post(url, "/chat/completions", body)).payloads
    assert done == b"[DONE]"
    assert all(orjson.loads(chunk)["usage"] is None for chunk in chunks)
    last = orjson.loads(last)
    assert last["choices"] == []
    assert last["usage"]["prompt_tokens"] == math.ceil(len("hello") / 4) + 3
    contents = [c for c in map(orjson.loads, chunks) if c["choices"][0]["delta"].get("content")]
    assert last["usage"]["completion_tokens"] == len(contents)


async def test_choices_are_interleaved():
    async with running_app(FAST) as url:
        raw = await post(url, "/chat/completions", chat(n=3, stream=True))
    indices = [orjson.loads(p)["choices"][0]["index"] for p in raw.payloads[:-1]]
    assert indices[:9] == [0, 1, 2] * 3


@pytest.mark.parametrize(
    ("body", "check"),
    [
        (CHAT_BODIES["maximum"], lambda c, u: c.finish_reason == "length" and u.completion_tokens == 5),
        (CHAT_BODIES["max_completion_tokens"], lambda c, u: c.finish_reason == "length" and u.completion_tokens == 14),
        (CHAT_BODIES["stop"], lambda c, u: c.finish_reason == "stop" and not set(".,") & set(c.message.content)),
        (CHAT_BODIES["empty prompt"], lambda c, u: 3 <= u.completion_tokens <= 8 and c.message.content),
        (CHAT_BODIES["tools required"], lambda c, u: len(c.message.tool_calls) == 2 and c.message.content is None),
        (CHAT_BODIES["tools one at a time"], lambda c, u: len(c.message.tool_calls) == 1),
        (CHAT_BODIES["named tool"], lambda c, u: [t.function.name for t in c.message.tool_calls] == ["get_time"]),
        (CHAT_BODIES["tools unwanted"], lambda c, u: c.message.tool_calls is None and c.message.content),
        (CHAT_BODIES["functions"], lambda c, u: c.message.function_call.name == "get_weather"),
        (CHAT_BODIES["logprobs"], lambda c, u: len(c.logprobs.content) == u.completion_tokens),
        (CHAT_BODIES["logprobs"], lambda c, u: "".join(t.token for t in c.logprobs.content) == c.message.content),
        (CHAT_BODIES["logprobs"], lambda c, u: {len(t.top_logprobs) for t in c.logprobs.content} == {3}),
        (CHAT_BODIES["reasoning"], lambda c, u: c.message.reasoning_content and c.message.content),
        (CHAT_BODIES["reasoning"], lambda c, u: u.completion_tokens_details.reasoning_tokens == 32),
        (CHAT_BODIES["reasoning cut"], lambda c, u: c.finish_reason == "length" and c.message.content == ""),
        (
            CHAT_BODIES["reasoning is not stopped"],
            lambda c, u: c.finish_reason == "length" and u.completion_tokens == 30,
        ),
        (CHAT_BODIES["refusal"], lambda c, u: c.message.refusal and c.message.content is None),
    ],
)
async def test_chat_honours(body, check):
    async with sdk() as (client, _):
        answer = await client.chat.completions.create(**sdk_arguments(body))
    assert check(answer.choices[0], answer.usage)


async def test_tool_arguments_are_json_of_the_schema_in_several_deltas():
    async with running_app(FAST) as url:
        raw = await post(url, "/chat/completions", CHAT_BODIES["named tool"] | {"stream": True})
    deltas = [
        call["function"]["arguments"]
        for payload in raw.payloads[:-1]
        for call in orjson.loads(payload)["choices"][0]["delta"].get("tool_calls", [])
    ]
    assert len([delta for delta in deltas if delta]) >= 2
    assert json.loads("".join(deltas))["zone"] in ("utc", "local")


async def test_auto_calls_a_tool_for_some_prompts_and_not_for_others():
    async with sdk() as (client, _):
        finishes = set()
        for number in range(16):
            answer = await client.chat.completions.create(**chat(f"prompt {number}"), tools=TOOLS)
            finishes.add(answer.choices[0].finish_reason)
    assert finishes == {"stop", "tool_calls"}


async def test_the_sdks_parser_reads_a_structured_answer():
    class Reply(BaseModel):
        name: str
        sizes: list[int]

    async with sdk() as (client, _):
        answer = await client.chat.completions.parse(**chat("structure"), response_format=Reply)
        parsed = await client.responses.parse(model="m", input="structure", text_format=Reply)
    assert isinstance(answer.choices[0].message.parsed, Reply)
    assert isinstance(parsed.output_parsed, Reply)


@pytest.mark.parametrize("name", RESPONSES_BODIES)
async def test_a_streamed_response_ends_in_the_whole_one(name):
    body = RESPONSES_BODIES[name]
    async with running_app(FAST) as url:
        whole = await post(url, "/responses", body)
        raw = await post(url, "/responses", body | {"stream": True})
    Response.model_validate_json(whole.body)
    events = [orjson.loads(payload) for payload in raw.payloads]
    adapter = TypeAdapter(ResponseStreamEvent)
    for event in events:
        adapter.validate_python(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [line[7:].decode() for line in raw.body.split(b"\n") if line.startswith(b"event: ")] == [
        event["type"] for event in events
    ]
    assert events[-1]["response"] == orjson.loads(whole.body)
    assert not any(event["response"]["usage"] for event in events[:-1] if "response" in event)
    assert events[-1]["response"]["usage"]["output_tokens"] == sum(e["type"].endswith(".delta") for e in events)
    rebuilt = rebuild(events)
    assert rebuilt == events[-1]["response"]["output"]


def rebuild(events):
    """The output items, from item and delta events alone."""
    items = {}
    for event in events:
        kind, index = event["type"], event.get("output_index")
        if kind == "response.output_item.added":
            items[index] = event["item"]
        elif kind == "response.content_part.added":
            items[index]["content"].append(event["part"])
        elif kind == "response.reasoning_summary_part.added":
            items[index]["summary"].append(event["part"])
        elif kind == "response.output_text.delta":
            items[index]["content"][0]["text"] += event["delta"]
            items[index]["content"][0]["logprobs"] += event["logprobs"]
        elif kind == "response.refusal.delta":
            items[index]["content"][0]["refusal"] += event["delta"]
        elif kind == "response.reasoning_summary_text.delta":
            items[index]["summary"][0]["text"] += event["delta"]
        elif kind == "response.function_call_arguments.delta":
            items[index]["arguments"] += event["delta"]
        elif kind == "response.output_item.done" and "status" in event["item"]:
            items[index]["status"] = event["item"]["status"]
    return list(items.values())


async def test_the_sdks_responses_stream_gives_the_final_response():
    async with sdk() as (client, _):
        async with client.responses.stream(model="m", input="Say something", tools=FLAT_TOOLS[:1]) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        whole = await client.responses.create(model="m", input="Say something", tools=FLAT_TOOLS[:1])
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert final.output_text == whole.output_text
    assert final.id == whole.id


async def test_a_response_that_meets_its_maximum_is_incomplete():
    async with sdk() as (client, _):
        answer = await client.responses.create(model="m", input="long", max_output_tokens=4)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.usage.output_tokens == 4
    assert answer.output[0].status == "incomplete"


async def test_completions_stream_and_whole_say_the_same():
    body = {"model": "m", "prompt": ["One", "Two", ""], "n": 2, "echo": True, "logprobs": 2}
    async with sdk() as (client, _):
        whole = await client.completions.create(**body)
        texts, finishes, last = [""] * 6, [None] * 6, None
        offsets: list[list[int]] = [[] for _ in range(6)]
        async for chunk in await client.completions.create(**body, stream=True, stream_options={"include_usage": True}):
            last = chunk.usage
            for choice in chunk.choices:
                texts[choice.index] += choice.text
                offsets[choice.index] += choice.logprobs.text_offset if choice.logprobs else []
                finishes[choice.index] = choice.finish_reason or finishes[choice.index]
    assert texts == [choice.text for choice in whole.choices]
    assert offsets == [choice.logprobs.text_offset for choice in whole.choices]
    assert [text[:3] for text in texts[:4]] == ["One", "One", "Two", "Two"]
    assert finishes == ["stop"] * 6
    assert last == whole.usage
    assert texts[3] == expected_text(body, choice=3)
    for choice in whole.choices:
        joined = dict(zip(choice.logprobs.text_offset, choice.logprobs.tokens, strict=True))
        assert all(choice.text.startswith(token, at) for at, token in joined.items())
    Completion.model_validate(whole.model_dump(), strict=True)


@pytest.mark.parametrize("value", ["text", ["a", "b"], [1, 2, 3], [[1, 2], [3]], ""])
async def test_embeddings_are_unit_vectors_and_the_same_in_both_encodings(value):
    async with running_app(FAST) as url:
        plain = orjson.loads((await post(url, "/embeddings", {"model": "e", "input": value, "dimensions": 64})).body)
        packed = await post(
            url, "/embeddings", {"model": "e", "input": value, "dimensions": 64, "encoding_format": "base64"}
        )
    CreateEmbeddingResponse.model_validate(plain)
    for one, other in zip(plain["data"], orjson.loads(packed.body)["data"], strict=True):
        assert math.isclose(math.hypot(*one["embedding"]), 1, abs_tol=1e-5)
        assert tuple(one["embedding"]) == struct.unpack("<64f", base64.b64decode(other["embedding"]))
    assert plain["usage"]["prompt_tokens"] == plain["usage"]["total_tokens"]


async def test_the_sdk_reads_embeddings_of_the_default_size():
    async with sdk() as (client, _):
        answer = await client.embeddings.create(model="e", input=["same", "same", "other"])
    vectors = [item.embedding for item in answer.data]
    assert [len(vector) for vector in vectors] == [1536] * 3
    assert vectors[0] == vectors[1] != vectors[2]


async def test_models_are_listed_and_any_name_is_served():
    async with sdk() as (client, _):
        listed = await client.models.list()
        asked = await client.models.retrieve("gpt-whatever")
        answer = await client.chat.completions.create(**chat() | {"model": "gpt-whatever"})
    assert [model.id for model in listed.data] == ["synthetic-1"]
    assert (asked.id, asked.owned_by) == ("gpt-whatever", "synthetic")
    assert (answer.model, answer.system_fingerprint) == ("gpt-whatever", "fp_synthetic")


async def test_a_wrong_key_is_refused_and_masked():
    profile = Profile(api_key="sk-right-key-000000")
    async with sdk(profile, key="sk-wrong-key-123456") as (client, ledger):
        with pytest.raises(AuthenticationError) as caught:
            await client.chat.completions.create(**chat())
        with pytest.raises(AuthenticationError):
            await client.models.list()
    assert caught.value.code == "invalid_api_key"
    assert "wrong-key" not in str(caught.value)
    assert ledger.by_status == {"401": 2}
    async with sdk(profile, key="sk-right-key-000000") as (client, _):
        await client.chat.completions.create(**chat())


@pytest.mark.parametrize(("path", "body", "param", "code"), [
    ("/chat/completions", {"messages": []}, "messages", "empty_array"),
    ("/chat/completions", {"model": "m"}, "messages", "missing_required_parameter"),
    ("/chat/completions", {"model": "m", "messages": "hi"}, "messages", "invalid_type"),
    ("/chat/completions", {"model": "m", "messages": ["hi"]}, "messages[0]", "invalid_type"),
    ("/chat/completions", {"messages": [{"role": "user"}]}, None, None),
    ("/chat/completions", chat(n=0), "n", "integer_below_min_value"),
    ("/chat/completions", chat(max_tokens=0), "max_tokens", "integer_below_min_value"),
    ("/chat/completions", chat(max_tokens="5"), "max_tokens", "invalid_type"),
    ("/chat/completions", chat(stop=[1]), "stop", "invalid_type"),
    ("/chat/completions", chat(simulate={"fault": "nope"}), "simulate.fault", "invalid_value"),
    ("/chat/completions", chat() | {"model": "synthetic-1#nope"}, "simulate.fault", "invalid_value"),
    ("/chat/completions", chat(simulate={"tokens": 10**9}), "simulate.tokens", "invalid_value"),
    ("/chat/completions", chat(simulate={"fualt": "x"}), "simulate.fualt", "invalid_value"),
    ("/chat/completions", chat(simulate=[1]), "simulate", "invalid_type"),
    ("/chat/completions", chat(n=2, simulate={"tokens": 10**6}), "n", "invalid_value"),
    ("/responses", {"model": "m"}, "input", "missing_required_parameter"),
    ("/responses", {"model": "m", "input": "x", "background": True, "store": False}, "store", "invalid_value"),
    ("/completions", {"model": "m", "prompt": [["a"]]}, "prompt", "invalid_type"),
    ("/completions", {"model": "m", "prompt": ["a"] * 100, "n": 128}, "prompt", "array_above_max_length"),
    ("/embeddings", {"model": "m", "input": []}, "input", "invalid_type"),
    ("/embeddings", {"model": "m", "input": "x", "dimensions": 0}, "dimensions", "invalid_value"),
    ("/chat/completions", b"{", None, None),
    ("/chat/completions", b"[1]", None, None),
    ("/chat/completions", b"[" * 100_000, None, None),
    ("/chat/completions", b'{"a":' * 300 + b"1" + b"}" * 300, None, None),
    ("/chat/completions", b"\xff", None, None),
])  # fmt: skip
async def test_a_body_that_cannot_be_served_is_a_400_in_the_apis_form(path, body, param, code):
    async with running_app(FAST) as url:
        raw = await post(url, path, body)
    error = orjson.loads(raw.body)["error"]
    assert (raw.status, error["type"], error["param"], error["code"]) == (400, "invalid_request_error", param, code)
    assert error["message"]
    assert raw.headers["x-request-id"].startswith("req_")


async def test_errors_are_the_sdks_classes():
    async with sdk() as (client, _):
        with pytest.raises(BadRequestError, match="model parameter"):
            await client.chat.completions.create(**chat() | {"model": None})
        with pytest.raises(NotFoundError):
            await client.post("/nowhere", cast_to=object)
        with pytest.raises(RateLimitError) as caught:
            await client.chat.completions.create(**chat() | {"model": "synthetic-1#insufficient_quota"})
    assert (caught.value.type, caught.value.code) == ("insufficient_quota", "insufficient_quota")
    assert "retry-after" not in caught.value.response.headers


async def test_concurrency_above_the_bound_is_503_overloaded():
    async with sdk(Profile(max_concurrency=1, ttft_s=30)) as (client, ledger):
        held = await client.chat.completions.create(**chat("slow"), stream=True)
        with pytest.raises(InternalServerError) as caught:
            await client.chat.completions.create(**chat("second"))
        await held.close()
    assert (caught.value.status_code, caught.value.code) == (503, "server_is_overloaded")
    assert ledger.max_in_flight == 2
