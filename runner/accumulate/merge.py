"""Fragments of JSON values → the whole value, each fragment in time proportional to itself.

Modelled on accumulate_delta of openai.lib.streaming, less its quadratic string joining, and with these rules:

- null adds nothing; a number or a boolean replaces;
- strings are joined, but for names of things (`FIRST`), which servers repeat: the first one stands;
- objects are merged key by key; lists grow, their entries that have an `index` being merged by it
  (not annotations, where `index` is the index of a file);
- a fragment of another type replaces what was there.

`update` is the same with the latest string in the place of joined ones: for a choice's own fields, which are states
(Azure's content_filter_results, a stop_reason), not streams.

A node is a plain value, a `dict` of nodes, a `Text` or an `Items`; nothing that was passed in is ever changed.
"""

from __future__ import annotations

from typing import Any

from runner.limits import MAX_TOOL_CALLS

FIRST = frozenset({"id", "type", "name", "index", "format", "role", "object"})
"""Keys whose strings name something."""


class Text:
    """A string in parts. Joined a batch at a time: small strings take ten times their text, empty ones too."""

    __slots__ = ("_batches", "_recent")

    def __init__(self, text: str = "") -> None:
        self._batches: list[str] = []
        self._recent: list[str] = [text]

    def add(self, text: str) -> None:
        """Appends."""
        recent = self._recent
        recent.append(text)
        if len(recent) >= _BATCH:
            self._batches.append("".join(recent))
            recent.clear()

    def __str__(self) -> str:
        return "".join(self._batches + self._recent)


_BATCH = 256


class Items:
    """A list: the entries that have an index, in its order, and then the others."""

    __slots__ = ("by_index", "others")

    def __init__(self) -> None:
        self.by_index: dict[int, Any] = {}
        self.others: list[Any] = []


def merge(node: Any, new: Any, key: str = "", joined: bool = True) -> Any:
    """The node with this fragment added; `key` is where it stands in its object, `joined` whether strings grow."""
    if new is None:
        return node
    if isinstance(new, str):
        return _merge_text(node, new, key) if joined else new
    if isinstance(new, dict):
        target = node if type(node) is dict else {}
        for name, value in new.items():
            target[name] = merge(target.get(name), value, name, joined)
        return target
    if isinstance(new, list):
        return _merge_items(node, new, key, joined)
    return new


def update(node: Any, new: Any) -> Any:
    """The node with this later state of it."""
    return merge(node, new, joined=False)


def _merge_text(node: Any, new: str, key: str) -> Any:
    if isinstance(node, Text):
        node.add(new)
        return node
    if key in FIRST:
        return node if isinstance(node, str) and node else new
    return Text(new)


def _merge_items(node: Any, new: list[Any], key: str, joined: bool) -> Items:
    target = node if isinstance(node, Items) else Items()
    for entry in new:
        index = entry.get("index") if isinstance(entry, dict) and key != "annotations" else None
        if type(index) is int and 0 <= index < MAX_TOOL_CALLS:
            target.by_index[index] = merge(target.by_index.get(index), entry, "", joined)
        else:
            target.others.append(entry)
    return target


def build(node: Any) -> Any:
    """The value of a node."""
    if isinstance(node, Text):
        return str(node)
    if isinstance(node, Items):
        return [build(node.by_index[index]) for index in sorted(node.by_index)] + node.others
    if type(node) is dict:
        return {key: build(value) for key, value in node.items()}
    return node
