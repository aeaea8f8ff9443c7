"""Streams with a known outcome: each plan is drawn as a whole answer and then taken apart into the API's chunks."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import orjson
from hypothesis import strategies as st

from runner.accumulate import Accumulator, for_stream
from runner.deltas import Delta
from runner.jobs import Api
from runner.sse import Decoder

Json = dict[str, Any]
TEXT = st.text(st.one_of(st.sampled_from('ab \n"\\{}é😀👩‍👩‍👧\u2028\x00'), st.characters(codec="utf-8")), max_size=8)
PARTS = st.lists(TEXT, min_size=1, max_size=5)
USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 12,
    "total_tokens": 21,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 3},
}


class Stream(NamedTuple):
    """Chunks, and the body that they are to become."""

    chunks: list[Json]
    body: Json
    azure: bool = False


def feed(accumulator: Accumulator, blocks: Iterable[bytes]) -> list[Delta]:
    """Feeds blocks of an event stream through the decoder."""
    decoder = Decoder()
    return [delta for block in blocks for name, data in decoder.feed(block) for delta in accumulator.feed(name, data)]


def accumulate(api: Api, blocks: Iterable[bytes], choices: int = 1) -> tuple[Accumulator, list[Delta]]:
    """A new accumulator that was fed these blocks."""
    accumulator = for_stream(api, choices=choices)
    return accumulator, feed(accumulator, blocks)


def whole(accumulator: Accumulator) -> Json:
    """Its body with the lists that it keeps as JSON read, and nothing else changed."""
    found: Json = read(accumulator.body())
    return found


def read(value: Any) -> Any:
    """A value with its fragments read."""
    if isinstance(value, orjson.Fragment):
        return orjson.loads(orjson.dumps(value))
    if isinstance(value, dict):
        return {key: read(item) for key, item in value.items()}
    return [read(item) for item in value] if isinstance(value, list) else value


def to_sse(events: Iterable[Json], *, named: bool = False, ascii_only: bool = False, done: bool = True) -> bytes:
    """An event stream as the API frames it."""
    blocks = []
    for event in events:
        if named:
            blocks.append(b"event: " + event["type"].encode() + b"\n")
        data = json.dumps(event).encode() if ascii_only else orjson.dumps(event)
        blocks.append(b"data: " + data + b"\n\n")
    return b"".join(blocks) + (b"data: [DONE]\n\n" if done else b"")


@st.composite
def cut(draw: st.DrawFn, stream: bytes) -> list[bytes]:
    """The stream in blocks."""
    places = draw(st.lists(st.integers(0, len(stream)), max_size=12))
    bounds = [0, *sorted(places), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(bounds)]


def interleave(draw: st.DrawFn, queues: Sequence[list[Json]]) -> list[Json]:
    """The entries of all queues, each queue's in its own order."""
    order = draw(st.permutations([place for place, queue in enumerate(queues) for _ in queue]))
    heads = [iter(queue) for queue in queues]
    return [next(heads[place]) for place in order]


# ── Chat ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def token(text: str) -> Json:
    """One token's log probability."""
    return {"token": text, "logprob": -0.5, "bytes": list(text.encode()), "top_logprobs": []}


