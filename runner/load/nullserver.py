"""The null server: streams of fixed bytes, as cheaply as Python can, so that what is timed is the client alone.

One asyncio.Protocol a connection, no HTTP library, every byte encoded beforehand. Two answers, by path:

- `/paced/…`: CHUNKS chunks, one every GAP_MS, by absolute deadlines: one that was late moves none behind it. Every
  stream begins at a phase of its own, since no server writes to all its clients in the same moment.
- `/once/…`: a whole answer of one chunk in one write.

It runs in a process of its own, says its port, and ends with its standard input, hence with its parent.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import time
from typing import Final, cast

import anyio

from runner import resources

CHUNKS: Final = 50
GAP_MS: Final = 20
_TICK_S: Final = 0.001
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nx-request-id: null\r\n\r\n"
)


def _event(**more: object) -> bytes:
    same = {"id": "chatcmpl-null", "object": "chat.completion.chunk", "created": 0, "model": "null"}
    return b"data: %b\n\n" % json.dumps({**same, **more}).encode()


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _content(text: str) -> bytes:
    return _event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}])


def _end(chunks: int) -> bytes:
    usage = {"prompt_tokens": 8, "completion_tokens": chunks, "total_tokens": chunks + 8}
    finish = _event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
    return _framed(finish + _event(choices=[], usage=usage) + b"data: [DONE]\n\n") + b"0\r\n\r\n"


_CHUNK: Final = _framed(_content(" word"))
_LAST: Final = _end(CHUNKS)
_ONCE: Final = _HEAD + _CHUNK + _end(1)


class Wheel:
    """All paced streams, by the millisecond in which their next chunk is due."""

    def __init__(self) -> None:
        self._due: dict[int, list[tuple[asyncio.Transport, int]]] = {}
        self._zero_s = time.monotonic()
        self._tick = 0
        self._turning = False

    def add(self, transport: asyncio.Transport) -> None:
        """Begins a stream."""
        transport.write(_HEAD)
        now = int((time.monotonic() - self._zero_s) / _TICK_S)
        if not self._turning:
            self._tick = now
            self._turning = True
            asyncio.get_running_loop().call_later(_TICK_S, self._turn)
        self._due.setdefault(now + 1 + random.randrange(GAP_MS), []).append((transport, 0))

    def _turn(self) -> None:
        now = int((time.monotonic() - self._zero_s) / _TICK_S)
        while self._tick < now:
            self._tick += 1
            for transport, written in self._due.pop(self._tick, ()):
                if not transport.is_closing():
                    self._step(transport, written + 1)
        self._turning = bool(self._due)
        if self._turning:
            asyncio.get_running_loop().call_later(_TICK_S, self._turn)

    def _step(self, transport: asyncio.Transport, number: int) -> None:
        if number == CHUNKS:
            transport.write(_CHUNK + _LAST)
            return
        transport.write(_CHUNK)
        self._due.setdefault(self._tick + GAP_MS, []).append((transport, number))


class Connection(asyncio.Protocol):
    """Requests one after another; a client that sends the next before the answer's end gets nonsense."""

    def __init__(self, wheel: Wheel) -> None:
        self._wheel = wheel
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        """A request, or a piece of one."""
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        found = _LENGTH.search(self._received, 0, end)
        size = end + 4 + (int(found[1]) if found else 0)
        if len(self._received) < size:
            return
        once = self._received.startswith(b"POST /once")
        del self._received[:size]
        if once:
            self._transport.write(_ONCE)
        else:
            self._wheel.add(self._transport)


async def serve() -> None:
    """Serves until standard input ends."""
    loop = asyncio.get_running_loop()
    wheel = Wheel()
    server = await loop.create_server(lambda: Connection(wheel), "127.0.0.1", 0, backlog=1024)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.buffer.read)
    server.close()


def main() -> None:
    """Runs it, on uvloop where that is installed."""
    anyio.run(serve, backend_options=resources.event_loop())


if __name__ == "__main__":
    main()
