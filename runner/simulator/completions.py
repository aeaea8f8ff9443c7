"""An answer as the legacy completions API gives it: one choice for each prompt, times n. Pure.

With `echo` the prompt comes first, as a chunk of its own; logprobs cover what is generated, not what is echoed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any

import orjson

from runner.simulator import logprobs, sse
from runner.simulator.answer import Answer, Choice
from runner.simulator.chat import FINGERPRINT, usage
from runner.simulator.sse import Event, Kind


def body(answer: Answer) -> dict[str, Any]:
    """The whole `text_completion`."""
    choices = [
        {
            "text": echoed(answer, index) + choice.text(),
            "index": index,
            "logprobs": _logprobs(answer, choice.text_tokens(), len(echoed(answer, index))),
            "finish_reason": choice.finish,
        }
        for index, choice in enumerate(answer.choices)
    ]
    return _envelope(answer) | {"choices": choices, "usage": usage(answer)}


def echoed(answer: Answer, index: int) -> str:
    """What of the prompt stands before the choice's text; token ids, which no vocabulary explains, as numbers."""
    if answer.asked.body.get("echo") is not True:
        return ""
    prompt = answer.asked.prompts[index // answer.asked.n]
    return prompt if isinstance(prompt, str) else " ".join(map(str, prompt))


def _envelope(answer: Answer) -> dict[str, Any]:
    return {
        "id": answer.id("cmpl-"),
        "object": "text_completion",
        "created": answer.created,
        "model": answer.asked.model,
        "system_fingerprint": FINGERPRINT,
    }


def _logprobs(answer: Answer, tokens: Iterable[str], offset: int) -> dict[str, Any] | None:
    top = answer.asked.logprobs
    return None if top is None else logprobs.legacy(tokens, top, offset)


def events(answer: Answer) -> Iterator[Event]:
    """The stream."""
    head = orjson.dumps(_envelope(answer))[:-1] + b',"choices":['
    tail = b'],"usage":null}' if answer.asked.include_usage else b"]}"
    streams = (_choice(answer, index, choice) for index, choice in enumerate(answer.choices))
    for turn in zip_longest(*streams):
        for event in turn:
            if event is not None:
                yield Event(event.kind, b"data: %b%b%b\n\n" % (head, event.data, tail))
    if answer.asked.include_usage:
        yield sse.data(Kind.USAGE, head + b'],"usage":' + orjson.dumps(usage(answer)) + b"}")
    yield sse.DONE


def _choice(answer: Answer, index: int, choice: Choice) -> Iterator[Event]:
    echo = echoed(answer, index)
    if echo:
        yield Event(Kind.OPEN, _chunk(echo, index, b"null", b"null"))
    offset = len(echo)
    probs = b"null"
    for token in choice.text_tokens():
        if answer.asked.logprobs is not None:
            probs = orjson.dumps(_logprobs(answer, [token], offset))
            offset += len(token)
        yield Event(Kind.CONTENT, _chunk(token, index, probs, b"null"))
    yield Event(Kind.FINISH, _chunk("", index, b"null", sse.json_text(choice.finish)))


def _chunk(text: str, index: int, probs: bytes, finish: bytes) -> bytes:
    return b'{"text":%b,"index":%d,"logprobs":%b,"finish_reason":%b}' % (sse.json_text(text), index, probs, finish)
