"""Events of a Responses stream → the output items as far as they have arrived.

The terminal event repeats the whole answer; this is for answers that have none, being cut off, and for servers that
leave its `output` empty. What a `done` event says replaces what the deltas had made.

A `Part` is an object with strings that grow: an output item, or one of its content or summary parts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from runner.accumulate.held import NODE_BYTES, Entries, Held, Text, weigh
from runner.accumulate.parsing import MalformedChunk
from runner.deltas import DeltaKind
from runner.limits import MAX_OUTPUT_ITEMS


class Growing(NamedTuple):
    """Where the text of one type of event belongs."""

    kind: DeltaKind
    field: str  # of the part, or of the item itself
    item_type: str  # of the item, should it not have been added
    parts: str = ""  # the item's list that holds the part
    part_type: str = ""

    @property
    def index_key(self) -> str:
        """The event's key for the part's place in the list."""
        return f"{self.parts}_index"


_GROWING: dict[str, Growing] = {
    "output_text": Growing(DeltaKind.TEXT, "text", "message", "content", "output_text"),
    "refusal": Growing(DeltaKind.REFUSAL, "refusal", "message", "content", "refusal"),
    "reasoning_text": Growing(DeltaKind.REASONING, "text", "reasoning", "content", "reasoning_text"),
    "reasoning_summary_text": Growing(DeltaKind.REASONING, "text", "reasoning", "summary", "summary_text"),
    "function_call_arguments": Growing(DeltaKind.TOOL, "arguments", "function_call"),
    "custom_tool_call_input": Growing(DeltaKind.TOOL, "input", "custom_tool_call"),
    "mcp_call_arguments": Growing(DeltaKind.TOOL, "arguments", "mcp_call"),
    "code_interpreter_call_code": Growing(DeltaKind.TOOL, "code", "code_interpreter_call"),
}
DELTAS = {f"response.{name}.delta": growing for name, growing in _GROWING.items()}
"""Event type → where its `delta` belongs."""
DONES = {f"response.{name}.done": growing for name, growing in _GROWING.items()}
"""Event type → where its whole text belongs, which stands under the field's own name."""
_PART_EVENTS = {
    "response.content_part.added": "content",
    "response.content_part.done": "content",
    "response.reasoning_summary_part.added": "summary",
    "response.reasoning_summary_part.done": "summary",
}


class Part:
    """An object whose strings and lists grow."""

    __slots__ = ("_base", "_held", "_lists", "_texts", "_weight")

    def __init__(self, base: dict[str, Any], held: Held) -> None:
        self._base = base
        self._held = held
        self._weight = weigh(base) + 2 * NODE_BYTES
        held.bytes += self._weight
        self._texts: dict[str, Text] = {}
        self._lists: dict[str, Entries] = {}

    def drop(self) -> None:
        """Counts it off: another is about to take its place."""
        self._held.bytes -= self._weight
        for text in self._texts.values():
            text.drop()
        for entries in self._lists.values():
            entries.drop()

    def grow(self, field: str, text: str) -> None:
        """Adds to a string."""
        known = self._texts.get(field)
        if known is None:
            before = self._base.get(field)
            known = self._texts[field] = Text(self._held, before if isinstance(before, str) else "")
        known.add(text)

    def replace(self, field: str, text: str) -> None:
        """Sets a string."""
        if (known := self._texts.get(field)) is not None:
            known.drop()
        self._texts[field] = Text(self._held, text)

    def extend(self, field: str, entries: Any) -> None:
        """Adds to a list, if there is anything to add."""
        if not isinstance(entries, list) or not entries:
            return
        known = self._lists.get(field)
        if known is None:
            before = self._base.get(field)
            known = self._lists[field] = Entries(self._held)
            entries = (before if isinstance(before, list) else []) + entries
        for entry in entries:
            known.add(entry)

    def body(self) -> dict[str, Any]:
        """The object as it is."""
        texts = {field: str(text) for field, text in self._texts.items()}
        return {**self._base, **texts, **{field: entries.body() for field, entries in self._lists.items()}}


