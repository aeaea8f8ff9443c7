"""The lines of one job in deltas.jsonl.

They are put together by hand: what is the same in all lines of an attempt is encoded once, and a dict a chunk would
cost as much as all the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import orjson

from runner.deltas import Delta, Texts
from runner.journal import Journal

_LINE: Final = b'%b%b,"t":%b,"delta":%b}\n'
"""Head, number, seconds, payload."""
_DELTA_LINE: Final = _LINE % (b"%b", b"%d", b"%b", b"%b")


class DeltaLines:
    """What deltas.jsonl is told of one job, an attempt after the other: each begins with `begin`."""

    __slots__ = ("_alike", "_head", "_id_json", "_journal", "_keeps", "_line", "_seq")
    _head: bytes
    _seq: int

    def __init__(self, journal: Journal, job_id: str, *, keeps: bool) -> None:
        self._journal = journal
        self._keeps = keeps
        self._id_json = orjson.dumps(job_id)
        self._alike = (b"", b"", b"")
        """What the last texts had in common: head, and payload before and behind the text…"""
        self._line = b""
        """…and the format of their lines."""

    def begin(self, attempt: int, seq: int = 0) -> None:
        """What comes is of this attempt, and its first line has this number."""
        self._head = b'{"custom_id":%b,"attempt":%d,"seq":' % (self._id_json, attempt)
        self._seq = seq

    def void(self, attempt: int, reason: str) -> None:
        """What stands there of this attempt is void."""
        self._journal.delta(
            b'{"custom_id":%b,"attempt":%d,"event":"void","reason":%b}\n'
            % (self._id_json, attempt, orjson.dumps(reason))
        )

    def add(self, delta: Delta, t_s: float) -> None:
        """One delta, `t_s` seconds after the attempt was sent."""
        if self._keeps:
            micros = round(t_s * 1e9) // 1_000  # cut off, as below: of two that came together none was first
            seconds, payload = orjson.dumps(micros / 1e6), orjson.dumps(delta.payload)
            self._journal.delta(_DELTA_LINE % (self._head, self._seq, seconds, payload))
        self._seq += 1

    def add_texts(self, texts: Texts) -> None:
        """Deltas whose payloads are encoded already. One by one their lines would take three times as long."""
        first, self._seq = self._seq, self._seq + len(texts.texts)
        if not self._keeps:
            return
        alike = (self._head, texts.before, texts.behind)
        if alike != self._alike:
            self._alike, self._line = alike, _line_of(*alike)
        seconds = orjson.dumps([after_ns // 1_000 / 1e6 for after_ns in texts.after_ns])
        values: list[int | bytes] = [b""] * (3 * len(texts.texts))
        values[::3] = range(first, self._seq)
        values[1::3] = seconds[1:-1].split(b",")
        values[2::3] = texts.written
        self._journal.delta(self._line * len(texts.texts) % tuple(values))

    @contextmanager
    def marked(self, marks: bytes) -> Iterator[None]:
        """Lines say this besides, too: members of an object, each with a comma behind it."""
        head = self._head
        self._head = head.removesuffix(b'"seq":') + marks + b'"seq":'
        try:
            yield
        finally:
            self._head = head


def _line_of(head: bytes, before: bytes, behind: bytes) -> bytes:
    """The format of lines that have these in common."""
    head, before, behind = (part.replace(b"%", b"%%") for part in (head, before, behind))
    return _LINE % (head, b"%d", b"%b", before + b"%b" + behind)
