"""Chunks of a stream → Deltas as they arrive, and at the end the body that the non-streaming API would have returned.

One accumulator an API, all with the same face. Success is a positive fact: `complete` needs a finish reason for every
choice, or the terminal event of the Responses API; that the stream ended, or ended with [DONE], is no such fact.

Nothing escapes `feed` and `parse_body` but MalformedChunk and StreamError, whatever the bytes; `body()` and every
Delta can be written by orjson, whatever was fed. What counts as a fault:

| in the stream | what happens |
| --- | --- |
| not JSON, bad UTF-8, nested deeper than MAX_CHUNK_DEPTH, an integer of thousands of digits | fault |
| JSON but no object: null, list, string, number | fault |
| blank data (a keep-alive) | ignored |
| a non-null `error`, an `error` event, `"object": "error"` (vLLM), `response.failed` | StreamError |
| lone surrogates split over two chunks | rejoined in the body; U+FFFD in the Deltas |
| lone surrogates that stay alone; NaN and infinities; integers beyond 64 bits | U+FFFD; null; the nearest float |
| unknown fields | kept (see `chat` and `merge` for how they are joined); `obfuscation` is dropped |
| `usage` of wrong type, negative, NaN, a string, beyond MAX_COUNTED_TOKENS | kept in the body; `usage` unknown |
| anything after [DONE] or a terminal event | ignored, unread |
| chat, completions: `choices` missing, null or empty | tolerated (Azure's first chunk, the usage chunk) |
| … `choices` no list; a choice that is no object; `index` no integer, a bool, negative, ≥ MAX_CHOICES | fault |
| … `index` missing or null | taken as 0 |
| … `delta` null (Azure) | tolerated |
| … `delta` missing | a `message` in its place is taken as one; without it tolerated |
| … `delta` no object; content, refusal or text no string; `logprobs` no object; `finish_reason` no string | fault |
| … `finish_reason` empty | taken as null |
| … `tool_calls` no list, an entry no object, `index` out of [0, MAX_TOOL_CALLS), arguments no string | fault |
| … a tool call without `index` | placed by its id; a new id begins a call; no id goes on with the last call |
| … id, name and type of a tool call repeated | the first one stands |
| … a chunk of a choice that has finished | tolerated and appended; a second finish reason replaces the first |
| Responses: an event without `type` | takes the event's name; a fault without one |
| … an unknown type | tolerated, handed on |
| … `output_index`, `content_index`, … missing | taken as 0; no integer or ≥ MAX_OUTPUT_ITEMS is a fault |
| … `delta`, or a whole text, no string; `item`, `part` or `annotation` no object | fault; null is tolerated |
| … `logprobs` of wrong type | left out |
| … an event for an item that was never added | tolerated: the item is begun |
| … `sequence_number` repeated or gone back | ignored as a duplicate, except a terminal event |
| … `sequence_number` the same for all events, or missing | numbers aren't used: arrival is the order |
| … `sequence_number` with a gap | tolerated if the terminal event carries its output itself, else fault |
| … a terminal event without a `response` object, or with an `output` that is no list | fault |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from runner.accumulate.chat import ChatAccumulator
from runner.accumulate.completions import CompletionsAccumulator
from runner.accumulate.parsing import MalformedChunk, StreamError
from runner.accumulate.plain import Answer, parse_body
from runner.accumulate.responses import ResponsesAccumulator
from runner.deltas import Delta
from runner.jobs import Api
from runner.outcome import Usage
from runner.sse import Frame

__all__ = ["Accumulator", "Answer", "MalformedChunk", "StreamError", "Template", "for_stream", "parse_body"]


class Template(Protocol):
    """What the events of a stream have in common that bring text and nothing else: nearly all of them."""

    before: bytes
    """What such a delta's payload has before its text, as JSON…"""
    behind: bytes
    """…and behind it."""

    def texts_of(self, events: Sequence[bytes], frame: Frame) -> tuple[list[bytes], list[str]] | None:
        """Of events as they stand in the stream, each in this frame: the texts, as JSON and read.

        None: at least one of them has to be decoded and fed, or isn't one event.
        """


class Accumulator(Protocol):
    """The growing answer of one attempt."""

    @property
    def repeated(self) -> Template | None:
        """What the next event may have in common with the last one that was fed, and with what came since."""

    @property
    def may_repeat(self) -> bool:
        """Whether events are looked at for what they have in common, so that they are best fed one by one."""

    def take_text(self, text: str) -> None:
        """Takes the texts that `repeated` read, joined, in the place of their events."""

    def feed(self, name: str, data: bytes) -> Sequence[Delta]:
        """Takes one SSE event. Raises MalformedChunk or StreamError; what had arrived before stays in `body()`."""

    @property
    def held(self) -> int:
        """Bytes that it keeps in memory, about: see `held`."""

    def shorten(self, size: int) -> None:
        """From now on `body()` shows so many bytes of each text, and no list that has grown long.

        The whole body of an answer that was too large would take its size several times over.
        """

    @property
    def complete(self) -> bool:
        """Whether the answer is whole."""

    @property
    def ended(self) -> bool:
        """Whether nothing more is to come: [DONE] or a terminal event. It says nothing about success."""

    @property
    def finish(self) -> str | None:
        """As `Completed.finish`; None while nothing has finished."""

    @property
    def usage(self) -> Usage | None:
        """Tokens as the server counted them; None where it didn't, or not in a way that can be read."""

    def body(self) -> dict[str, Any]:
        """What the non-streaming API would have returned, as far as it has arrived. Linear in its size.

        Lists that grew (log probabilities, annotations) are `orjson.Fragment`s: `plain` makes lists of them.
        """


def for_stream(api: Api, *, choices: int = 1) -> Accumulator:
    """An empty accumulator for one streamed answer that owes this many choices.

    Raises ValueError for embeddings, which have no streaming form.
    """
    make = _STREAMS.get(api)
    if make is None:
        raise ValueError(f"{api.value} does not stream")
    return make(choices)


_STREAMS: dict[Api, Callable[[int], Accumulator]] = {
    Api.CHAT: ChatAccumulator,
    Api.COMPLETIONS: CompletionsAccumulator,
    Api.RESPONSES: lambda choices: ResponsesAccumulator(),  # a response is one answer
}
