"""Bodies that say something they shouldn't: garbage, errors inside a stream, too much of everything.

What stands for one event of a stream stands for the whole body of an answer that isn't streamed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any, Final

import orjson
from aiohttp import web

from runner.limits import KIB, MIB
from runner.simulator import responses, sse
from runner.simulator.asked import RESPONSES
from runner.simulator.exchange import JSON, Exchange
from runner.simulator.refusals import error_object
from runner.simulator.scenarios.refused import http
from runner.simulator.sse import Cut, Event, Kind

_HUGE_BYTES: Final = 200 * MIB
_EMPTY_DELTAS: Final = 1_000_000
_FOR_EVER: Final = 10**9
_BLOCK: Final = 64 * KIB
_SERVER_ERROR: Final = error_object(
    "The server had an error while processing your request (simulated).", "server_error"
)
_RATE_ERROR: Final = error_object(
    "Rate limit reached on tokens per min (simulated). Please try again in 1s.", "tokens", code="rate_limit_exceeded"
)


async def _replace(ex: Exchange, payload: bytes) -> web.StreamResponse:
    """The answer with an event in its middle replaced, or with this in place of its body."""
    if not ex.plan.stream:
        return ex.whole(200, payload, JSON)
    events = ex.plan.events()
    cut = ex.cut(events)
    await ex.open()
    await ex.play(cut)
    await ex.put(b"data: %b\n\n" % payload)
    await ex.play(events)
    return await ex.close()


async def bad_json(ex: Exchange) -> web.StreamResponse:
    """An event that breaks off in the middle of its JSON."""
    return await _replace(ex, b'{"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"x')


async def bad_utf8(ex: Exchange) -> web.StreamResponse:
    """An event whose bytes are no UTF-8."""
    return await _replace(ex, b'{"id":"\xff\xfe","choices":[]}')


async def null_chunk(ex: Exchange) -> web.StreamResponse:
    """An event that is null."""
    return await _replace(ex, b"null")


async def list_chunk(ex: Exchange) -> web.StreamResponse:
    """An event that is a list."""
    return await _replace(ex, b"[1,2,3]")


async def wrong_types(ex: Exchange) -> web.StreamResponse:
    """An event whose values have the wrong types."""
    wrong = {"id": 7, "object": [], "model": {}, "usage": "many", "choices": [{"index": "zero", "delta": 5}]}
    if ex.plan.api == RESPONSES:
        wrong = {"type": "response.output_text.delta", "delta": {"a": 1}, "output_index": "zero", "output": 7}
    return await _replace(ex, orjson.dumps(wrong))


_COUNTS: Final = re.compile(rb'"(prompt_tokens|input_tokens|completion_tokens|output_tokens)":\d+')
_NAN_USAGE: Final = (
    b'{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"synthetic-1","choices":[],'
    b'"usage":{"prompt_tokens":NaN,"completion_tokens":NaN,"total_tokens":NaN}}'
)


async def nan_usage(ex: Exchange) -> web.StreamResponse:
    """Token counts that are NaN, which JSON doesn't have; a stream that would send no usage gets some."""
    if not ex.plan.stream:
        return ex.whole(200, _COUNTS.sub(rb'"\1":NaN', orjson.dumps(ex.plan.body())), JSON)
    await ex.open()
    await ex.play(_with_nan(ex.plan.events()))
    return await ex.close()


def _with_nan(events: Iterator[Event]) -> Iterator[Event]:
    for event in sse.without(events, Kind.USAGE):
        if event.kind is Kind.DONE:
            yield sse.data(Kind.USAGE, _NAN_USAGE)
        yield event._replace(data=_COUNTS.sub(rb'"\1":NaN', event.data)) if event.kind is Kind.FINISH else event


async def unknown_fields(ex: Exchange) -> web.StreamResponse:
    """Fields, comments and lines that nobody has heard of, all of them legal."""
    await ex.open()
    await ex.play(_with_more(ex.plan.events(), ex.plan.stream))
    return await ex.close()


def _with_more(events: Iterator[Event], stream: bool) -> Iterator[Event]:
    extra = b'{"x_unheard_of":{"nested":[1,null,"\xc3\xa9"]},'
    if stream:
        for event in events:
            yield event._replace(data=b": a comment\nretry: 1000\nx-line: 1\n" + event.data.replace(b"{", extra, 1))
        return
    first = next(events)
    yield first._replace(data=first.data.replace(b"{", extra, 1))
    yield from events


async def _error_inside(ex: Exchange, status: int, error: dict[str, Any], *, flat: bool = False) -> web.StreamResponse:
    """An error event in the middle, and the end. An answer that isn't streamed has the status instead."""
    if not ex.plan.stream:
        return await http(status)(ex)
    cut = ex.cut()
    await ex.open()
    await ex.play(cut)
    await ex.put(_error_event(ex.plan.api, error, _sequence(cut.victim), flat=flat))
    return await ex.close()


