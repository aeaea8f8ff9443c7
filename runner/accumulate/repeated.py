"""Chunks that differ from the one before in their text alone: nearly all of a stream.

A server writes the chunks of a stream from one template. Where a chunk begins and ends with the bytes of the one
before, and what stands between is one JSON string in the place of its text, it says the same but for that text; so
nothing else is parsed again. The place is proved, not guessed: the chunk with another string there is parsed once, and
its text must then be that. And the rest must be such that to take it again changes nothing.

What isn't of this kind (tool calls, log probabilities, several choices that take turns, an id for every chunk) is read
as ever, and after TRIES in vain no chunk of that stream is looked at.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

import orjson

from runner.deltas import Delta, DeltaKind

TRIES: Final = 8
"""Chunks in a row that are looked at for a template in vain."""

_new = tuple.__new__  # a NamedTuple's own constructor is a Python function
_loads = orjson.loads
_OTHER: Final = "\N{NULL}"


class Repeated(NamedTuple):
    """What the chunks of a stream have in common."""

    before: bytes
    behind: bytes
    payload: dict[str, Any]
    """Of their deltas."""
    key: str
    """Of their text, in it."""

    def delta_of(self, data: bytes) -> Delta | None:
        """The delta of a chunk that has this in common with the last one, or None: it has to be parsed."""
        before, behind, payload, key = self  # a NamedTuple's names are slow
        if not (data.startswith(before) and data.endswith(behind)):
            return None
        try:
            text = _loads(data[len(before) : len(data) - len(behind)])
        except orjson.JSONDecodeError:
            return None
        if type(text) is not str:
            return None
        payload = payload.copy()
        payload[key] = text
        return _new(Delta, (DeltaKind.TEXT if text else DeltaKind.EMPTY, payload, text))


def repeated_of(data: bytes, delta: Delta, place: tuple[str, ...]) -> Repeated | None:
    """What chunks that follow may have in common with this one, of one choice, where its text stands at `place` in it.

    None: it isn't of that kind.
    """
    key = place[-1]
    if (
        delta.kind is not DeltaKind.TEXT
        or delta.payload.get(key) != delta.text
        or not _tells_nothing(delta.payload, key)
    ):
        return None
    cut = _cut(data, key, delta.text)
    if cut is None:
        return None
    (entry,) = _loads(cut[0] + orjson.dumps(_OTHER) + cut[1])["choices"]
    container = entry.get(place[0]) if len(place) > 1 else entry
    if container is None or container.get(key) != _OTHER or not _tells_nothing(entry, place[0]):
        return None
    return Repeated(*cut, delta.payload.copy(), key)


def _tells_nothing(fields: dict[str, Any], text: str) -> bool:
    """Whether nothing but the text is new in it."""
    return not any(value for key, value in fields.items() if key not in (text, "index", "role"))


def _cut(data: bytes, key: str, text: str) -> tuple[bytes, bytes] | None:
    """What stands before and behind the text, where its key occurs once."""
    name = b'"%b":' % key.encode()
    start = data.find(name) + len(name)
    if data.count(name) != 1:
        return None
    while data[start : start + 1] == b" ":
        start += 1
    for written in (orjson.dumps(text), json.dumps(text).encode()):
        if data.startswith(written, start):
            return data[:start], data[start + len(written) :]
    return None
