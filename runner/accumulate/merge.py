"""Fragments of JSON values → the whole value, each fragment in time proportional to itself.

Modelled on accumulate_delta of openai.lib.streaming, less its quadratic string joining, and with these rules:

- null adds nothing; a number or a boolean replaces;
- strings are joined, but for names of things (`FIRST`), which servers repeat: the first one stands;
- objects are merged key by key; lists grow, their entries that have an `index` being merged by it
  (not annotations, where `index` is the index of a file);
- a fragment of another type replaces what was there.

`update` is the same with the latest string in the place of joined ones: for a choice's own fields, which are states
(Azure's content_filter_results, a stop_reason), not streams.

A node is a plain value, a `dict` of nodes, a `Text` or an `Items`; nothing that was passed in is ever changed. What a
fragment makes a node hold is counted in `held`.
"""

from __future__ import annotations

from sys import getsizeof
from typing import Any

import orjson

from runner.accumulate.held import NODE_BYTES, Entries, Held, Text
from runner.limits import MAX_TOOL_CALLS

FIRST = frozenset({"id", "type", "name", "index", "format", "role", "object"})
"""Keys whose strings name something."""


class Items:
    """A list: the entries that have an index, in its order, and then the others."""

    __slots__ = ("by_index", "others")

    def __init__(self, held: Held) -> None:
        self.by_index: dict[int, Any] = {}
        self.others = Entries(held)


def merge(node: Any, new: Any, held: Held, key: str = "", joined: bool = True) -> Any:
    """The node with this fragment added; `key` is where it stands in its object, `joined` whether strings grow."""
    if new is None:
        return node
    if isinstance(new, str):
        return _merge_text(node, new, held, key) if joined else _replace(node, new, held)
    if isinstance(new, dict):
        target = node if type(node) is dict else {}
        for name, value in new.items():
            before = target.get(name)
            if before is None and name not in target:
                held.bytes += NODE_BYTES + len(name)
            target[name] = merge(before, value, held, name, joined)
        return target
    if isinstance(new, list):
        return _merge_items(node, new, held, key, joined)
    return new


def update(node: Any, new: Any, held: Held) -> Any:
    """The node with this later state of it."""
    return merge(node, new, held, joined=False)


def _merge_text(node: Any, new: str, held: Held, key: str) -> Any:
    if isinstance(node, Text):
        node.add(new)
        return node
    if key in FIRST:
        return node if isinstance(node, str) and node else _replace(node, new, held)
    return Text(held, new)


def _replace(node: Any, new: str, held: Held) -> str:
    if new != node:
        held.bytes += getsizeof(new) - (getsizeof(node) if isinstance(node, str) else 0)
    return new


def _merge_items(node: Any, new: list[Any], held: Held, key: str, joined: bool) -> Items:
    target = node if isinstance(node, Items) else Items(held)
    for entry in new:
        index = entry.get("index") if isinstance(entry, dict) and key != "annotations" else None
        if type(index) is int and 0 <= index < MAX_TOOL_CALLS:
            if index not in target.by_index:
                held.bytes += NODE_BYTES
            target.by_index[index] = merge(target.by_index.get(index), entry, held, "", joined)
        else:
            target.others.add(entry)
    return target


def _build_items(node: Items) -> Any:
    if not node.by_index:
        return node.others.body()
    return [build(node.by_index[index]) for index in sorted(node.by_index)] + orjson.loads(node.others.json())


def build(node: Any) -> Any:
    """The value of a node; its longer lists are ready for orjson, see `Entries.body`."""
    if isinstance(node, Text):
        return str(node)
    if isinstance(node, Items):
        return _build_items(node)
    if type(node) is dict:
        return {key: build(value) for key, value in node.items()}
    return node