@st.composite
def chat_choice(draw: st.DrawFn, index: int) -> tuple[list[Json], Json]:
    """A choice's entries in the order of their chunks, and the choice."""
    deltas: list[tuple[Json, Json | None]] = []
    message: Json = {"role": "assistant", "content": None, "refusal": None}
    logprobs: Json | None = None
    shape = draw(st.sampled_from(["content", "refusal", "tools", "function", "content+tools", "nothing"]))
    first: Json = {"role": "assistant", "refusal": None, "content": None}
    if draw(st.booleans()):
        parts = draw(PARTS)
        message["reasoning_content"] = "".join(parts)
        deltas += [({"reasoning_content": part}, None) for part in parts]
    if "content" in shape:
        first["content"] = ""
        parts = draw(PARTS)
        message["content"] = "".join(parts)
        with_logprobs = draw(st.booleans())
        for part in parts:
            deltas.append(({"content": part}, {"content": [token(part)], "refusal": None} if with_logprobs else None))
        if with_logprobs:
            logprobs = {"content": [token(part) for part in parts], "refusal": None}
    if shape == "refusal":
        parts = draw(PARTS)
        message["refusal"] = "".join(parts)
        deltas += [({"refusal": part}, {"content": None, "refusal": [token(part)]}) for part in parts]
        logprobs = {"content": None, "refusal": [token(part) for part in parts]}
    if shape == "function":
        parts = draw(PARTS)
        message["function_call"] = {"name": "look_up", "arguments": "".join(parts)}
        deltas.append(({"function_call": {"name": "look_up", "arguments": ""}}, None))
        deltas += [({"function_call": {"arguments": part}}, None) for part in parts]
    if "tools" in shape:
        calls = draw(st.lists(PARTS, min_size=1, max_size=3))
        message["tool_calls"] = []
        for place, parts in enumerate(calls):
            head = {"id": f"call_{place}", "type": "function", "function": {"name": f"f{place}", "arguments": ""}}
            deltas.append(({"tool_calls": [{"index": place, **head}]}, None))
            deltas += [({"tool_calls": [{"index": place, "function": {"arguments": part}}]}, None) for part in parts]
            whole = head | {"function": {"name": f"f{place}", "arguments": "".join(parts)}}
            message["tool_calls"].append(whole)
    finish = draw(st.sampled_from(["stop", "length", "tool_calls", "content_filter", "function_call"]))
    steps = [(first, None), *deltas, ({}, None)]
    entries: list[Json] = [
        {"index": index, "delta": delta, "logprobs": found, "finish_reason": None} for delta, found in steps
    ]
    entries[-1]["finish_reason"] = finish
    return entries, {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


@st.composite
def chat_streams(draw: st.DrawFn) -> Stream:
    """Any chat answer, with 1 to 3 choices interleaved."""
    count = draw(st.integers(1, 3))
    drawn = [draw(chat_choice(index)) for index in range(count)]
    firsts = [entries[0] for entries, _ in drawn]
    rest = interleave(draw, [entries[1:] for entries, _ in drawn])
    common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_730_000_000, "model": "m"}
    extras = {"service_tier": "default", "system_fingerprint": "fp_1"}
    azure, with_usage = draw(st.booleans()), draw(st.booleans())
    chunks: list[Json] = []
    body: Json = common | extras | {"object": "chat.completion", "choices": [choice for _, choice in drawn]}
    if azure:
        filters = {"prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}]}
        empty = {"id": "", "object": "", "created": 0, "model": ""}
        chunks.append(empty | filters | {"choices": []})
        body |= filters
    for entry in firsts + rest:
        padding = {"obfuscation": "x" * draw(st.integers(0, 5))} if draw(st.booleans()) else {}
        chunks.append(common | extras | {"choices": [entry]} | ({"usage": None} if with_usage else {}) | padding)
    if with_usage:
        chunks.append(common | extras | {"choices": [], "usage": USAGE})
        body["usage"] = USAGE
    return Stream(chunks, body, azure)


# ── Responses ────────────────────────────────────────────────────────────────────────────────────────────────────


@st.composite
def _message(draw: st.DrawFn, place: int) -> tuple[list[Json], Json]:
    where = {"item_id": f"msg_{place}", "output_index": place}
    item: Json = {"id": f"msg_{place}", "type": "message", "role": "assistant", "status": "completed", "content": []}
    started = item | {"status": "in_progress", "content": []}
    events: list[Json] = [{"type": "response.output_item.added", "output_index": place, "item": started}]
    for at, refusal in enumerate(draw(st.lists(st.booleans(), min_size=1, max_size=2))):
        parts, spot = draw(PARTS), where | {"content_index": at}
        text = "".join(parts)
        kind, field = ("refusal", "refusal") if refusal else ("output_text", "text")
        empty: Json = {"type": kind, field: ""} | ({} if refusal else {"annotations": []})
        events.append({"type": "response.content_part.added", **spot, "part": empty})
        more: Json = {} if refusal else {"logprobs": []}
        events += [{"type": f"response.{kind}.delta", **spot, "delta": part, **more} for part in parts]
        events.append({"type": f"response.{kind}.done", **spot, field: text, **more})
        events.append({"type": "response.content_part.done", **spot, "part": empty | {field: text}})
        item["content"].append(empty | {field: text})
    events.append({"type": "response.output_item.done", "output_index": place, "item": item})
    return events, item


@st.composite
def _function_call(draw: st.DrawFn, place: int) -> tuple[list[Json], Json]:
    where = {"item_id": f"fc_{place}", "output_index": place}
    parts = draw(PARTS)
    item = {
        "id": f"fc_{place}",
        "type": "function_call",
        "call_id": f"call_{place}",
        "name": "f",
        "arguments": "".join(parts),
        "status": "completed",
    }
    started = item | {"arguments": "", "status": "in_progress"}
    events: list[Json] = [{"type": "response.output_item.added", "output_index": place, "item": started}]
    events += [{"type": "response.function_call_arguments.delta", **where, "delta": part} for part in parts]
    events.append({"type": "response.function_call_arguments.done", **where, "arguments": item["arguments"]})
    events.append({"type": "response.output_item.done", "output_index": place, "item": item})
    return events, item


@st.composite
def _reasoning(draw: st.DrawFn, place: int) -> tuple[list[Json], Json]:
    parts = draw(PARTS)
    spot = {"item_id": f"rs_{place}", "output_index": place, "summary_index": 0}
    text = "".join(parts)
    item = {"id": f"rs_{place}", "type": "reasoning", "summary": [{"type": "summary_text", "text": text}]}
    part = {"type": "summary_text", "text": ""}
    events: list[Json] = [
        {"type": "response.output_item.added", "output_index": place, "item": item | {"summary": []}},
        {"type": "response.reasoning_summary_part.added", **spot, "part": part},
        *({"type": "response.reasoning_summary_text.delta", **spot, "delta": piece} for piece in parts),
        {"type": "response.reasoning_summary_text.done", **spot, "text": text},
        {"type": "response.reasoning_summary_part.done", **spot, "part": part | {"text": text}},
        {"type": "response.output_item.done", "output_index": place, "item": item},
    ]
    return events, item


@st.composite
def response_streams(draw: st.DrawFn) -> Stream:
    """Any Responses answer; items one after the other, as the API sends them."""
    makers = draw(st.lists(st.sampled_from([_message, _function_call, _reasoning]), max_size=3))
    drawn = [draw(maker(place)) for place, maker in enumerate(makers)]
    response: Json = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_730_000_000,
        "model": "m",
        "error": None,
        "incomplete_details": None,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "status": "in_progress",
        "output": [],
    }
    usage = {
        "input_tokens": 9,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 12,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 21,
    }
    body = response | {"status": "completed", "output": [item for _, item in drawn], "usage": usage}
    events = [
        {"type": "response.created", "response": response},
        {"type": "response.in_progress", "response": response},
        *(event for events, _ in drawn for event in events),
        {"type": "response.completed", "response": body},
    ]
    return Stream([event | {"sequence_number": number} for number, event in enumerate(events)], body)
