"""What the server saw: the oracle of tests that ask whether a client told the truth.

Every request is an entry from the moment its body has been read until its answer has ended. /stats shows the counts
and the last 100,000 entries; with a file, each request is also a line of JSON at its arrival and another at its end,
written at once with one os.write, so that it survives a kill of the client and of the server.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import orjson

from runner.limits import SIMULATOR_KEYS, SIMULATOR_LOG_ENTRIES


@dataclass(slots=True)
class Entry:
    """One request."""

    n: int
    """Its number, from 1."""
    t: float
    """Monotonic seconds at its arrival."""
    endpoint: str
    key: str | None
    """`prompt_key` of its body; None where there is no valid body."""
    status: int | None = None
    """HTTP status; None where none was sent."""
    tokens: int = 0
    """Output tokens of the answer that was planned."""
    fault: str | None = None
    """The scenario that it met."""
    end: float | None = None
    disconnected: bool = False
    """The client went away before the end of the answer."""

    def as_dict(self) -> dict[str, Any]:
        """As /stats shows it."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Ledger:
    """Counts of one server, over its whole life."""

    clock: Callable[[], float] = time.monotonic
    file: Path | None = None
    by_endpoint: Counter[str] = field(default_factory=Counter)
    by_status: Counter[str] = field(default_factory=Counter)
    by_fault: Counter[str] = field(default_factory=Counter)
    by_key: dict[str, int] = field(default_factory=dict)
    """Requests with the same content; the oldest are forgotten beyond SIMULATOR_KEYS."""
    served: dict[str, int] = field(default_factory=dict)
    """The part of them that the limits let in."""
    log: deque[Entry] = field(default_factory=lambda: deque(maxlen=SIMULATOR_LOG_ENTRIES))
    requests: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    disconnects: int = 0
    _fd: int | None = None

    def __enter__(self) -> Self:
        if self.file is not None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            self._fd = os.open(self.file, flags, 0o600)
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def arrive(self, endpoint: str, key: str | None) -> Entry:
        """Enters a request."""
        self.requests += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        self.by_endpoint[endpoint] += 1
        if key is not None:
            _count(self.by_key, key)
        entry = Entry(self.requests, self.clock(), endpoint, key)
        self.log.append(entry)
        self._write({"event": "arrive", "n": entry.n, "t": entry.t, "endpoint": endpoint, "key": key})
        return entry

    def let_in(self, entry: Entry) -> int:
        """How many requests with this content the limits have let in, this one included."""
        return 1 if entry.key is None else _count(self.served, entry.key)

    def leave(self, entry: Entry) -> None:
        """Closes an entry."""
        self.in_flight -= 1
        entry.end = self.clock()
        self.by_status[str(entry.status) if entry.status else "none"] += 1
        if entry.fault is not None:
            self.by_fault[entry.fault] += 1
        self.disconnects += entry.disconnected
        self._write({"event": "end"} | entry.as_dict())

    def stats(self, last: int | None = None) -> dict[str, Any]:
        """What /stats answers, with the `last` entries of the log (all by default)."""
        entries = list(self.log)
        shown = entries if last is None else entries[len(entries) - min(last, len(entries)) :]
        return {
            "synthetic": True,
            "requests": self.requests,
            "by_endpoint": self.by_endpoint,
            "by_status": self.by_status,
            "by_fault": self.by_fault,
            "by_key": self.by_key,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "disconnects": self.disconnects,
            "now": self.clock(),
            "log": [entry.as_dict() for entry in shown],
        }

    def _write(self, line: dict[str, Any]) -> None:
        if self._fd is not None:
            os.write(self._fd, orjson.dumps(line) + b"\n")


def _count(counts: dict[str, int], key: str) -> int:
    counts[key] = counts.get(key, 0) + 1
    if len(counts) > SIMULATOR_KEYS:
        del counts[next(iter(counts))]
    return counts[key]
