"""The lines of one job in deltas.jsonl.

They are put together by hand: what is the same in all lines of an attempt is encoded once, and a dict a chunk would
cost as much as all the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import orjson

from runner.deltas import Arrived, Delta
from runner.journal import Journal

_LINE: Final = b'%b%d,"t":%d.%06d,"delta":%b}\n'
"""Head, number, seconds and their millionths (%.6f takes longer than all the rest), payload."""


class DeltaLines:
    """What deltas.jsonl is told of one job, an attempt after the other."""

    __slots__ = ("_head", "_id_json", "_journal", "_keeps", "_seq")

    def __init__(self, journal: Journal, job_id: str, *, keeps: bool) -> None:
        self._journal = journal
        self._keeps = keeps
        self._id_json = orjson.dumps(job_id)
        self.begin(0)

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
            micros = round(t_s * 1e6)
            payload = orjson.dumps(delta.payload)
            self._journal.delta(_LINE % (self._head, self._seq, *divmod(micros, 1_000_000), payload))
        self._seq += 1

    def add_texts(self, arrived: Sequence[Arrived]) -> None:
        """Deltas whose payloads are encoded already."""
        seq, self._seq = self._seq, self._seq + len(arrived)
        if not self._keeps:
            return
        head = self._head
        lines = []
        for after_ns, payload, _ in arrived:
            lines.append(_LINE % (head, seq, *divmod(after_ns // 1000, 1_000_000), payload))
            seq += 1
        self._journal.delta(b"".join(lines))

    @contextmanager
    def marked(self, marks: bytes) -> Iterator[None]:
        """Lines say this besides, too: members of an object, each with a comma behind it."""
        head = self._head
        self._head = head.removesuffix(b'"seq":') + marks + b'"seq":'
        try:
            yield
        finally:
            self._head = head
