"""An answer as the Responses API gives it: a whole `response`, or its events in order. Pure.

An answer has one choice. Its items are a reasoning summary, where reasoning was asked for, and then a message or
function calls. Events are numbered from 0; usage stands in the terminal event alone; there is no `[DONE]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, Final

import orjson

from runner.simulator import logprobs, sse
from runner.simulator.answer import CALL, REASONING, REFUSAL, Answer, Segment
from runner.simulator.sse import Event, Kind

Json = dict[str, Any]
_ECHOED: Final[Json] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}
"""Parameters that the API repeats in its answer, with its defaults."""


def body(answer: Answer) -> Json:
    """The whole `response`."""
    return _response(answer, _status(answer), [_item(answer, i, s) for i, s in enumerate(_segments(answer))])


def state(answer: Answer, status: str) -> Json:
    """The response without its output: one that isn't finished, or was cancelled."""
    return _response(answer, status, [])


def failed(answer: Answer) -> Json:
    """The response that a failure of the model leaves."""
    error = {"code": "server_error", "message": "The model failed to generate a response (simulated)."}
    return _response(answer, "failed", []) | {"error": error}


def failed_event(answer: Answer, sequence: int) -> Event:
    """Its terminal event."""
    payload = {"type": "response.failed", "sequence_number": sequence, "response": failed(answer)}
    return sse.named(Kind.FINISH, "response.failed", payload)


def _segments(answer: Answer) -> list[Segment]:
    return answer.choices[0].segments


def _status(answer: Answer) -> str:
    return "incomplete" if answer.choices[0].finish == "length" else "completed"


def _response(answer: Answer, status: str, output: list[Json]) -> Json:
    asked = answer.asked
    echoed = {key: asked.body.get(key) or default for key, default in _ECHOED.items()}
    for key in ("temperature", "top_p", "parallel_tool_calls", "store"):  # where 0 and false mean something
        if asked.body.get(key) is not None:
            echoed[key] = asked.body[key]
    reasoning = asked.body.get("reasoning")
    return echoed | {
        "id": answer.id("resp_"),
        "object": "response",
        "created_at": answer.created,
        "status": status,
        "background": asked.body.get("background") is True,
        "tools": [_tool(tool) for tool in echoed["tools"]],
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "model": asked.model,
        "output": output,
        "reasoning": {"effort": None, "summary": None} | (reasoning if isinstance(reasoning, dict) else {}),
        "service_tier": asked.service_tier,
        "usage": _usage(answer) if status in ("completed", "incomplete") else None,
    }


def _tool(tool: Any) -> Any:
    """A tool as the API repeats it: a function's defaults are filled in."""
    if isinstance(tool, dict) and tool.get("type") == "function":
        return {"description": None, "parameters": {}, "strict": True, **tool}
    return tool


def _usage(answer: Answer) -> Json:
    prompt, output = answer.asked.prompt_tokens, answer.tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": answer.reasoning_tokens},
        "total_tokens": prompt + output,
    }


def _item(answer: Answer, index: int, segment: Segment, *, begun: bool = False) -> Json:
    """An output item; `begun` gives it as it is when it is added, before it holds anything."""
    last = index == len(_segments(answer)) - 1
    done = "incomplete" if last and _status(answer) == "incomplete" else "completed"
    status = "in_progress" if begun else done
    if segment.kind == REASONING:
        return {
            "id": answer.id("rs_", index),
            "type": "reasoning",
            "summary": [] if begun else [_summary(segment.text)],
        }
    if segment.kind == CALL:
        return {
            "id": answer.id("fc_", index),
            "type": "function_call",
            "status": status,
            "arguments": "" if begun else segment.text,
            "call_id": answer.id("call_", 0, index),
            "name": segment.name,
        }
    content = [] if begun else [_part(answer, segment, segment.tokens)]
    return {
        "id": answer.id("msg_", index),
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content,
    }


def _summary(text: str) -> Json:
    return {"type": "summary_text", "text": text}


def _part(answer: Answer, segment: Segment, tokens: Sequence[str]) -> Json:
    if segment.kind == REFUSAL:
        return {"type": "refusal", "refusal": "".join(tokens)}
    return {"type": "output_text", "annotations": [], "logprobs": _logprobs(answer, tokens), "text": "".join(tokens)}


