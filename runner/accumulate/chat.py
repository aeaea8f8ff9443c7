"""Chunks of /chat/completions → Deltas and a whole `chat.completion`.

A choice's delta is merged field by field. The fields that the API documents are held to their types; what compatible
servers add (reasoning_content, reasoning, reasoning_details, audio, annotations, …) is merged by `merge`'s rules and
kept under the key that was used.

A delta's kind is the first of: text, refusal, reasoning, tool call, other content (PROGRESS: audio, annotations); it is
EMPTY where there is only a role, or only empty strings. A chunk that brings no delta, but a finish reason or usage,
makes no Delta.

Source: https://platform.openai.com/docs/api-reference/chat/streaming, and the SDK's types.
"""

from __future__ import annotations

from typing import Any

from runner.accumulate.choices import Choice, ChoicesAccumulator
from runner.accumulate.held import NODE_BYTES, Held, Text
from runner.accumulate.merge import build, merge
from runner.accumulate.parsing import MalformedChunk
from runner.accumulate.tools import ToolCalls, check_call
from runner.deltas import Delta, DeltaKind

_new = tuple.__new__  # a NamedTuple's own constructor is a Python function
# By rank: of the fields of one delta, the one with the lowest names its kind.
_TEXT, _REFUSAL, _REASONING, _TOOL, _PROGRESS, _EMPTY = range(6)
_KINDS = (
    DeltaKind.TEXT,
    DeltaKind.REFUSAL,
    DeltaKind.REASONING,
    DeltaKind.TOOL,
    DeltaKind.PROGRESS,
    DeltaKind.EMPTY,
)


class ChatChoice(Choice):
    """One choice of a chat completion."""

    known = frozenset({"index", "delta", "message", "logprobs", "finish_reason"})
    place = ("delta", "content")
    __slots__ = ("_calls", "_content", "_others", "_refusal")

    def __init__(self, index: int, held: Held) -> None:
        super().__init__(index, held)
        self._content: Text | None = None
        self._refusal: Text | None = None
        self._calls: ToolCalls | None = None
        self._others: dict[str, Any] = {}

    def take_text(self, text: str) -> None:
        """See `Choice`."""
        assert self._content is not None
        self._content.add(text)

    def take_content(self, entry: dict[str, Any]) -> Delta | None:
        """Takes the entry's delta, to which it adds the choice's index."""
        delta = entry.get("delta") if "delta" in entry else entry.get("message")
        if not delta and (delta is None or isinstance(delta, dict)):
            return None
        if not isinstance(delta, dict):
            raise MalformedChunk("a delta that is no object")
        text = delta.get("content")
        if isinstance(text, str) and len(delta) - ("role" in delta) == 1:  # what nearly every chunk is
            if (content := self._content) is None:
                content = self._content = Text(self._held)
            content.add(text)
            rank = _TEXT if text else _EMPTY
        else:
            rank = self._take_fields(delta)
            text = text or delta.get("refusal") or ""
        delta["index"] = self.index
        return _new(Delta, (_KINDS[rank], delta, text))

    def _take_fields(self, delta: dict[str, Any]) -> int:
        """Takes any delta; returns its rank."""
        rank = _EMPTY
        for key, value in delta.items():
            if value is not None and key != "role":
                rank = min(rank, self._take_field(key, value))
        return rank

    def _take_field(self, key: str, value: Any) -> int:
        if key == "content":
            return self._add_content(_string(value, key))
        if key == "refusal":
            return self._add_refusal(_string(value, key))
        if key == "tool_calls":
            if self._calls is None:
                self._calls = ToolCalls(self._held)
            return _TOOL if self._calls.take(value) else _EMPTY
        rank, brings = _PROGRESS, bool(value)
        if key == "function_call":
            rank, brings = _TOOL, check_call(value)
        elif key.startswith("reasoning"):
            rank = _REASONING
        before = self._others.get(key)
        if before is None:
            self._held.bytes += NODE_BYTES + len(key)
        self._others[key] = merge(before, value, self._held, key)
        return rank if brings else _EMPTY

    def _add_content(self, text: str) -> int:
        if self._content is None:
            self._content = Text(self._held)
        self._content.add(text)
        return _TEXT if text else _EMPTY

    def _add_refusal(self, text: str) -> int:
        if self._refusal is None:
            self._refusal = Text(self._held)
        self._refusal.add(text)
        return _REFUSAL if text else _EMPTY

    def content(self) -> dict[str, Any]:
        """The message."""
        text, refusal = self._content, self._refusal
        message: dict[str, Any] = {
            "role": "assistant",
            "content": None if text is None else str(text),
            "refusal": None if refusal is None else str(refusal),
        }
        if self._others:
            message |= build(self._others)
        if self._calls:
            message["tool_calls"] = self._calls.body()
        return {"message": message}


class ChatAccumulator(ChoicesAccumulator):
    """The growing `chat.completion`."""

    object_name = "chat.completion"
    make_choice = ChatChoice
    __slots__ = ()


def _string(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise MalformedChunk(f"{key} that is no string")
    return value
