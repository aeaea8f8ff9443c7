"""Responses: the terminal event is the answer; what has none is built from its items."""

from __future__ import annotations

from typing import Any, cast

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import omit
from openai._models import construct_type
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ResponseStreamEvent

from runner.accumulate import MalformedChunk, StreamError, for_stream
from runner.deltas import Delta, DeltaKind
from runner.jobs import Api
from runner.outcome import Usage
from tests.accumulate.accumulate_streams import Json, Stream, accumulate, cut, response_streams, to_sse, whole

RESPONSE: Json = {"id": "resp_1", "object": "response", "status": "in_progress", "output": [], "error": None}
WHERE: Json = {"item_id": "msg_1", "output_index": 0, "content_index": 0}


def event(kind: str, **fields: Any) -> Json:
    return {"type": kind} | fields


def fed(*events: Json) -> Any:
    accumulator = for_stream(Api.RESPONSES)
    for each in events:
        accumulator.feed(each["type"], orjson.dumps(each))
    return accumulator


def text(delta: Any, **more: Any) -> Json:
    return event("response.output_text.delta", **(WHERE | {"delta": delta} | more))


def completed(**fields: Any) -> Json:
    return event("response.completed", response=RESPONSE | {"status": "completed"} | fields)


# ── The body ─────────────────────────────────────────────────────────────────────────────────────────────────────


@given(response_streams(), st.data(), st.booleans())
def test_body_is_the_known_answer_however_it_is_cut(stream: Stream, data: st.DataObject, ascii_only: bool) -> None:
    blocks = data.draw(cut(to_sse(stream.chunks, named=True, ascii_only=ascii_only, done=False)))
    accumulator, _ = accumulate(Api.RESPONSES, blocks)
    assert whole(accumulator) == stream.body
    assert accumulator.complete
    assert accumulator.ended
    assert accumulator.finish == "completed"
    assert accumulator.usage == Usage(9, 12, cached_tokens=4, reasoning_tokens=3)


def sdk_state(events: list[Json]) -> ResponseStreamState[None]:
    state: ResponseStreamState[None] = ResponseStreamState(input_tools=omit, text_format=omit)
    for each in events:
        typed = construct_type(type_=cast(Any, ResponseStreamEvent), value=each)
        state.handle_event(cast(ResponseStreamEvent, typed))
    return state


def without_sdk_extras(value: Any) -> Any:
    if isinstance(value, dict):
        dropped = ("parsed", "parsed_arguments")
        return {key: without_sdk_extras(item) for key, item in value.items() if key not in dropped and item is not None}
    return [without_sdk_extras(item) for item in value] if isinstance(value, list) else value


@given(response_streams())
def test_body_is_that_of_the_sdk(stream: Stream) -> None:
    theirs = sdk_state(stream.chunks)._completed_response
    assert theirs is not None
    accumulator, _ = accumulate(Api.RESPONSES, [to_sse(stream.chunks)])
    assert without_sdk_extras(whole(accumulator)) == without_sdk_extras(theirs.to_dict())


@given(response_streams())
def test_items_grown_from_deltas_alone_are_the_known_ones_and_those_of_the_sdk(stream: Stream) -> None:
    events = [each for each in stream.chunks[:-1] if not each["type"].endswith(".done")]
    accumulator, _ = accumulate(Api.RESPONSES, [to_sse(events, done=False)])
    ours = whole(accumulator)["output"]
    snapshot = cast(Any, sdk_state(events))._ResponseStreamState__current_snapshot
    for item, final, theirs in zip(ours, stream.body["output"], snapshot.output, strict=True):
        assert item | {"status": None} == final | {"status": None}
        if item["type"] == "function_call":
            assert item["arguments"] == theirs.arguments
        elif item["type"] == "message":  # the SDK grows neither refusals nor reasoning
            texts = [part["text"] for part in item["content"] if "text" in part]
            assert texts == [part.text for part in theirs.content if part.type == "output_text"]


@given(response_streams())
def test_a_stream_cut_before_its_terminal_event_keeps_the_finished_items(stream: Stream) -> None:
    accumulator, _ = accumulate(Api.RESPONSES, [to_sse(stream.chunks[:-1], done=False)])
    body = whole(accumulator)
    assert not accumulator.complete
    assert not accumulator.ended
    assert body["output"] == stream.body["output"]
    assert body["status"] == "in_progress"


@given(response_streams(), st.sampled_from([[], None]))
def test_an_empty_terminal_output_is_filled_from_the_items(stream: Stream, output: list[Any] | None) -> None:
    last = stream.chunks[-1] | {"response": stream.body | {"output": output}}
    accumulator, _ = accumulate(Api.RESPONSES, [to_sse([*stream.chunks[:-1], last])])
    assert whole(accumulator) == stream.body


