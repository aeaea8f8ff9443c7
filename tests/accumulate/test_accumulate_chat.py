"""Chat and legacy completions: the body is the non-streaming one, and success is a positive fact."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any, cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._models import construct_type
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from runner.accumulate import MalformedChunk, StreamError, for_stream
from runner.deltas import Delta, DeltaKind
from runner.jobs import Api
from runner.outcome import Usage
from tests.accumulate.accumulate_streams import USAGE, Json, Stream, accumulate, chat_streams, cut, to_sse, whole


def chunk(*entries: Any, **top: Any) -> bytes:
    return orjson.dumps(
        {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"} | {"choices": entries} | top
    )


def entry(delta: Any, finish: Any = None, index: Any = 0, **more: Any) -> Json:
    return {"index": index, "delta": delta, "finish_reason": finish} | more


def fed(*datas: bytes, choices: int = 1, api: Api = Api.CHAT) -> Any:
    accumulator = for_stream(api, choices=choices)
    for data in datas:
        accumulator.feed("", data)
    return accumulator


def message_of(*deltas: Json) -> Json:
    message: Json = whole(fed(*(chunk(entry(delta)) for delta in deltas)))["choices"][0]["message"]
    return message


# ── The body ─────────────────────────────────────────────────────────────────────────────────────────────────────


@given(chat_streams(), st.data(), st.booleans())
def test_body_is_the_known_answer_however_the_bytes_are_cut(
    stream: Stream, data: st.DataObject, ascii_only: bool
) -> None:
    blocks = data.draw(cut(to_sse(stream.chunks, ascii_only=ascii_only)))
    accumulator, _ = accumulate(Api.CHAT, blocks, len(stream.body["choices"]))
    assert whole(accumulator) == stream.body
    assert accumulator.complete
    assert accumulator.ended
    assert accumulator.usage == (Usage(9, 12, 4, 3) if "usage" in stream.body else None)
    ChatCompletion.model_validate(whole(accumulator))  # raises where the shape is not the API's


def without_sdk_extras(value: Any) -> Any:
    """Without nulls and what the SDK's accumulator adds: parsed values, and the index of tool calls."""
    if isinstance(value, dict):
        dropped = {"parsed", "parsed_arguments"} | ({"index"} if "function" in value else set())
        return {key: without_sdk_extras(item) for key, item in value.items() if key not in dropped and item is not None}
    return [without_sdk_extras(item) for item in value] if isinstance(value, list) else value


@given(chat_streams())
def test_body_is_that_of_the_sdk(stream: Stream) -> None:
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for each in stream.chunks:
        state.handle_chunk(cast(ChatCompletionChunk, construct_type(type_=ChatCompletionChunk, value=each)))
    theirs = without_sdk_extras(state.current_completion_snapshot.to_dict())
    ours = without_sdk_extras(whole(accumulate(Api.CHAT, [to_sse(stream.chunks)])[0]))
    if stream.azure:  # the SDK keeps the empty identity of Azure's first chunk
        ours |= {key: theirs[key] for key in ("id", "created", "model")}
        theirs["service_tier"] = ours["service_tier"]  # and takes the tier from there too
    assert ours == theirs


@given(chat_streams(), st.data())
def test_text_of_the_deltas_is_the_text_of_the_body(stream: Stream, data: st.DataObject) -> None:
    _, deltas = accumulate(Api.CHAT, data.draw(cut(to_sse(stream.chunks))))
    for choice in stream.body["choices"]:
        own = [delta for delta in deltas if delta.payload["index"] == choice["index"]]
        message = choice["message"]
        assert "".join(delta.text for delta in own) == (message["content"] or message["refusal"] or "")


def test_message_has_the_fields_that_the_api_always_gives() -> None:
    body = fed(chunk(entry({"role": "assistant"})), chunk(entry({}, "stop"))).body()
    assert body == {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": None, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
    }


def test_identity_is_the_first_that_is_told_and_the_tier_the_last() -> None:
    body = fed(
        chunk(id="", model=""),
        chunk(id="a", model="m-2", service_tier="auto"),
        chunk(id="", model="", service_tier="flex"),
        chunk(id="b", service_tier=None),
    ).body()
    assert (body["id"], body["model"], body["service_tier"]) == ("a", "m-2", "flex")


def test_a_message_in_the_place_of_a_delta_is_taken_as_one() -> None:
    accumulator = fed(chunk({"index": 0, "message": {"content": "whole"}, "finish_reason": "stop"}))
    assert whole(accumulator)["choices"][0]["message"]["content"] == "whole"
    cumulative = {"message": {"content": "ab"}}
    accumulator = fed(chunk(entry({"content": "a"}, **cumulative)), chunk(entry({"content": "b"}, **cumulative)))
    assert whole(accumulator)["choices"][0]["message"]["content"] == "ab"