def _logprobs(answer: Answer, tokens: Sequence[str]) -> list[Json]:
    top = answer.asked.logprobs
    return [] if top is None else [logprobs.entry(token, top) for token in tokens]


class _Numbered:
    """Makes events with the next sequence number."""

    def __init__(self) -> None:
        self._next = count()

    def __call__(self, kind: Kind, name: str, /, **payload: Any) -> Event:
        """One event of this type."""
        return sse.named(kind, name, {"type": name, "sequence_number": next(self._next), **payload})

    def deltas(self, name: str, where: Json, tokens: Sequence[str]) -> Iterator[Event]:
        """Deltas of one part, assembled without encoding what they have in common again and again."""
        common = orjson.dumps({"type": name, **where})[:-1]
        before = b"event: %b\ndata: %b" % (name.encode(), common)
        for token in tokens:
            tail = b',"sequence_number":%d,"delta":%b}\n\n' % (next(self._next), sse.json_text(token))
            yield Event(Kind.CONTENT, before + tail)


def events(answer: Answer) -> Iterator[Event]:
    """The stream."""
    make = _Numbered()
    begun = state(answer, "in_progress")
    if begun["background"]:
        queued = state(answer, "queued")
        yield make(Kind.OPEN, "response.created", response=queued)
        yield make(Kind.OPEN, "response.queued", response=queued)
    else:
        yield make(Kind.OPEN, "response.created", response=begun)
    yield make(Kind.OPEN, "response.in_progress", response=begun)
    for index, segment in enumerate(_segments(answer)):
        item = _item(answer, index, segment, begun=True)
        yield make(Kind.OPEN, "response.output_item.added", output_index=index, item=item)
        yield from _STREAMS[segment.kind](make, answer, segment, {"item_id": item["id"], "output_index": index})
        yield make(Kind.OPEN, "response.output_item.done", output_index=index, item=_item(answer, index, segment))
    yield make(Kind.FINISH, f"response.{_status(answer)}", response=body(answer))


def _reasoning(make: _Numbered, answer: Answer, segment: Segment, where: Json) -> Iterator[Event]:
    where = where | {"summary_index": 0}
    yield make(Kind.OPEN, "response.reasoning_summary_part.added", **where, part=_summary(""))
    yield from make.deltas("response.reasoning_summary_text.delta", where, segment.tokens)
    yield make(Kind.OPEN, "response.reasoning_summary_text.done", **where, text=segment.text)
    yield make(Kind.OPEN, "response.reasoning_summary_part.done", **where, part=_summary(segment.text))


def _call(make: _Numbered, answer: Answer, segment: Segment, where: Json) -> Iterator[Event]:
    yield from make.deltas("response.function_call_arguments.delta", where, segment.tokens)
    yield make(
        Kind.OPEN,
        "response.function_call_arguments.done",
        **where,
        name=segment.name,
        arguments=segment.text,
    )


def _message(make: _Numbered, answer: Answer, segment: Segment, where: Json) -> Iterator[Event]:
    where = where | {"content_index": 0}
    yield make(Kind.OPEN, "response.content_part.added", **where, part=_part(answer, segment, []))
    if segment.kind == REFUSAL:
        yield from make.deltas("response.refusal.delta", where, segment.tokens)
        yield make(Kind.OPEN, "response.refusal.done", **where, refusal=segment.text)
    else:
        yield from _text(make, answer, segment, where)
    yield make(Kind.OPEN, "response.content_part.done", **where, part=_part(answer, segment, segment.tokens))


def _text(make: _Numbered, answer: Answer, segment: Segment, where: Json) -> Iterator[Event]:
    name = "response.output_text.delta"
    if answer.asked.logprobs is None:
        yield from make.deltas(name, where | {"logprobs": []}, segment.tokens)
    else:
        for token in segment.tokens:
            yield make(Kind.CONTENT, name, **where, delta=token, logprobs=_logprobs(answer, [token]))
    done = {"text": segment.text, "logprobs": _logprobs(answer, segment.tokens)}
    yield make(Kind.OPEN, "response.output_text.done", **where, **done)


_STREAMS: Final = {REASONING: _reasoning, CALL: _call, REFUSAL: _message, "text": _message}