def test_events_of_items_that_were_never_added_begin_them() -> None:
    accumulator = fed(
        text("a"),
        text("b"),
        event("response.output_text.annotation.added", **WHERE, annotation={"type": "url_citation"}),
        event("response.function_call_arguments.delta", output_index=2, delta="{}"),
    )
    message, call = whole(accumulator)["output"]
    assert (message["type"], message["role"], message["id"]) == ("message", "assistant", "msg_1")
    assert message["content"] == [{"type": "output_text", "text": "ab", "annotations": [{"type": "url_citation"}]}]
    assert (call["type"], call["arguments"]) == ("function_call", "{}")


def test_text_grows_from_what_an_item_came_with() -> None:
    parts = [{"type": "output_text", "text": "a"}, {"type": "output_text", "text": "b"}]
    item = {"type": "message", "id": "msg_1", "content": parts}
    accumulator = fed(event("response.output_item.added", output_index=0, item=item), text("!", content_index=1))
    assert [part["text"] for part in whole(accumulator)["output"][0]["content"]] == ["a", "b!"]


def test_a_done_part_replaces_what_the_deltas_made() -> None:
    part = {"type": "output_text", "text": "whole", "annotations": [{"type": "url_citation"}]}
    accumulator = fed(text("hal"), event("response.content_part.done", **WHERE, part=part))
    assert whole(accumulator)["output"][0]["content"] == [part]


def test_incomplete_is_a_final_with_its_reason() -> None:
    response = RESPONSE | {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    accumulator = fed(event("response.incomplete", response=response))
    assert accumulator.complete
    assert accumulator.finish == "incomplete:max_output_tokens"
    assert whole(accumulator) == response
    assert fed(event("response.incomplete", response=RESPONSE)).finish == "incomplete:unknown"


def test_surrogates_split_over_two_events_are_rejoined() -> None:
    accumulator = for_stream(Api.RESPONSES)
    for half in (rb"\ud83d", rb"\ude00"):
        data = b'{"type":"response.output_text.delta","delta":"' + half + b'"}'
        (delta,) = accumulator.feed("", data)
        assert (delta.text, delta.payload["delta"]) == ("\ufffd", "\ufffd")
    assert whole(accumulator)["output"][0]["content"][0]["text"] == "😀"


# ── Deltas ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "delta_kind", "visible"),
    [
        ("output_text.delta", DeltaKind.TEXT, "d"),
        ("refusal.delta", DeltaKind.REFUSAL, "d"),
        ("reasoning_summary_text.delta", DeltaKind.REASONING, ""),
        ("reasoning_text.delta", DeltaKind.REASONING, ""),
        ("function_call_arguments.delta", DeltaKind.TOOL, ""),
        ("custom_tool_call_input.delta", DeltaKind.TOOL, ""),
        ("mcp_call_arguments.delta", DeltaKind.TOOL, ""),
        ("code_interpreter_call_code.delta", DeltaKind.TOOL, ""),
        ("web_search_call.searching", DeltaKind.PROGRESS, ""),
        ("web_search_call.in_progress", DeltaKind.PROGRESS, ""),
        ("image_generation_call.partial_image", DeltaKind.PROGRESS, ""),
        ("output_text.done", DeltaKind.EMPTY, ""),
        ("content_part.added", DeltaKind.EMPTY, ""),
        ("output_item.done", DeltaKind.EMPTY, ""),
        ("in_progress", DeltaKind.EMPTY, ""),
        ("queued", DeltaKind.EMPTY, ""),
    ],
)
def test_kind_and_visible_text_of_an_event(kind: str, delta_kind: DeltaKind, visible: str) -> None:
    data = event(f"response.{kind}", delta="d", sequence_number=1)
    padded = orjson.dumps(data | {"obfuscation": "xxx"})
    assert list(for_stream(Api.RESPONSES).feed("", padded)) == [Delta(delta_kind, data, visible)]


def test_an_empty_delta_and_a_keepalive_are_no_content() -> None:
    for data in (text(""), text(None), event("keepalive", sequence_number=3)):
        (delta,) = for_stream(Api.RESPONSES).feed("", orjson.dumps(data))
        assert delta.kind is DeltaKind.EMPTY


def test_a_delta_does_not_repeat_the_whole_response() -> None:
    (delta,) = for_stream(Api.RESPONSES).feed("", orjson.dumps(completed(output=[{"type": "message"}], usage={})))
    assert delta.payload == {"type": "response.completed", "response": {"id": "resp_1", "status": "completed"}}