def test_unknown_fields_are_kept_at_every_level() -> None:
    accumulator = fed(
        chunk(entry({"content": "a"}, content_filter_results={"hate": {"severity": "safe"}}, token_ids=[1])),
        chunk(entry({"content": "b"}, "stop", content_filter_results={"hate": {"severity": "safe"}}, token_ids=[2])),
        chunk(x_groq={"id": "req"}, moderation=None),
    )
    body = whole(accumulator)
    assert body["x_groq"] == {"id": "req"}
    assert body["choices"][0]["content_filter_results"] == {"hate": {"severity": "safe"}}
    assert body["choices"][0]["token_ids"] == [1, 2]


def test_fields_of_compatible_servers_are_merged_under_their_own_key() -> None:
    detail = {"type": "reasoning.text", "format": "f", "index": 0}
    message = message_of(
        {"reasoning": "a", "reasoning_content": "x", "reasoning_details": [detail | {"text": "a"}]},
        {"reasoning": "b", "reasoning_content": "y", "reasoning_details": [detail | {"text": "b"}]},
        {"annotations": [{"index": 0, "url": "u"}], "audio": {"id": "a", "data": "QQ"}},
        {"annotations": [{"index": 0, "url": "v"}], "audio": {"id": "a", "data": "==", "expires_at": 5}},
    )
    assert message["reasoning"] == "ab"
    assert message["reasoning_content"] == "xy"
    assert message["reasoning_details"] == [detail | {"text": "ab"}]
    assert message["annotations"] == [{"index": 0, "url": "u"}, {"index": 0, "url": "v"}]
    assert message["audio"] == {"id": "a", "data": "QQ==", "expires_at": 5}


def tools_of(*fragments: list[Json]) -> list[Json]:
    calls: list[Json] = message_of(*({"tool_calls": fragment} for fragment in fragments))["tool_calls"]
    return calls


def test_tool_calls_interleave_by_index_and_lose_it() -> None:
    first = {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}}
    second = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{"}}
    more = [{"index": 1, "function": {"arguments": "1"}}, {"index": 0, "function": {"arguments": "}"}}]
    assert tools_of([first, second], more) == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"id": "b", "type": "function", "function": {"name": "g", "arguments": "1"}},
    ]


def test_repeated_id_and_name_of_a_tool_call_are_not_joined() -> None:
    fragment = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "1"}}
    assert tools_of([fragment], [fragment]) == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": "11"}}
    ]


def test_tool_calls_without_index_are_placed_by_id() -> None:
    calls = tools_of(
        [{"id": "a", "function": {"name": "f", "arguments": "1"}}, {"id": "b", "function": {"name": "g"}}],
        [{"function": {"arguments": "2"}}],
        [{"id": "a", "function": {"arguments": "3"}}],
    )
    assert [(call["id"], call["type"], call["function"]["arguments"]) for call in calls] == [
        ("a", "function", "13"),
        ("b", "function", "2"),
    ]


def test_surrogates_split_over_two_chunks_are_rejoined() -> None:
    low, high = rb'{"choices":[{"delta":{"content":"\ud83d"}}]}', rb'{"choices":[{"delta":{"content":"\ude00!"}}]}'
    assert fed(low, high).body()["choices"][0]["message"]["content"] == "😀!"
    assert fed(low, low).body()["choices"][0]["message"]["content"] == "��"
    (delta,) = for_stream(Api.CHAT).feed("", low)
    assert (delta.text, delta.payload["content"]) == ("\ufffd", "\ufffd")


# ── Deltas ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("delta", "kind", "text"),
    [
        ({"content": "a"}, DeltaKind.TEXT, "a"),
        ({"content": "a", "tool_calls": []}, DeltaKind.TEXT, "a"),
        ({"content": None, "refusal": "no"}, DeltaKind.REFUSAL, "no"),
        ({"content": "", "reasoning_content": "r"}, DeltaKind.REASONING, ""),
        ({"reasoning": "r"}, DeltaKind.REASONING, ""),
        ({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]}, DeltaKind.TOOL, ""),
        ({"tool_calls": [{"index": 0, "function": {"arguments": ""}}]}, DeltaKind.EMPTY, ""),
        ({"function_call": {"arguments": "{"}}, DeltaKind.TOOL, ""),
        ({"audio": {"data": "QQ"}}, DeltaKind.PROGRESS, ""),
        ({"role": "assistant", "content": ""}, DeltaKind.EMPTY, ""),
        ({"content": ""}, DeltaKind.EMPTY, ""),
    ],
)
def test_kind_and_visible_text_of_a_delta(delta: Json, kind: DeltaKind, text: str) -> None:
    assert for_stream(Api.CHAT).feed("", chunk(entry(delta, index=3))) == [Delta(kind, delta | {"index": 3}, text)]


