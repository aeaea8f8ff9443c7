"""The server of scripts/truth: paced streams, and an exact account of when it wrote what.

One asyncio.Protocol a connection. A request's first content is due after a TTFT drawn for it (lognormal), each further
chunk a gap later, by absolute deadlines. What it says at its end is the truth that a load test is held against: for
every request when it had come, when its first and its last content were written, and every gap between the writes.

With --stall-at/--stall-s it writes and reads nothing for a while, as a server in a long garbage collection does.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import math
import random
import re
import signal
import sys
import time
from importlib.util import find_spec
from itertools import count
from typing import Any, cast

import anyio

TICK_S = 0.001
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def framed(*events: dict[str, Any] | str) -> bytes:
    data = b"".join(b"data: %b\n\n" % (e if isinstance(e, str) else json.dumps(e)).encode() for e in events)
    return b"%x\r\n%b\r\n" % (len(data), data)


def chunk(delta: dict[str, str], finish: str | None = None, **more: object) -> dict[str, Any]:
    same = {"id": "chatcmpl-t", "object": "chat.completion.chunk", "created": 0, "model": "truth"}
    return {**same, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


ROLE = framed(chunk({"role": "assistant", "content": ""}))
WORD = framed(chunk({"content": " word"}))


class Server:
    """All streams, by the time at which their next chunk is due."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.rng = random.Random(options.seed)
        self.requests: list[list[float]] = []
        """Came, first content written, last content written."""
        self.gaps: list[float] = []
        self.late: list[float] = []
        self.due: list[tuple[float, int, Stream]] = []
        self.order = count()
        usage = {"prompt_tokens": 8, "completion_tokens": options.chunks, "total_tokens": options.chunks + 8}
        end = {**chunk({}), "choices": [], "usage": usage}
        self.last = WORD + framed(chunk({}, "stop"), end, "[DONE]") + b"0\r\n\r\n"

    def add(self, transport: asyncio.Transport, came: float) -> None:
        transport.write(HEAD + ROLE)
        first = came + self.options.ttft_ms / 1000 * math.exp(self.rng.gauss(0, self.options.sigma))
        self.push(first, Stream(transport, came))

    def push(self, when: float, stream: Stream) -> None:
        heapq.heappush(self.due, (when, next(self.order), stream))

    async def turn(self) -> None:
        """Writes what is due, a thousand times a second: a millisecond late is no matter, since writes are stamped."""
        zero, stalled = time.monotonic(), False
        while True:
            now = time.monotonic()
            if not stalled and self.requests and 0 < self.options.stall_at_s < now - zero:
                time.sleep(self.options.stall_s)  # noqa: ASYNC251 - that is what a stall is
                stalled = True
            while self.due and self.due[0][0] <= time.monotonic():
                when, _, stream = heapq.heappop(self.due)
                self.write(when, stream)
            await asyncio.sleep(TICK_S)

    def write(self, when: float, stream: Stream) -> None:
        if stream.transport.is_closing():
            return
        stream.number += 1
        now = time.monotonic()
        self.late.append(now - when)
        if stream.number == 1:
            stream.first = now
        else:
            self.gaps.append(now - stream.last)
        stream.last = now
        if stream.number == self.options.chunks:
            self.requests.append([stream.came, stream.first, now])
            stream.transport.write(self.last)
            return
        stream.transport.write(WORD)
        self.push(when + self.options.gap_ms / 1000, stream)


class Stream:
    """One answer on its way."""

    __slots__ = ("came", "first", "last", "number", "transport")

    def __init__(self, transport: asyncio.Transport, came: float) -> None:
        self.transport = transport
        self.came = came
        self.first = self.last = 0.0
        self.number = 0


class Connection(asyncio.Protocol):
    """Requests one after another."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        came = time.monotonic()
        self.received += data
        end = self.received.find(b"\r\n\r\n")
        if end < 0:
            return
        found = LENGTH.search(self.received, 0, end)
        size = end + 4 + (int(found[1]) if found else 0)
        if len(self.received) >= size:
            del self.received[:size]
            self.server.add(self.transport, came)


async def serve(options: argparse.Namespace) -> None:
    server = Server(options)
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"{listening.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    turning = asyncio.create_task(server.turn())
    await stop.wait()
    turning.cancel()
    sys.stdout.write(
        json.dumps({"chunks": options.chunks, "requests": server.requests, "gaps": server.gaps, "late": server.late})
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ttft-ms", type=float, default=200.0, help="median (default %(default)s)")
    parser.add_argument("--sigma", type=float, default=0.2, help="of its logarithm (default %(default)s)")
    parser.add_argument("--gap-ms", type=float, default=20.0)
    parser.add_argument("--chunks", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stall-at-s", type=float, default=0.0, help="since its start; 0 is never")
    parser.add_argument("--stall-s", type=float, default=1.0)
    anyio.run(serve, parser.parse_args(), backend_options={"use_uvloop": find_spec("uvloop") is not None})


if __name__ == "__main__":
    main()
