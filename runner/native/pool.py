"""Open connections, and the idle ones by origin: the last used is taken first, and no list is ever searched.

A connection that the server closes while it is idle leaves at once. One that nobody has used for `KEEPALIVE_S` is
closed: by then a firewall in between may have forgotten it without a word. One timer serves them all.
"""

from __future__ import annotations

import asyncio
from typing import Final

from runner.limits import KEEPALIVE_S, SOCKET_BLOCK_BYTES
from runner.native.connection import Connection

_CLOSING_ROUNDS: Final = 100
"""Rounds of the loop that closed connections may take to leave it; two or three are usual."""


class Pool:
    """The connections of one transport."""

    def __init__(self) -> None:
        # Dicts as ordered sets: the last in is the first out, the oldest stands first, any leaves in O(1).
        self._idle: dict[object, dict[Connection, float]] = {}
        self._open: set[Connection] = set()
        self._reaper: asyncio.TimerHandle | None = None
        self._closed = False
        self._buffer = memoryview(bytearray(SOCKET_BLOCK_BYTES))

    @property
    def buffer(self) -> memoryview:
        """Where all of them read to, one after the other."""
        return self._buffer

    def take(self, key: object) -> Connection | None:
        """An idle connection on which nothing has come, not even its end; None if there is none."""
        idle = self._idle.get(key)
        while idle:
            connection, _ = idle.popitem()
            if connection.is_fresh:
                return connection
            connection.abort()
        return None

    def opened(self, connection: Connection) -> None:
        """Keeps account of it; one that comes when all is closed is closed as well."""
        self._open.add(connection)
        if self._closed:
            connection.abort()

    def freed(self, connection: Connection) -> None:
        """Keeps it for the next request."""
        loop = asyncio.get_running_loop()
        self._idle.setdefault(connection.key, {})[connection] = loop.time()
        if self._reaper is None:
            self._reaper = loop.call_later(KEEPALIVE_S, self._reap)

    def lost(self, connection: Connection) -> None:
        """Forgets it."""
        self._open.discard(connection)
        self._idle.get(connection.key, {}).pop(connection, None)

    def _reap(self) -> None:
        """Closes what has been idle for too long."""
        loop = asyncio.get_running_loop()
        self._reaper = None
        oldest: list[float] = []
        for idle in self._idle.values():
            for connection, since in list(idle.items()):
                if since > loop.time() - KEEPALIVE_S:
                    oldest.append(since)
                    break
                del idle[connection]
                connection.abort()
        if oldest:
            self._reaper = loop.call_at(min(oldest) + KEEPALIVE_S, self._reap)

    async def aclose(self) -> None:
        """Closes every connection, and returns when their sockets are closed."""
        self._closed = True
        if self._reaper is not None:
            self._reaper.cancel()
        for connection in list(self._open):
            connection.abort()
        for _ in range(_CLOSING_ROUNDS):
            if not self._open:
                break
            await asyncio.sleep(0)