def test_a_chunk_that_brings_nothing_makes_no_delta() -> None:
    for data in (chunk(entry({}, "stop")), chunk(entry(None)), chunk(usage=USAGE), b"[DONE]", b" "):
        assert list(for_stream(Api.CHAT).feed("", data)) == []


def test_one_chunk_with_two_choices_makes_two_deltas() -> None:
    deltas = for_stream(Api.CHAT).feed("", chunk(entry({"content": "a"}), entry({"content": "b"}, index=1)))
    assert [(delta.payload["index"], delta.text) for delta in deltas] == [(0, "a"), (1, "b")]


def test_what_was_handed_out_is_not_changed_by_later_chunks() -> None:
    accumulator = for_stream(Api.CHAT)
    data = chunk(entry({"reasoning_details": [{"index": 0, "text": "a"}], "x": ["l"], "y": {"z": "s"}}))
    (delta,) = accumulator.feed("", data)
    before = orjson.dumps(delta.payload)
    accumulator.feed("", data)
    whole(accumulator)
    assert orjson.dumps(delta.payload) == before


# ── Success ──────────────────────────────────────────────────────────────────────────────────────────────────────

CANNED = [
    chunk(entry({"role": "assistant", "content": ""})),
    chunk(entry({"role": "assistant", "content": ""}, index=1)),
    chunk(entry({"content": "é😀"})),
    chunk(entry({"content": "stop"}, index=1), usage=None),
    chunk(entry({}, "stop", index=1)),
    chunk(entry({"content": "."}, "length")),
    chunk(usage=USAGE),
]


def test_no_prefix_is_complete_before_the_last_finish_reason_is_whole() -> None:
    stream = b"".join(b"data: " + data + b"\n\n" for data in [*CANNED, b"[DONE]"])
    whole = stream.index(b'"length"')
    whole = stream.index(b"\n\n", whole) + 2
    for length in range(len(stream) + 1):
        accumulator, _ = accumulate(Api.CHAT, [stream[:length]], choices=2)
        assert accumulator.complete is (length >= whole), length
        assert accumulator.ended is (length == len(stream))


def test_done_with_an_unfinished_choice_is_not_complete() -> None:
    accumulator = fed(CANNED[2], CANNED[4], b"[DONE]")
    assert not accumulator.complete
    assert accumulator.ended
    assert fed(b"[DONE]").complete is False


def test_an_answer_with_fewer_choices_than_asked_is_not_complete_whatever_follows() -> None:
    assert not fed(chunk(entry({}, "stop")), choices=2).complete
    assert not fed(chunk(entry({}, "stop")), b"[DONE]", choices=2).complete
    assert fed(chunk(entry({}, "stop")), chunk(entry({}, "stop", 1)), choices=2).complete


def test_calls_that_share_an_index_and_differ_in_id_are_two() -> None:
    def call(name: str, arguments: str, key: str | None = None) -> dict[str, Any]:
        function = {"name": name, "arguments": arguments} if key else {"arguments": arguments}
        return {"index": 0, "function": function} | ({"id": key, "type": "function"} if key else {})

    fragments = [call("f", "{", "A"), call("", "}"), call("g", "[", "B"), call("", "]"), call("", "", "A")]
    chunks = [chunk(entry({"tool_calls": [fragment]})) for fragment in fragments]
    body = fed(*chunks, chunk(entry({}, "tool_calls"))).body()
    calls = body["choices"][0]["message"]["tool_calls"]
    assert [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in calls] == [
        ("A", "f", "{}"),
        ("B", "g", "[]"),
    ]


def test_an_empty_finish_reason_is_none() -> None:
    accumulator = fed(chunk(entry({"content": "a"}, "")), b"[DONE]")
    assert not accumulator.complete
    assert accumulator.finish is None


def test_finish_is_the_first_choice_that_did_not_just_stop() -> None:
    finished = [chunk(entry({}, "length", index=2)), chunk(entry({}, "stop")), chunk(entry({}, "tool_calls", index=1))]
    assert fed(*finished).finish == "tool_calls"
    assert fed(finished[1]).finish == "stop"
    assert fed(CANNED[0]).finish is None