def _error_event(api: str, error: dict[str, Any], sequence: int, *, flat: bool) -> bytes:
    if api != RESPONSES:
        return sse.data(Kind.FINISH, orjson.dumps({"error": error})).data
    if flat:
        code = error["code"] or error["type"]
        payload = {"code": code, "message": error["message"], "param": None}
    else:
        payload = {"error": error}
    return sse.named(Kind.FINISH, "error", {"type": "error", "sequence_number": sequence, **payload}).data


def _sequence(event: Event | None) -> int:
    """The sequence number that a Responses event had; 0 for other APIs."""
    found = re.search(rb'"sequence_number":(\d+)', event.data) if event is not None else None
    return int(found[1]) if found else 0


async def in_stream_error(ex: Exchange) -> web.StreamResponse:
    """`{"error": …}` inside a 200: the server failed."""
    return await _error_inside(ex, 500, _SERVER_ERROR)


async def in_stream_rate_limit(ex: Exchange) -> web.StreamResponse:
    """`{"error": …}` inside a 200: the rate limit was met."""
    return await _error_inside(ex, 429, _RATE_ERROR)


async def error_event(ex: Exchange) -> web.StreamResponse:
    """The flat `error` event of the Responses API."""
    return await _error_inside(ex, 500, _SERVER_ERROR, flat=True)


async def response_failed(ex: Exchange) -> web.StreamResponse:
    """`response.failed` in the middle."""
    if ex.plan.api != RESPONSES:
        return await in_stream_error(ex)
    if not ex.plan.stream:
        return ex.whole(200, orjson.dumps(responses.failed(ex.plan.answer)), JSON)
    cut = ex.cut()
    await ex.open()
    await ex.play(cut)
    await ex.put(responses.failed_event(ex.plan.answer, _sequence(cut.victim)).data)
    return await ex.close()


async def response_incomplete(ex: Exchange) -> web.StreamResponse:
    """The maximum is reached in the middle: `response.incomplete`, or the finish reason `length`."""
    ex.plan = ex.plan.limited()
    return await ex.answer()


async def huge_line(ex: Exchange) -> web.StreamResponse:
    """One line of 200 MB, or `bytes`, in an answer that is otherwise in order."""
    size = ex.plan.rehearsal.bytes or _HUGE_BYTES
    padding = itertools.chain(itertools.repeat(b"a" * MIB, size // MIB), [b"a" * (size % MIB)] if size % MIB else [])
    events = ex.plan.events()
    cut = Cut(events, 0)
    await ex.open()
    await ex.play(cut)
    assert cut.victim is not None  # every answer ends in an event that no cut goes beyond
    before, after = _around_text(ex, cut.victim.data)
    await ex.until(ex.ttft_s)
    await ex.pour(itertools.chain([before], padding, [after]))
    await ex.play(events)
    return await ex.close()


def _around_text(ex: Exchange, data: bytes) -> tuple[bytes, bytes]:
    """An event cut open at its text, so that more of it can be put in; a whole body gets a field for it."""
    if not ex.plan.stream:
        return b'{"padding":"', b'",' + data[1:]
    tokens = next((segment.tokens for segment in ex.plan.answer.choices[0].segments if segment.tokens), None)
    at = data.find(b":" + sse.json_text(tokens[0])) if tokens else -1
    return (data[: at + 2], data[at + 2 :]) if at >= 0 else (b": ", b"\n\n" + data)


async def endless(ex: Exchange) -> web.StreamResponse:
    """Content for ever, as fast as it is read; at `tokens_per_s` where the request names it."""
    await ex.open()
    if not ex.plan.stream:
        await ex.pour(itertools.repeat(b" " * _BLOCK))
    ex.plan = ex.plan.padded(" again", _FOR_EVER)
    if ex.plan.rehearsal.tokens_per_s is not None:
        await ex.play(ex.plan.events())
    else:
        await ex.pour(_batches(ex.plan.events()))
    return await ex.close()


async def empty_deltas(ex: Exchange) -> web.StreamResponse:
    """A million deltas, or `count`, that hold nothing, and then the answer."""
    count = _EMPTY_DELTAS if ex.plan.rehearsal.count is None else ex.plan.rehearsal.count
    await ex.open()
    if ex.plan.stream:
        ex.plan = ex.plan.padded("", count)
        await ex.pour(_batches(ex.plan.events()))
    else:
        await ex.pour(itertools.repeat(b" " * 64, count // 64))
        await ex.play(ex.plan.events())
    return await ex.close()


def _batches(events: Iterator[Event]) -> Iterator[bytes]:
    """Many events a write: these scenarios are about how many there are."""
    while block := b"".join(event.data for event in itertools.islice(events, 128)):
        yield block