def test_a_type_is_taken_from_the_event_name_where_the_object_has_none() -> None:
    (delta,) = for_stream(Api.RESPONSES).feed("response.output_text.delta", b'{"delta":"a"}')
    assert delta.text == "a"


# ── Success and order ────────────────────────────────────────────────────────────────────────────────────────────


def test_no_prefix_is_complete_before_its_terminal_event_is_whole() -> None:
    events = [event("response.created", response=RESPONSE), text("é😀"), text("response.completed"), completed()]
    stream = to_sse([each | {"sequence_number": number} for number, each in enumerate(events)], named=True, done=False)
    for length in range(len(stream) + 1):
        accumulator, _ = accumulate(Api.RESPONSES, [stream[:length]])
        assert accumulator.complete is (length == len(stream)), length


def test_done_without_a_terminal_event_ends_without_success() -> None:
    accumulator = for_stream(Api.RESPONSES)
    accumulator.feed("", b"[DONE]")
    assert accumulator.ended
    assert not accumulator.complete
    assert whole(accumulator) == {"object": "response", "output": []}


@pytest.mark.parametrize(
    ("terminal", "error"),
    [
        (event("response.failed", response=RESPONSE | {"error": {"code": "server_error"}}), {"code": "server_error"}),
        (event("response.failed", response={"id": "r", "status": "failed"}), {"id": "r", "status": "failed"}),
        (event("response.failed", response=None), event("response.failed", response=None)),
        (event("response.cancelled", response={"status": "cancelled"}), {"status": "cancelled"}),
        (completed(error={"code": "x"}), {"code": "x"}),
        (completed(status="failed", error={"code": "y"}), {"code": "y"}),
        (
            event("error", code="rate_limit_exceeded", message="m"),
            event("error", code="rate_limit_exceeded", message="m"),
        ),
        (event("error", error={"code": "z"}), {"code": "z"}),
    ],
)
def test_a_bad_end_is_raised_with_its_error_and_keeps_what_had_arrived(terminal: Json, error: Json) -> None:
    accumulator = fed(text("kept"))
    with pytest.raises(StreamError) as raised:
        accumulator.feed("", orjson.dumps(terminal))
    assert raised.value.error == error
    assert not accumulator.complete
    assert whole(accumulator)["output"][0]["content"][0]["text"] == "kept"


def numbered(*numbers: int) -> list[Json]:
    return [text(str(place), sequence_number=number) for place, number in enumerate(numbers)]


def text_of(accumulator: Any) -> str:
    found: str = whole(accumulator)["output"][0]["content"][0]["text"]
    return found


def test_events_that_were_seen_before_are_ignored() -> None:
    assert text_of(fed(*numbered(5, 6, 7, 6, 7, 8))) == "0125"
    once = text("a", sequence_number=5)
    assert text_of(fed(once, once)) == "a"


def test_numbers_that_are_all_alike_are_not_used() -> None:
    assert text_of(fed(*numbered(0, 0, 0))) == "012"
    assert text_of(fed(*numbered(-1, -1, -1))) == "012"


def test_a_terminal_event_counts_whatever_its_number() -> None:
    assert fed(*numbered(5, 6), completed() | {"sequence_number": 0}).complete


def test_a_gap_is_no_matter_if_the_terminal_event_has_the_output_and_a_fault_if_not() -> None:
    assert fed(*numbered(1, 3), completed(output=[{"type": "message"}])).complete
    accumulator = fed(*numbered(1, 3))
    with pytest.raises(MalformedChunk, match="missing"):
        accumulator.feed("", orjson.dumps(completed()))
    assert not accumulator.complete


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"type": 1},
        {"choices": []},
        text(1),
        text(["a"]),
        text("a", output_index=-1),
        text("a", output_index=4_096),
        text("a", content_index=True),
        text("a", content_index="0"),
        event("response.output_text.done", **WHERE, text=1),
        event("response.output_item.added", output_index=0, item="x"),
        event("response.content_part.added", **WHERE, part=[]),
        event("response.reasoning_summary_text.delta", summary_index=1.5, delta="x"),
        event("response.completed"),
        event("response.completed", response=[]),
        completed(output="text"),
    ],
)
def test_malformed_event_is_a_fault_and_keeps_what_had_arrived(bad: Json) -> None:
    accumulator = fed(text("kept"))
    with pytest.raises(MalformedChunk):
        accumulator.feed("", orjson.dumps(bad))
    assert text_of(accumulator) == "kept"
    assert not accumulator.complete


def test_a_null_item_is_tolerated() -> None:
    accumulator = fed(event("response.output_item.added", output_index=0, item=None), text("a"), completed())
    assert accumulator.complete
    assert text_of(accumulator) == "a"