def test_what_comes_after_the_finish_is_appended_and_after_done_ignored() -> None:
    accumulator = fed(chunk(entry({"content": "a"}, "stop")), chunk(entry({"content": "b"}, "length")), b"[DONE]")
    assert list(accumulator.feed("", b"not json")) == []
    assert accumulator.finish == "length"
    assert whole(accumulator)["choices"][0]["message"]["content"] == "ab"


# ── Faults ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "data",
    [
        b"null",
        b"[]",
        b'"text"',
        b"1",
        b"{",
        b"<html>",
        b"\xff",
        b"1" * 5_000,
        b"[" * 100_000,
        b'{"x":' * 300 + b"1" + b"}" * 300,
        chunk().replace(b"[]", b"{}"),
        chunk().replace(b"[]", b'"x"'),
        chunk(None),
        chunk([]),
        chunk(entry({}, index=-1)),
        chunk(entry({}, index=128)),
        chunk(entry({}, index=10**12)),
        chunk(entry({}, index=True)),
        chunk(entry({}, index=0.0)),
        chunk(entry({}, index="0")),
        chunk(entry([])),
        chunk(entry("")),
        chunk(entry("text")),
        chunk(entry({"content": ["a"]})),
        chunk(entry({"content": 1})),
        chunk(entry({"refusal": {}, "content": None})),
        chunk(entry({}, 1)),
        chunk(entry({}, logprobs=[1])),
        chunk(entry({}, logprobs={"content": "x"})),
        chunk(entry({"tool_calls": {}})),
        chunk(entry({"tool_calls": [None]})),
        chunk(entry({"tool_calls": [{"index": -1}]})),
        chunk(entry({"tool_calls": [{"index": 1_024}]})),
        chunk(entry({"tool_calls": [{"index": True}]})),
        chunk(entry({"tool_calls": [{"index": 0, "function": "f"}]})),
        chunk(entry({"tool_calls": [{"index": 0, "function": {"arguments": {}}}]})),
        chunk(entry({"function_call": {"arguments": 1}})),
    ],
)
def test_malformed_chunk_is_a_fault_and_keeps_what_had_arrived(data: bytes) -> None:
    accumulator = fed(chunk(entry({"content": "kept"})))
    with pytest.raises(MalformedChunk):
        accumulator.feed("", data)
    assert whole(accumulator)["choices"][0]["message"]["content"] == "kept"
    assert not accumulator.complete


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" \t",
        b"{}",
        b'{"choices":null}',
        chunk(),
        chunk(entry(None)),
        chunk({"index": 0}),
        chunk(entry({}, index=None)),
        chunk(entry({"tool_calls": None, "function_call": None, "content": None})),
        chunk(entry({"tool_calls": []})),
        chunk(unknown={"deep": [1, {"x": None}]}),
    ],
)
def test_what_servers_really_send_is_tolerated(data: bytes) -> None:
    accumulator = fed(data, chunk(entry({"content": "a"}, "stop")), b"[DONE]")
    assert accumulator.complete
    message = whole(accumulator)["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "a", "refusal": None}


@pytest.mark.parametrize(
    "usage",
    [
        b"NaN",
        b"Infinity",
        b'"12"',
        b"[]",
        b"{}",
        b'{"prompt_tokens":-1,"completion_tokens":1}',
        b'{"prompt_tokens":NaN,"completion_tokens":1}',
        b'{"prompt_tokens":1e99,"completion_tokens":1}',
        b'{"prompt_tokens":true,"completion_tokens":1}',
        b'{"prompt_tokens":99999999999999999999999,"completion_tokens":1}',
        b'{"prompt_tokens":4000000000,"completion_tokens":1}',
        b'{"prompt_tokens":1,"completion_tokens":"2"}',
        b'{"prompt_tokens":1}',
    ],
)
def test_usage_that_cannot_be_read_is_unknown_and_the_answer_stands(usage: bytes) -> None:
    accumulator = fed(chunk(entry({"content": "a"}, "stop"), usage="X").replace(b'"X"', usage))
    assert accumulator.usage is None
    assert accumulator.complete
    orjson.dumps(accumulator.body())


def test_a_part_of_the_tokens_is_never_more_than_all_of_them() -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 10}, "completion_tokens_details": {"reasoning_tokens": 13}}
    assert fed(chunk(usage=USAGE | details)).usage == Usage(9, 12, cached_tokens=9, reasoning_tokens=12)


