"""Fragments of tool calls → the calls of one choice.

Fragments belong together by `index`; id, type and name stand in the first only, and arguments are joined. Some
servers leave the index out, repeat id and name in every fragment, or give all calls of an answer the index 0;
`_place` and merge's FIRST mend that. The
whole calls have no `index`, as in the API's non-streaming answer (the SDK's own accumulator leaves it in).
"""

from __future__ import annotations

from typing import Any

from runner.accumulate.held import NODE_BYTES, Held
from runner.accumulate.merge import build, merge
from runner.accumulate.parsing import MalformedChunk
from runner.limits import MAX_TOOL_CALLS


class ToolCalls:
    """The tool calls of one choice."""

    __slots__ = ("_by_id", "_calls", "_held", "_last", "_last_said", "_next")

    def __init__(self, held: Held) -> None:
        self._held = held
        self._calls: dict[int, dict[str, Any]] = {}
        self._by_id: dict[str, int] = {}
        self._last = 0
        self._last_said: int | None = None
        self._next = 0

    def __bool__(self) -> bool:
        return bool(self._calls)

    def take(self, entries: Any) -> bool:
        """Takes a delta's `tool_calls`; True if they bring a name or arguments. Raises MalformedChunk."""
        if not isinstance(entries, list):
            raise MalformedChunk("tool_calls that are no list")
        brings = False
        for entry in entries:
            if not isinstance(entry, dict):
                raise MalformedChunk("a tool call that is no object")
            brings |= check_call(entry.get("function")) | check_call(entry.get("custom"))
            self._merge(self._place(entry), entry)
        return brings

    def _place(self, entry: dict[str, Any]) -> int:
        index, name = entry.get("index"), entry.get("id")
        if index is None:
            index = self._last if not isinstance(name, str) or not name else self._by_id.get(name, self._next)
        if type(index) is not int or not 0 <= index < MAX_TOOL_CALLS:
            raise MalformedChunk("a tool call whose index is none")
        if isinstance(name, str) and name:
            taken = self._calls.get(index, {}).get("id")
            if taken and taken != name:
                # Another id under the same index: a server that gives all parallel calls the index 0.
                index = self._by_id.get(name, self._next)
            self._by_id.setdefault(name, index)
        elif index == self._last_said:
            index = self._last  # a fragment without an id belongs to the call that spoke last under its index
        self._last_said = entry.get("index")
        self._last = index
        self._next = max(self._next, index + 1)
        return index

    def _merge(self, index: int, entry: dict[str, Any]) -> None:
        call = self._calls.get(index)
        if call is None:
            call = self._calls[index] = {}
            self._held.bytes += 2 * NODE_BYTES  # its id has a place in `_by_id`
        for key, value in entry.items():
            if key != "index":
                before = call.get(key)
                if before is None and key not in call:
                    self._held.bytes += NODE_BYTES + len(key)
                call[key] = merge(before, value, self._held, key)

    def body(self) -> list[dict[str, Any]]:
        """The calls in the order of their indices."""
        return [_whole(build(self._calls[index])) for index in sorted(self._calls)]


def check_call(call: Any) -> bool:
    """Whether a fragment of a function brings a name or arguments. Raises MalformedChunk where its types are wrong."""
    if call is None:
        return False
    if not isinstance(call, dict):
        raise MalformedChunk("a function call that is no object")
    arguments = call.get("arguments")
    if arguments is not None and not isinstance(arguments, str):
        raise MalformedChunk("arguments that are no string")
    return bool(arguments or call.get("name") or call.get("input"))


def _whole(call: dict[str, Any]) -> dict[str, Any]:
    """Adds what the API always has and some servers leave out."""
    kind = call.get("type") or ("custom" if "custom" in call and "function" not in call else "function")
    whole = {"id": call.get("id"), **call, "type": kind}
    if isinstance(function := whole.get("function"), dict):
        whole["function"] = function | {"arguments": function.get("arguments") or ""}
    return whole
