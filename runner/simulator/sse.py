"""Events of a stream as bytes, and what each is for: the scenarios cut, drop and replace by kind. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson


class Kind(enum.IntEnum):
    """What an event is for. Everything from FINISH on ends the answer."""

    OPEN = 0  # a role, an item begun: sent at once
    CONTENT = 1  # a token: paced
    FINISH = 2  # a finish reason, the terminal event
    USAGE = 3
    DONE = 4


class Event(NamedTuple):
    """One event, ready to be sent."""

    kind: Kind
    data: bytes


DONE: Final = Event(Kind.DONE, b"data: [DONE]\n\n")


def data(kind: Kind, payload: bytes) -> Event:
    """An event of the chat and completions APIs."""
    return Event(kind, b"data: %b\n\n" % payload)


def named(kind: Kind, name: str, payload: Any) -> Event:
    """An event of the Responses API, whose type stands in both lines."""
    return Event(kind, b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(payload)))


@lru_cache(maxsize=65_536)
def json_text(text: str) -> bytes:
    """A JSON string. Tokens come from a small vocabulary: most are found here."""
    return orjson.dumps(text)


def pieces(body: bytes) -> Iterator[Event]:
    """A JSON answer in four writes: the scenarios treat its last part as its finish."""
    size = -(-len(body) // 4)
    for start in range(0, len(body), size):
        last = start + size >= len(body)
        yield Event(Kind.FINISH if last else Kind.CONTENT, body[start : start + size])


def without(events: Iterable[Event], *kinds: Kind) -> Iterator[Event]:
    """The events of other kinds."""
    return (event for event in events if event.kind not in kinds)


class Cut:
    """Iterates over the events before a cut: up to the CONTENT event after so many, and never beyond the first FINISH.

    Afterwards `victim` is the first event behind the cut, and the source stands right behind that.
    """

    def __init__(self, events: Iterator[Event], after: int) -> None:
        self._events = events
        self._left = after
        self.victim: Event | None = None

    def __iter__(self) -> Iterator[Event]:
        for event in self._events:
            if event.kind >= Kind.FINISH or (event.kind is Kind.CONTENT and self._left <= 0):
                self.victim = event
                return
            self._left -= event.kind is Kind.CONTENT
            yield event