def test_last_usage_wins_and_null_does_not_undo_it() -> None:
    first = {"prompt_tokens": 1, "completion_tokens": 1}
    accumulator = fed(chunk(usage=first), chunk(usage=USAGE), chunk(usage=None))
    assert accumulator.body()["usage"] == USAGE
    assert accumulator.usage == Usage(9, 12, cached_tokens=4, reasoning_tokens=3)


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("", b'{"error":{"code":"rate_limit_exceeded"}}', {"code": "rate_limit_exceeded"}),
        ("", b'{"error":"overloaded","choices":[]}', "overloaded"),
        ("", b'{"error":{"message":"\\ud83d"}}', {"message": "\ufffd"}),
        ("", b'{"object":"error","code":400}', {"object": "error", "code": 400}),
        ("error", b'{"code":"server_error"}', {"code": "server_error"}),
        ("error", b'{"error":{"code":"x"}}', {"code": "x"}),
        ("error", b"overloaded", "overloaded"),
        ("error", b"null", None),
    ],
)
@pytest.mark.parametrize("api", [Api.CHAT, Api.COMPLETIONS, Api.RESPONSES])
def test_error_in_the_stream_is_raised_with_its_object(api: Api, name: str, data: bytes, error: Any) -> None:
    with pytest.raises(StreamError) as raised:
        for_stream(api).feed(name, data)
    assert raised.value.error == error


# ── Cost ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "word "},
        {"reasoning": "word ", "content": None},
        {"tool_calls": [{"index": 0, "function": {"arguments": "word "}}]},
        {"reasoning_details": [{"index": 0, "text": "word "}]},
        {"things": ["word "]},
    ],
    ids="-".join,
)
def test_time_is_linear_in_the_number_of_chunks(delta: Json) -> None:
    data = chunk(entry(delta, logprobs={"content": [{"token": "a"}]}))

    def seconds(count: int) -> float:
        times = []
        for _ in range(3):
            start, accumulator = time.process_time(), for_stream(Api.CHAT)
            for _ in range(count):
                accumulator.feed("", data)
            accumulator.body()
            times.append(time.process_time() - start)
        return min(times)

    assert seconds(12_000) < 10 * seconds(3_000)  # quadratic: 16 times


def test_memory_is_that_of_the_text_and_empty_deltas_take_none() -> None:
    def grown_bytes(delta: Json, count: int) -> int:
        data, accumulator = chunk(entry(delta)), fed(chunk(entry(delta)))
        tracemalloc.start()
        try:
            for _ in range(count):
                accumulator.feed("", data)
            return tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()

    assert grown_bytes({"content": ""}, 10_000) < 5_000
    assert grown_bytes({"content": "word "}, 10_000) < 2 * 50_000 + 20_000  # as 10,000 strings: 620,000


# ── Legacy completions ───────────────────────────────────────────────────────────────────────────────────────────


def test_legacy_completion_is_whole() -> None:
    def part(text: str, finish: str | None = None, index: int = 0, tokens: list[str] | None = None) -> bytes:
        logprobs = tokens and {"tokens": tokens, "token_logprobs": [-1.0], "top_logprobs": None, "text_offset": [0]}
        choice = {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish}
        return orjson.dumps({"id": "x", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]})

    accumulator = for_stream(Api.COMPLETIONS, choices=2)
    datas = [part("a", tokens=["a"]), part("x", index=1), part("b", "length", tokens=["b"]), part("", "stop", 1)]
    deltas = [delta for data in datas for delta in accumulator.feed("", data)]
    assert [(delta.kind, delta.text) for delta in deltas] == [
        (DeltaKind.TEXT, "a"),
        (DeltaKind.TEXT, "x"),
        (DeltaKind.TEXT, "b"),
        (DeltaKind.EMPTY, ""),
    ]
    assert deltas[1].payload == {"index": 1, "text": "x"}
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [-1.0, -1.0], "top_logprobs": None, "text_offset": [0, 0]}
    assert accumulator.complete
    assert accumulator.finish == "length"
    assert whole(accumulator) == {
        "id": "x",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [
            {"index": 0, "text": "ab", "logprobs": logprobs, "finish_reason": "length"},
            {"index": 1, "text": "x", "logprobs": None, "finish_reason": "stop"},
        ],
    }


@pytest.mark.parametrize("text", [1, [], {}])
def test_legacy_text_that_is_no_string_is_a_fault(text: Any) -> None:
    with pytest.raises(MalformedChunk):
        fed(chunk({"index": 0, "text": text}), api=Api.COMPLETIONS)


def test_embeddings_have_no_stream() -> None:
    with pytest.raises(ValueError, match="does not stream"):
        for_stream(Api.EMBEDDINGS)
