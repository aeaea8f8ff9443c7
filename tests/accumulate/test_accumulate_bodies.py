"""Bodies that were not streamed, and whatever else a server may send: only two exceptions ever escape."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.accumulate import MalformedChunk, StreamError, for_stream, parse_body
from runner.jobs import Api
from runner.outcome import Usage
from tests.accumulate.accumulate_streams import USAGE, Stream, chat_streams, response_streams, whole

CHOICE = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
STREAMED = [Api.CHAT, Api.COMPLETIONS, Api.RESPONSES]


def parse(api: Api, **body: Any) -> Any:
    return parse_body(api, orjson.dumps(body))


@given(chat_streams())
def test_a_chat_body_is_its_own_answer(stream: Stream) -> None:
    answer = parse_body(Api.CHAT, orjson.dumps(stream.body))
    reasons = [choice["finish_reason"] for choice in stream.body["choices"]]
    assert answer.body == stream.body
    assert answer.finish == next((reason for reason in reasons if reason != "stop"), "stop")
    assert answer.usage == (Usage(9, 12, 4, 3) if "usage" in stream.body else None)


def test_bodies_of_the_other_apis_are_their_own_answers() -> None:
    assert parse(Api.COMPLETIONS, choices=[{"text": "a", "finish_reason": "length"}]).finish == "length"
    assert parse(Api.RESPONSES, status="completed", output=[], error=None).finish == "completed"
    assert parse(Api.RESPONSES, status="incomplete", output=[]).finish == "incomplete:unknown"
    answer = parse(Api.EMBEDDINGS, data=[{"embedding": [0.5]}], usage={"prompt_tokens": 8, "total_tokens": 8})
    assert answer.usage == Usage(8, 0)
    assert answer.finish == "stop"
    assert answer.body["data"] == [{"embedding": [0.5]}]


@pytest.mark.parametrize(
    ("api", "body"),
    [
        (Api.CHAT, {}),
        (Api.CHAT, {"choices": []}),
        (Api.CHAT, {"choices": {}}),
        (Api.CHAT, {"choices": [None]}),
        (Api.CHAT, {"choices": [CHOICE | {"finish_reason": None}]}),
        (Api.CHAT, {"choices": [CHOICE | {"finish_reason": ""}]}),
        (Api.CHAT, {"choices": [CHOICE | {"finish_reason": 1}]}),
        (Api.CHAT, {"choices": [CHOICE, CHOICE | {"message": None}]}),
        (Api.COMPLETIONS, {"choices": [{"finish_reason": "stop"}]}),
        (Api.RESPONSES, {}),
        (Api.RESPONSES, {"status": "in_progress", "output": []}),
        (Api.RESPONSES, {"status": "queued", "output": []}),
        (Api.RESPONSES, {"status": ["completed"], "output": []}),
        (Api.RESPONSES, {"status": "completed"}),
        (Api.EMBEDDINGS, {}),
        (Api.EMBEDDINGS, {"data": []}),
        (Api.EMBEDDINGS, {"data": [{}]}),
    ],
)
def test_a_body_without_its_positive_fact_is_malformed(api: Api, body: Any) -> None:
    with pytest.raises(MalformedChunk):
        parse_body(api, orjson.dumps(body))


@pytest.mark.parametrize("api", list(Api))
@pytest.mark.parametrize("data", [b"", b" ", b"null", b"[]", b"<html>", b"\xff", b"[DONE]", b"[" * 100_000])
def test_a_body_that_is_no_object_is_malformed(api: Api, data: bytes) -> None:
    with pytest.raises(MalformedChunk):
        parse_body(api, data)


@pytest.mark.parametrize("api", list(Api))
def test_an_error_body_is_raised_with_its_object(api: Api) -> None:
    body = {"error": {"code": "x"}, "choices": [CHOICE], "status": "completed", "output": [], "data": [1]}
    with pytest.raises(StreamError) as raised:
        parse_body(api, orjson.dumps(body))
    assert raised.value.error == {"code": "x"}


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_a_response_that_failed_is_an_error(status: str) -> None:
    with pytest.raises(StreamError) as raised:
        parse(Api.RESPONSES, status=status, output=[], error=None)
    assert raised.value.error["status"] == status


def test_depth_is_bounded_by_what_can_be_written_again() -> None:
    def nested(depth: int) -> bytes:
        deep = b'{"x":' * depth + b"1" + b"}" * depth
        return orjson.dumps({"choices": [CHOICE]})[:-1] + b',"deep":' + deep + b"}"

    orjson.dumps({"response": {"body": parse_body(Api.CHAT, nested(199)).body}})
    with pytest.raises(MalformedChunk, match="deeper"):
        parse_body(Api.CHAT, nested(201))


def test_braces_in_a_text_are_no_depth() -> None:
    choice = CHOICE | {"message": {"content": "{[" * 1_000}}
    assert parse(Api.CHAT, choices=[choice]).body["choices"] == [choice]


# ── Anything ─────────────────────────────────────────────────────────────────────────────────────────────────────

KEYS = st.sampled_from(
    [
        "id",
        "object",
        "choices",
        "index",
        "delta",
        "content",
        "refusal",
        "reasoning",
        "reasoning_details",
        "tool_calls",
        "function",
        "custom",
        "arguments",
        "name",
        "function_call",
        "logprobs",
        "finish_reason",
        "usage",
        "text",
        "role",
        "type",
        "response",
        "output",
        "status",
        "item",
        "part",
        "output_index",
        "content_index",
        "sequence_number",
        "annotation",
        "incomplete_details",
        "reason",
        "model",
        "summary",
        "message",
        "data",
        "embedding",
        "x",
        "tokens",
    ]
)
TYPES = st.sampled_from(
    [
        "response.created",
        "response.completed",
        "response.incomplete",
        "response.failed",
        "response.output_text.delta",
        "response.output_text.done",
        "response.output_item.added",
        "response.output_item.done",
        "response.refusal.delta",
        "response.content_part.added",
        "response.reasoning_summary_text.delta",
        "response.function_call_arguments.delta",
        "response.output_text.annotation.added",
        "completed",
        "incomplete",
        "stop",
        "length",
        "call_1",
        "a",
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from([127, 128, 1_024, 4_096, 2**63, 2**64, 10**40]),
    st.floats(),
    TYPES,
    st.text(st.characters(), max_size=3),  # lone surrogates too
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5), max_leaves=12
)
CHAT_LIKE = st.fixed_dictionaries(
    {
        "choices": st.lists(
            st.fixed_dictionaries(
                {},
                optional={"index": st.integers(0, 2), "delta": VALUES, "text": VALUES, "logprobs": VALUES, "x": VALUES},
            ),
            max_size=3,
        )
    },
    optional={"usage": VALUES, "id": SCALARS, "x": VALUES},
)
RESPONSE_LIKE = st.fixed_dictionaries(
    {"type": TYPES},
    optional={
        "delta": st.text(st.characters(), max_size=3) | VALUES,
        "item": VALUES,
        "part": VALUES,
        "response": VALUES,
        "annotation": VALUES,
        "logprobs": VALUES,
        "output_index": st.integers(0, 2),
        "sequence_number": SCALARS,
    },
)
EVENT_DATA = st.one_of(
    st.one_of(VALUES, CHAT_LIKE, RESPONSE_LIKE).map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=40),
    st.just(b"[DONE]"),
)


@given(st.sampled_from(STREAMED), st.lists(st.tuples(st.sampled_from(["", "error", "x"]), EVENT_DATA), max_size=6))
def test_whatever_is_fed_only_two_exceptions_escape_and_all_can_be_written(
    api: Api, events: list[tuple[str, bytes]]
) -> None:
    accumulator = for_stream(api)
    for name, data in events:
        try:
            deltas = accumulator.feed(name, data)
        except StreamError as error:
            orjson.dumps(error.error)
        except MalformedChunk as error:
            str(error).encode()
        else:
            for delta in deltas:
                orjson.dumps([delta.payload, delta.text])
        assert orjson.loads(orjson.dumps(accumulator.body())) == whole(accumulator)
        orjson.dumps(accumulator.finish)
        assert accumulator.complete in (True, False)
        assert accumulator.usage is None or min(accumulator.usage) >= 0


@given(st.one_of(chat_streams(), response_streams()), st.data())
def test_a_real_stream_with_a_broken_value_raises_nothing_else(stream: Stream, data: st.DataObject) -> None:
    """One value somewhere in a real stream is replaced by another."""
    api = Api.RESPONSES if stream.body["object"] == "response" else Api.CHAT
    accumulator = for_stream(api)
    place = data.draw(st.integers(0, len(stream.chunks) - 1))
    with contextlib.suppress(MalformedChunk, StreamError):
        for number, chunk in enumerate(stream.chunks):
            broken = _broken(chunk, data) if number == place else chunk
            for delta in accumulator.feed("", json.dumps(broken).encode()):
                orjson.dumps(delta.payload)
    orjson.dumps(accumulator.body())


def _broken(value: Any, data: st.DataObject) -> Any:
    """A copy in which one value is something else."""
    if value and isinstance(value, dict | list) and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        copy: Any = value.copy()
        copy[key] = _broken(value[key], data)
        return copy
    return data.draw(VALUES)


@given(st.sampled_from(list(Api)), st.one_of(EVENT_DATA, st.dictionaries(KEYS, VALUES).map(json.dumps).map(str.encode)))
def test_whatever_the_body_only_two_exceptions_escape(api: Api, data: bytes) -> None:
    try:
        answer = parse_body(api, data)
    except (MalformedChunk, StreamError):
        return
    orjson.dumps(answer.body)
    orjson.dumps(answer.finish)


def test_usage_of_a_body_is_read() -> None:
    assert parse(Api.CHAT, choices=[CHOICE], usage=USAGE).usage == Usage(9, 12, 4, 3)
