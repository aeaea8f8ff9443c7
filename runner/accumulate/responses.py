"""Events of /responses → Deltas and a whole `response`.

The terminal event's `response` is the body. Without one, the body is what the items have come to so far, in the
response that `response.created` announced. A terminal event whose `output` is empty, though items were streamed, is
filled from them, unless an event was lost on the way.

Source: https://platform.openai.com/docs/api-reference/responses-streaming, and the SDK's types.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runner.accumulate.held import Held, weigh
from runner.accumulate.items import DELTAS, Items
from runner.accumulate.numbering import Numbering
from runner.accumulate.parsing import DONE, MalformedChunk, Raw, clean, mend, parse, raise_error, read_usage
from runner.accumulate.plain import finish_of_status
from runner.deltas import Delta, DeltaKind
from runner.outcome import Usage

_ENDS = {"response.completed": "completed", "response.incomplete": "incomplete"}
_FAILURES = frozenset({"response.failed", "response.cancelled"})
_BEGINNINGS = frozenset({"response.created", "response.queued", "response.in_progress"})
_SHOWN = ("id", "status", "background")
_OF_RESPONSE = _BEGINNINGS | _ENDS.keys() | _FAILURES


class ResponsesAccumulator:
    """The growing `response`."""

    repeated = None
    may_repeat = False
    """See `Accumulator`: every event has a number of its own."""
    __slots__ = ("_held", "_items", "_numbers", "_raw", "_response", "_terminal", "_weight", "ended")

    def __init__(self) -> None:
        self._response: dict[str, Any] = {"object": "response"}
        self._weight = 0  # of `_response`
        self._held = Held()
        self._items = Items(self._held)
        self._numbers = Numbering()
        self._terminal = False  # `_response` is a terminal event's
        self.ended = False
        """See `Accumulator`."""
        self._raw = False  # some strings may hold lone surrogates

    def feed(self, name: str, data: bytes) -> Sequence[Delta]:
        """See `Accumulator`."""
        if self.ended:
            return ()
        event = parse(name, data)
        if event is None:
            self.ended = data.startswith(DONE)
            return ()
        raw = type(event) is Raw
        self._raw |= raw
        kind = self._kind_of(event, name)
        if not self._numbers.is_new(event.get("sequence_number"), data) and not (kind in _ENDS or kind in _FAILURES):
            return ()
        event.pop("obfuscation", None)
        text = ""
        if kind in _OF_RESPONSE:
            self._take_response(kind, event)
        else:
            text = self._items.take(kind, event)
        delta = _delta(kind, event, text)
        return (Delta(delta.kind, clean(delta.payload), mend(delta.text)) if raw else delta,)

    def take_text(self, text: str) -> None:
        """See `Accumulator`."""
        raise AssertionError("no text of these events is read alone")

    def _kind_of(self, event: dict[str, Any], name: str) -> str:
        kind = event.get("type") or name
        if kind == "error":
            raise_error(event)
        if not isinstance(kind, str) or not kind.startswith("response."):
            # An error in the manner of chat; an event of the API has its errors inside the response.
            if event.get("error") is not None or event.get("object") == "error":
                raise_error(event)
            if not isinstance(kind, str) or not kind:
                raise MalformedChunk("an event without a type")
        return kind

    def _take_response(self, kind: str, event: dict[str, Any]) -> None:
        """Takes an event about the whole response, and leaves in it what its Delta is to show."""
        response = event.get("response")
        if isinstance(response, dict):
            event["response"] = {key: response[key] for key in _SHOWN if key in response}
            self._response = response
            self._weigh()
        if kind in _FAILURES:
            raise_error(response if isinstance(response, dict) else event)
        if kind in _ENDS:
            if not isinstance(response, dict):
                raise MalformedChunk("a terminal event without a response")
            self._end(kind, response)

    def _weigh(self) -> None:
        self._held.bytes -= self._weight
        self._weight = weigh(self._response)
        self._held.bytes += self._weight

    def _end(self, kind: str, response: dict[str, Any]) -> None:
        if response.get("status") in ("failed", "cancelled") or response.get("error") is not None:
            raise_error(response)
        output = response.get("output")
        if output is not None and not isinstance(output, list):
            raise MalformedChunk("output that is no list")
        if not output and self._items and self._numbers.gap:
            raise MalformedChunk("an event of the stream is missing, and the last one has no output")
        # The event's type is the fact; a status that was left behind is brought into line.
        self._response = response | {"output": output or self._items.body(), "status": _ENDS[kind]}
        self._terminal = self.ended = True

    @property
    def held(self) -> int:
        """See `Accumulator`."""
        return self._held.bytes

    def shorten(self, size: int) -> None:
        """See `Accumulator`."""
        self._held.shown = size

    @property
    def complete(self) -> bool:
        """Whether a terminal event of a good end was seen."""
        return self._terminal

    @property
    def finish(self) -> str | None:
        """See `Accumulator`."""
        return mend(finish_of_status(self._response)) if self._terminal else None

    @property
    def usage(self) -> Usage | None:
        """See `Accumulator`. The API tells it in the terminal event only."""
        return read_usage(self._response.get("usage"))

    def body(self) -> dict[str, Any]:
        """See `Accumulator`."""
        body = dict(self._response)
        if not self._terminal and (self._items or not isinstance(body.get("output"), list)):
            body["output"] = self._items.body()
        return clean(body) if self._raw else body


def _delta(kind: str, event: dict[str, Any], text: str) -> Delta:
    growing = DELTAS.get(kind)
    if growing is not None:
        visible = growing.kind in (DeltaKind.TEXT, DeltaKind.REFUSAL)
        return Delta(growing.kind if text else DeltaKind.EMPTY, event, text if visible else "")
    if kind in _OF_RESPONSE or kind.endswith((".done", ".added")) or not kind.startswith("response."):
        return Delta(DeltaKind.EMPTY, event)
    return Delta(DeltaKind.PROGRESS, event)
