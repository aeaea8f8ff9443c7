"""What has arrived of one answer, and the one task that waits for it.

The connection puts in blocks where they arrive; the reader takes all that is there, without a task switch, or waits; or
it leaves a function that takes them where they arrive (`pour`), and no task is woken for a chunk.
A body outlives its connection's interest in it: when the last byte is in, the connection serves another request while
the blocks are still being read.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

import anyio
import httpx2

from runner.transport import Take


class Source(Protocol):
    """What a body asks of its connection."""

    def resume(self) -> None:
        """The reader has caught up: read the socket again."""

    def abort(self) -> None:
        """Nobody wants the rest."""


class Body(httpx2.AsyncByteStream):
    """The body of one response, read as it arrives."""

    __slots__ = (
        "_blocks",
        "_ended",
        "_error",
        "_first_ns",
        "_source",
        "_take",
        "_waiter",
        "arrived_ns",
        "headers",
        "headers_ns",
        "sent_ns",
        "size",
        "status",
    )

    def __init__(self, source: Source, sent_ns: int) -> None:
        self._source = source
        self._blocks: list[bytes] = []
        self._ended = False
        self._error: httpx2.TransportError | None = None
        self._take: Take | None = None
        self._waiter: asyncio.Future[bool] | None = None
        self._first_ns = 0
        self.status = 0
        """0 until the answer's headers are in."""
        self.headers: list[tuple[bytes, bytes]] = []
        self.size = 0
        """Bytes that have arrived and not been read."""
        self.sent_ns = sent_ns
        """Monotonic, when the request was handed to the connection pool."""
        self.headers_ns = 0
        """Monotonic, when the last of the headers arrived."""
        self.arrived_ns = 0
        """Monotonic, when the first byte of what the last read returned arrived at the socket."""

    # ── The connection's side ────────────────────────────────────────────────────────────────────────────────────

    def open(self, status: int, headers: list[tuple[bytes, bytes]], now_ns: int) -> None:
        """The answer's headers are in."""
        self.status = status
        self.headers = headers
        self.headers_ns = now_ns

    def put(self, block: bytes, now_ns: int) -> None:
        """A piece of the body is in."""
        if not self._blocks:
            self._first_ns = now_ns
        self._blocks.append(block)
        self.size += len(block)

    def end(self, error: httpx2.TransportError | None = None) -> None:
        """The last piece is in, or nothing more will come."""
        self._ended = True
        self._error = error

    def wake(self) -> None:
        """Lets the waiting task see what has come, or what it left behind."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        take = self._take
        if take is None:
            waiter.set_result(False)
            return
        try:
            enough = bool(self._blocks) and take(self._taken(), self.arrived_ns)
        except Exception as error:  # the task's, not the connection's
            waiter.set_exception(error)
        else:
            if enough or self._ended:
                waiter.set_result(enough)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self._ended

    async def wait(self) -> bool:
        """Returns after the next `wake`; True if `pour`'s function has had enough."""
        assert self._waiter is None, "two tasks read one body"
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    async def opened(self) -> None:
        """Returns when the headers are in.

        Raises:
            httpx2.TransportError: they won't come.
        """
        while not self.status and not self._ended:
            await self.wait()
        if self._error is not None and not self.status:
            raise self._error

    # ── The reader's side ────────────────────────────────────────────────────────────────────────────────────────

    async def read(self) -> bytes:
        """What has arrived since the last read, or b"" at the end. Its arrival is then in `arrived_ns`.

        Raises:
            httpx2.TransportError: the connection broke before the body's end.
        """
        while not self._blocks:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return b""
            await self.wait()
        if not self._ended:
            self._source.resume()
        return self._taken()

    async def pour(self, take: Take) -> bool:
        """Hands over what has arrived, and what arrives where it does; True when `take` has enough, False at the end.

        Raises:
            httpx2.TransportError: the connection broke before the body's end. What came before has been handed over.
            Exception: whatever `take` raised.
        """
        while self._blocks or not self._ended:
            if not self._ended:
                self._source.resume()
            if self._blocks:
                if take(self._taken(), self.arrived_ns):
                    return True
                continue
            self._take = take
            try:
                if await self.wait():
                    return True
            finally:
                self._take = None
        if self._error is not None:
            raise self._error
        return False

    def _taken(self) -> bytes:
        blocks = self._blocks
        self.arrived_ns = self._first_ns
        self._blocks = []
        self.size = 0
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    @property
    def at_end(self) -> bool:
        """Whether the body's end has been read: the connection can serve another request."""
        return self._ended and self._error is None and not self._blocks

    async def read_some(self, size: int, seconds: float) -> bytes:
        """What comes of the body within so many bytes and seconds; where it breaks off is no error."""
        blocks: list[bytes] = []
        with anyio.move_on_after(seconds), contextlib.suppress(httpx2.TransportError):
            while size > 0 and (block := await self.read()):
                blocks.append(block[:size])
                size -= len(block)
        return b"".join(blocks)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """For AsyncOpenAI's own reading of a body."""
        while block := await self.read():
            yield block

    async def aclose(self) -> None:
        """Closes the connection unless the body is whole; the connection was given back when its last byte came."""
        if not self._ended:
            self.end(httpx2.ReadError("the body was closed before its end"))
            self.wake()
            self._source.abort()
