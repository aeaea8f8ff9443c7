"""An answer as the chat completions API gives it: whole, or as chunks. Pure.

A stream is, for every choice, a chunk with the role, chunks of content (reasoning first), a chunk with the finish
reason; the choices take turns. Then the usage, where it was asked for, and `[DONE]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, Final

import orjson

from runner.simulator import logprobs, sse
from runner.simulator.answer import CALL, REASONING, REFUSAL, TEXT, Answer, Choice
from runner.simulator.sse import Event, Kind

FINGERPRINT: Final = "fp_synthetic"


def body(answer: Answer) -> dict[str, Any]:
    """The whole `chat.completion`."""
    choices = [_whole(answer, index, choice) for index, choice in enumerate(answer.choices)]
    return _envelope(answer, "chat.completion") | {"choices": choices, "usage": usage(answer)}


def usage(answer: Answer) -> dict[str, Any]:
    """What chat and legacy completions count."""
    prompt, output = answer.asked.prompt_tokens, answer.tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": answer.reasoning_tokens,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _envelope(answer: Answer, kind: str) -> dict[str, Any]:
    return {
        "id": answer.id("chatcmpl-"),
        "object": kind,
        "created": answer.created,
        "model": answer.asked.model,
        "service_tier": answer.asked.service_tier,
        "system_fingerprint": FINGERPRINT,
    }


def _whole(answer: Answer, index: int, choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": choice.text() if _speaks(choice) else None}
    message["refusal"] = choice.text(REFUSAL) if choice.of(REFUSAL) else None
    if choice.of(REASONING):
        message["reasoning_content"] = choice.text(REASONING)
    calls = choice.of(CALL)
    if calls and answer.asked.legacy_functions:
        message["function_call"] = {"name": calls[0].name, "arguments": calls[0].text}
    elif calls:
        message["tool_calls"] = [
            _call(answer, index, i, {"name": call.name, "arguments": call.text}) for i, call in enumerate(calls)
        ]
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(answer, choice),
        "finish_reason": choice.finish,
    }


def _speaks(choice: Choice) -> bool:
    """Whether its content is a string, if an empty one, rather than null."""
    return not choice.of(CALL) and not choice.of(REFUSAL)


def _call(answer: Answer, index: int, position: int, function: dict[str, str]) -> dict[str, Any]:
    return {"id": answer.id("call_", index, position), "type": "function", "function": function}


def _logprobs(answer: Answer, choice: Choice) -> dict[str, Any] | None:
    top = answer.asked.logprobs
    if top is None or choice.of(CALL):
        return None
    content = [[logprobs.entry(t, top) for s in choice.of(kind) for t in s.tokens] for kind in (TEXT, REFUSAL)]
    return {"content": content[0] or None, "refusal": content[1] or None}


def events(answer: Answer) -> Iterator[Event]:
    """The stream."""
    head = orjson.dumps(_envelope(answer, "chat.completion.chunk"))[:-1] + b',"choices":['
    tail = b'],"usage":null}' if answer.asked.include_usage else b"]}"
    for index, choice in enumerate(answer.choices):
        yield sse.data(Kind.OPEN, head + _delta(index, orjson.dumps(_role(choice)), b"null", b"null") + tail)
    streams = (_choice(answer, index, choice) for index, choice in enumerate(answer.choices))
    for turn in zip_longest(*streams):
        for event in turn:
            if event is not None:
                yield Event(event.kind, b"data: %b%b%b\n\n" % (head, event.data, tail))
    if answer.asked.include_usage:
        yield sse.data(Kind.USAGE, head + b'],"usage":' + orjson.dumps(usage(answer)) + b"}")
    yield sse.DONE


def _role(choice: Choice) -> dict[str, Any]:
    return {"role": "assistant", "content": "" if _speaks(choice) else None, "refusal": None}


def _delta(index: int, delta: bytes, probs: bytes, finish: bytes) -> bytes:
    return b'{"index":%d,"delta":%b,"logprobs":%b,"finish_reason":%b}' % (index, delta, probs, finish)


def _choice(answer: Answer, index: int, choice: Choice) -> Iterator[Event]:
    """The deltas of one choice, without the envelope that is common to all."""
    calls = 0
    for segment in choice.segments:
        if segment.kind == CALL:
            yield from _call_deltas(answer, index, calls, segment.name, segment.tokens)
            calls += 1
        else:
            yield from _text_deltas(answer, index, segment.kind, segment.tokens)
    yield Event(Kind.FINISH, _delta(index, b"{}", b"null", sse.json_text(choice.finish)))


_KEYS: Final = {TEXT: b"content", REFUSAL: b"refusal", REASONING: b"reasoning_content"}


def _text_deltas(answer: Answer, index: int, kind: str, tokens: Sequence[str]) -> Iterator[Event]:
    before = b'{"index":%d,"delta":{"%b":' % (index, _KEYS[kind])
    after = b'},"logprobs":null,"finish_reason":null}'
    top = None if kind == REASONING else answer.asked.logprobs
    for token in tokens:
        if top is not None:
            probs: dict[str, Any] = {"content": None, "refusal": None}
            probs["refusal" if kind == REFUSAL else "content"] = [logprobs.entry(token, top)]
            after = b'},"logprobs":%b,"finish_reason":null}' % orjson.dumps(probs)
        yield Event(Kind.CONTENT, before + sse.json_text(token) + after)


def _call_deltas(answer: Answer, index: int, position: int, name: str, tokens: Sequence[str]) -> Iterator[Event]:
    function = {"name": name, "arguments": ""}
    if answer.asked.legacy_functions:
        opening: dict[str, Any] = {"function_call": function}
        before, after = b'{"function_call":{"arguments":', b"}}"
    else:
        opening = {"tool_calls": [{"index": position} | _call(answer, index, position, function)]}
        before, after = b'{"tool_calls":[{"index":%d,"function":{"arguments":' % position, b"}}]}"
    yield Event(Kind.OPEN, _delta(index, orjson.dumps(opening), b"null", b"null"))
    for token in tokens:
        yield Event(Kind.CONTENT, _delta(index, before + sse.json_text(token) + after, b"null", b"null"))