class Item(Part):
    """One output item."""

    __slots__ = ("_parts",)

    def __init__(self, base: dict[str, Any], held: Held) -> None:
        super().__init__(base, held)
        self._parts: dict[str, dict[int, Part]] = {}

    def part(self, name: str, index: int, default: dict[str, Any]) -> Part:
        """A part of one of its lists, begun from what the item came with, or else from `default`."""
        parts = self._parts.get(name)
        if parts is None:
            parts = self._parts[name] = {}
            for place, given in enumerate(_objects(self._base.get(name))):
                parts[place] = Part(given, self._held)
        part = parts.get(index)
        if part is None:
            part = parts[index] = Part(default, self._held)
        return part

    def set_part(self, name: str, index: int, base: dict[str, Any]) -> None:
        """Puts a part, as an event gave it, in the place of what was there."""
        self.part(name, index, {}).drop()
        self._parts[name][index] = Part(base, self._held)

    def drop(self) -> None:
        """Counts it off, with its parts."""
        super().drop()
        for parts in self._parts.values():
            for part in parts.values():
                part.drop()

    def body(self) -> dict[str, Any]:
        """The item as it is."""
        lists = {name: [parts[index].body() for index in sorted(parts)] for name, parts in self._parts.items()}
        return {**super().body(), **lists}


class Items:
    """The output items of one response."""

    __slots__ = ("_held", "_items")

    def __init__(self, held: Held) -> None:
        self._held = held
        self._items: dict[int, Item] = {}

    def __bool__(self) -> bool:
        return bool(self._items)

    def take(self, kind: str, event: dict[str, Any]) -> str:
        """Takes any event that isn't about the whole response; returns the text that it adds.

        Raises MalformedChunk.
        """
        if growing := DELTAS.get(kind):
            return self._grow(growing, event)
        if growing := DONES.get(kind):
            self._finish(growing, event)
        elif kind in ("response.output_item.added", "response.output_item.done"):
            item = _object(event, "item")
            if item is not None:
                self._set_item(_index(event, "output_index"), item)
        elif name := _PART_EVENTS.get(kind):
            part = _object(event, "part")
            if part is not None:
                item_type = "message" if name == "content" else "reasoning"
                self._item(event, item_type).set_part(name, _index(event, f"{name}_index"), part)
        elif kind == "response.output_text.annotation.added":
            annotation = _object(event, "annotation")
            if annotation is not None:
                self._part(_GROWING["output_text"], event).extend("annotations", [annotation])
        return ""

    def _set_item(self, index: int, base: dict[str, Any]) -> None:
        known = self._items.get(index)
        if known is not None:
            known.drop()
        self._items[index] = Item(base, self._held)

    def _grow(self, growing: Growing, event: dict[str, Any]) -> str:
        delta = _text(event, "delta")
        if delta is None:
            return ""
        part = self._part(growing, event)
        part.grow(growing.field, delta)
        if "logprobs" in event:
            part.extend("logprobs", event["logprobs"])
        return delta

    def _finish(self, growing: Growing, event: dict[str, Any]) -> None:
        text = _text(event, growing.field)
        if text is not None:
            self._part(growing, event).replace(growing.field, text)

    def _part(self, growing: Growing, event: dict[str, Any]) -> Part:
        item = self._item(event, growing.item_type)
        if not growing.parts:
            return item
        default: dict[str, Any] = {"type": growing.part_type, growing.field: ""}
        if growing.part_type == "output_text":
            default["annotations"] = []
        return item.part(growing.parts, _index(event, growing.index_key), default)

    def _item(self, event: dict[str, Any], item_type: str) -> Item:
        index = _index(event, "output_index")
        item = self._items.get(index)
        if item is None:
            base = {"id": event.get("item_id"), "type": item_type, "status": "in_progress"}
            item = self._items[index] = Item(
                base | ({"role": "assistant"} if item_type == "message" else {}), self._held
            )
        return item

    def body(self) -> list[dict[str, Any]]:
        """The items in the order of their indices."""
        return [self._items[index].body() for index in sorted(self._items)]


def _index(event: dict[str, Any], key: str) -> int:
    index = event.get(key)
    if index is None:
        return 0
    if type(index) is not int or not 0 <= index < MAX_OUTPUT_ITEMS:
        raise MalformedChunk(f"{key} that is none")
    return index


def _object(event: dict[str, Any], key: str) -> dict[str, Any] | None:
    value = event.get(key)
    if value is not None and not isinstance(value, dict):
        raise MalformedChunk(f"{key} that is no object")
    return value


def _text(event: dict[str, Any], key: str) -> str | None:
    value = event.get(key)
    if value is not None and not isinstance(value, str):
        raise MalformedChunk(f"{key} that is no string")
    return value


def _objects(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []
