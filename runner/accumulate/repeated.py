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
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Final

import orjson

from runner.deltas import Delta, DeltaKind
from runner.sse import FRAME, Frame

TRIES: Final = 8
"""Chunks in a row that are looked at for a template in vain."""

_loads = orjson.loads
_STRINGS: Final = {str}


class Repeated:
    """What the chunks of a stream have in common."""

    __slots__ = ("_between", "_cut", "_first", "_frame", "_last", "_written_of", "before", "behind")

    def __init__(self, before: bytes, behind: bytes, payload: dict[str, Any], key: str) -> None:
        self._cut = before, behind
        self._put_into(FRAME)
        self.before, self.behind = _halves(payload, key)

    def _put_into(self, frame: Frame) -> None:
        self._frame = frame
        self._first, self._last = frame[0] + self._cut[0], self._cut[1] + frame[1]
        self._between = self._last + self._first
        self._written_of = itemgetter(slice(len(self._first), -len(self._last)))

    def texts_of(self, events: Sequence[bytes], frame: Frame) -> tuple[list[bytes], list[str]] | None:
        """See `Template`. None, too, where one is without text."""
        if frame is not self._frame:
            self._put_into(frame)
        whole = b"".join(events)
        if len(whole) < len(events) * len(self._between):
            return None
        written = list(map(self._written_of, events))
        # To write them all anew and compare takes less time than to look at each. It takes no more memory: see above.
        if self._first + self._between.join(written) + self._last != whole:
            return None
        # One call for all of them. A line feed can't stand in a JSON string, so none of these joints does; and as many
        # strings as pieces, nothing else beside them, mean that each piece is one string.
        joined = b",\n".join(written)
        if joined.count(b"\n") >= len(written) or joined.find(b"\r") >= 0:
            return None  # one of them is several lines, whose ends JSON takes for spaces
        try:
            texts: list[Any] = _loads(b"[%b]" % joined)
        except orjson.JSONDecodeError:
            return None
        if len(texts) != len(written) or set(map(type, texts)) != _STRINGS or not all(texts):
            return None
        return written, texts


def _halves(payload: dict[str, Any], key: str) -> tuple[bytes, bytes]:
    """The JSON of a payload, before the text under a key and behind it."""
    keys = list(payload)
    at = keys.index(key)
    first, last = ({name: payload[name] for name in part} for part in (keys[:at], keys[at + 1 :]))
    before = orjson.dumps(first).removesuffix(b"}") + (b"," if first else b"") + orjson.dumps(key) + b":"
    return before, (b"," if last else b"") + orjson.dumps(last).removeprefix(b"{")


def repeated_of(data: bytes, delta: Delta, place: tuple[str, ...]) -> Repeated | None:
    """What chunks that follow may have in common with this one, of one choice, where its text stands at `place` in it.

    None: it isn't of that kind.
    """
    key = place[-1]
    if (
        delta.kind is not DeltaKind.TEXT
        or delta.payload.get(key) != delta.text
        or not _tells_nothing(delta.payload, key)
        or b"\n" in data  # it came in several lines, each with a head of its own
    ):
        return None
    cut = _cut(data, key, delta.text)
    if cut is None:
        return None
    other = delta.text + "x"
    (entry,) = _loads(cut[0] + orjson.dumps(other) + cut[1])["choices"]
    container = entry.get(place[0]) if len(place) > 1 else entry
    if container is None or container.get(key) != other or not _tells_nothing(entry, place[0]):
        return None
    return Repeated(*cut, delta.payload, key)


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
