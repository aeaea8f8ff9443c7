"""A connection without a socket: what it is fed, and what becomes of it."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import Any, cast

import httpx2

from runner.limits import SOCKET_BLOCK_BYTES
from runner.native.body import Body
from runner.native.connection import Connection
from tests.native.servers import turns


class FakeTransport(asyncio.Transport):
    """Keeps what is written, and says what was asked of it."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__({"socket": sock})
        self.aborted = self.paused = False
        self.written: list[bytes] = []
        self.holds = 0

    def write(self, data):
        self.written.append(bytes(data))

    def abort(self):
        self.aborted = True

    def is_closing(self):
        return self.aborted

    def pause_reading(self):
        self.paused = True

    def resume_reading(self):
        self.paused = False

    def get_write_buffer_size(self):
        return self.holds


class Wire:
    """A connection, its fake transport, and whether it was given back."""

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self.free = False
        self.buffer = memoryview(bytearray(SOCKET_BLOCK_BYTES))
        self.transport = FakeTransport(self._ours)
        self.connection = Connection(cast("Any", self), "key")
        self.connection.connection_made(self.transport)

    def opened(self, connection: Connection) -> None:
        pass

    def freed(self, connection: Connection) -> None:
        self.free = True

    def lost(self, connection: Connection) -> None:
        self.free = False

    def feed(self, data: bytes) -> None:
        """What a loop does with bytes that arrive."""
        for start in range(0, len(data), SOCKET_BLOCK_BYTES):
            piece = data[start : start + SOCKET_BLOCK_BYTES]
            self.connection.get_buffer(-1)[: len(piece)] = piece
            self.connection.buffer_updated(len(piece))

    def close(self) -> None:
        self.connection.connection_lost(None)
        self._ours.close()
        self._theirs.close()


@dataclass(frozen=True, slots=True)
class Outcome:
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    content: bytes
    error: type[httpx2.TransportError] | None
    reusable: bool


async def _read(asked: asyncio.Task[Body]) -> Outcome:
    blocks: list[bytes] = []
    error: type[httpx2.TransportError] | None = None
    status = 0
    headers: tuple[tuple[bytes, bytes], ...] = ()
    try:
        body = await asked
        status, headers = body.status, tuple(body.headers)
        while block := await body.read():
            blocks.append(block)
    except httpx2.TransportError as raised:
        error = type(raised)
    return Outcome(status, headers, b"".join(blocks), error, reusable=False)


async def fed(pieces: list[bytes]) -> Outcome:
    """What becomes of one request whose answer comes in these pieces, and then the connection's end."""
    wire = Wire()
    try:
        reader = asyncio.ensure_future(_read(asyncio.ensure_future(wire.connection.exchange(b"", b"", 0))))
        await turns()
        for piece in pieces:
            if not wire.transport.aborted and piece:
                wire.feed(piece)
        reusable = wire.free and not wire.transport.aborted
        if not wire.transport.aborted:
            wire.connection.eof_received()
        outcome = await reader
        return Outcome(outcome.status, outcome.headers, outcome.content, outcome.error, reusable)
    finally:
        wire.close()
