"""The load server of scripts/bench: it answers chat.completions with synthetic streams, as cheaply as Python can.

One asyncio.Protocol a connection, no HTTP library, every byte of an answer encoded beforehand. Several processes may
share a port (SO_REUSEPORT). An answer is a head, content chunks, and an end (finish reason, usage, [DONE]):

- paced: the head at once, then a chunk every `gap` ms by absolute deadlines: one that was late moves none behind it.
  One wheel a process holds all streams, by the millisecond in which their next chunk is due. Each stream begins at a
  phase of its own, drawn from [0, gap), since no server writes to all its clients at the same moment. The connection
  is closed by the client when it has read the end (`connection: close`): that moment says how far behind it was.
- flat out (no gap): as fast as the client reads, several chunks a write.
- one chunk an answer: everything in one write.

At SIGTERM it prints what it did as one JSON line. `late` is how long after its deadline a chunk was written: when that
grows, the server is the bottleneck and the measurement says nothing about its client. `behind` is how long after the
last chunk was written a client had read it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import resource
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

TICK_S = 0.001
WORDS = (" the", " of", " answer", " to", " question", " is", " and", " a", " stream", ".", " every", " token", ",")
MODEL = "bench-1"
GROUP = 32
"""Chunks in one write of a flat-out answer: about 8 KiB."""
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """The bytes of every answer of this server."""

    blocks: Sequence[bytes]
    """Written one by one: the head, then a content chunk each, the end with the last of them."""
    chunks: int

    @classmethod
    def of(cls, chunks: int, *, plain: bool = False, close: bool = False) -> Answer:
        events = [*contents(chunks), ending(chunks)]
        frame = bytes if plain else chunked
        body = [frame(event) for event in events[:-2]]
        last = b"".join(map(frame, events[-2:])) + (b"" if plain else b"0\r\n\r\n")
        length = sum(map(len, events)) if plain else None
        blocks = [head(length, close=close), *body, last]
        # An answer of one chunk is one write.
        return cls([b"".join(blocks)] if chunks == 1 else blocks, chunks)

    def grouped(self) -> list[bytes]:
        return [b"".join(self.blocks[at : at + GROUP]) for at in range(0, len(self.blocks), GROUP)]


def head(length: int | None, *, close: bool) -> bytes:
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    framing += "\r\nconnection: close" if close else ""
    return (
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nserver: bench\r\n"
        f"x-request-id: req_0123456789abcdef\r\nopenai-processing-ms: 12\r\n{framing}\r\n\r\n"
    ).encode()


def contents(chunks: int) -> Iterator[bytes]:
    """Content events; the words repeat, so that a long answer shares their bytes."""
    known = [event({"delta": {"content": word}, "finish_reason": None}) for word in WORDS]
    yield event({"delta": {"role": "assistant", "content": "Once"}, "finish_reason": None})
    yield from (known[number % len(known)] for number in range(chunks - 1))


def ending(chunks: int) -> bytes:
    usage = {"prompt_tokens": 8, "completion_tokens": chunks, "total_tokens": chunks + 8}
    return event({"delta": {}, "finish_reason": "stop"}) + event(None, usage) + b"data: [DONE]\n\n"


def event(choice: dict[str, object] | None, usage: dict[str, int] | None = None) -> bytes:
    """One event, of the size that OpenAI's have."""
    chunk = {
        "id": "chatcmpl-C0ffee00000000000000000000000",
        "object": "chat.completion.chunk",
        "created": 1_760_000_000,
        "model": MODEL,
        "service_tier": "default",
        "system_fingerprint": "fp_0123456789",
        "choices": [] if choice is None else [{"index": 0, "logprobs": None, **choice}],
        "usage": usage,
    }
    return f"data: {json.dumps(chunk, separators=(',', ':'))}\n\n".encode()


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass(slots=True)
class Done:
    """What this process did."""

    requests: int = 0
    chunks: int = 0
    open: int = 0
    most_open: int = 0
    late_ms: Counter[int] = field(default_factory=Counter)
    behind_ms: Counter[int] = field(default_factory=Counter)

    def report(self) -> dict[str, float]:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "requests": self.requests,
            "chunks": self.chunks,
            "most_open": self.most_open,
            "late_p50_ms": quantile(self.late_ms, 0.5),
            "late_p99_ms": quantile(self.late_ms, 0.99),
            "behind_p50_ms": quantile(self.behind_ms, 0.5),
            "behind_p99_ms": quantile(self.behind_ms, 0.99),
            "cpu_s": round(used.ru_utime + used.ru_stime, 3),
        }


def quantile(counts: Counter[int], q: float) -> int:
    """Of values that were counted; 0 where there are none."""
    rank, seen = q * counts.total(), 0
    for value, count in sorted(counts.items()):
        seen += count
        if seen >= rank:
            return value
    return 0


class Wheel:
    """All paced streams of this process, by the tick in which each is due. One timer turns it."""

    def __init__(self, gap_ms: int, done: Done) -> None:
        self._loop = asyncio.get_running_loop()
        self._gap = gap_ms
        self._done = done
        self._due: dict[int, list[Stream]] = {}
        self._tick = 0  # the last one that was served
        self._turning = False

    def add(self, stream: Stream) -> None:
        now = int(self._loop.time() / TICK_S)
        if not self._turning:
            self._turning, self._tick = True, now
            self._sleep()
        self._due.setdefault(now + 1 + random.randrange(self._gap), []).append(stream)

    def _sleep(self) -> None:
        self._loop.call_at((self._tick + 1) * TICK_S, self._turn)

    def _turn(self) -> None:
        while self._tick < (now := int(self._loop.time() / TICK_S)):
            self._tick += 1
            if streams := self._due.pop(self._tick, None):
                self._done.late_ms[now - self._tick] += len(streams)
                again = [stream for stream in streams if stream.step()]
                if again:
                    self._due.setdefault(self._tick + self._gap, []).extend(again)
        self._turning = bool(self._due)
        if self._turning:
            self._sleep()


class Stream:
    """One answer on its way."""

    __slots__ = ("_blocks", "_done", "_next", "_transport", "ended_at")

    def __init__(self, transport: asyncio.Transport, blocks: Sequence[bytes], done: Done) -> None:
        self._transport = transport
        self._blocks = blocks
        self._done = done
        self._next = 0
        self.ended_at = 0.0
        """Monotonic; 0 until the last block is written."""

    def step(self) -> bool:
        """Writes the next block; False when there is no more, or nobody to read it."""
        if self._transport.is_closing():
            return False
        self._transport.write(self._blocks[self._next])
        self._done.chunks += 1
        self._next += 1
        if self._next < len(self._blocks):
            return True
        self.ended_at = time.monotonic()
        return False


class Connection(asyncio.Protocol):
    """Requests one after another; a client that sends the next before the answer's end gets nonsense."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._received = bytearray()
        self._stream: Stream | None = None
        self._paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        done = self._server.done
        done.open += 1
        done.most_open = max(done.most_open, done.open)

    def connection_lost(self, exc: Exception | None) -> None:
        done = self._server.done
        done.open -= 1
        if self._server.wheel is not None and self._stream is not None and self._stream.ended_at:
            done.behind_ms[round((time.monotonic() - self._stream.ended_at) * 1000)] += 1

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        found = _LENGTH.search(self._received, 0, end)
        size = end + 4 + (int(found[1]) if found else 0)
        if len(self._received) >= size:
            del self._received[:size]
            self._answer()

    def _answer(self) -> None:
        server = self._server
        server.done.requests += 1
        stream = self._stream = Stream(self._transport, server.blocks, server.done)
        if server.wheel is None:
            self._go_on()
        elif stream.step():
            server.wheel.add(stream)

    def _go_on(self) -> None:
        """Writes a flat-out answer as far as the client reads it."""
        while self._stream is not None and not self._paused:
            if not self._stream.step():
                self._stream = None

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._server.wheel is None:
            self._go_on()


class Server:
    """What the connections of this process share."""

    def __init__(self, chunks: int, gap_ms: int, *, plain: bool = False) -> None:
        self.done = Done()
        paced = gap_ms > 0 and chunks > 1
        answer = Answer.of(chunks, plain=plain, close=paced)
        self.blocks = answer.blocks if paced else answer.grouped()
        self.wheel = Wheel(gap_ms, self.done) if paced else None


def listen(port: int) -> socket.socket:
    """A socket that other processes may share the port of; port 0 draws one."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", port))
    return sock


async def serve(options: argparse.Namespace) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    loop = asyncio.get_running_loop()
    server = Server(options.chunks, options.gap_ms, plain=options.plain)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    await loop.create_server(lambda: Connection(server), sock=listen(options.port), backlog=4096)
    print("ready", flush=True)
    await stop.wait()
    print(json.dumps(server.done.report()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--gap-ms", type=int, default=20, help="0: flat out (default %(default)s)")
    parser.add_argument("--chunks", type=int, default=100, help="of an answer (default %(default)s)")
    parser.add_argument("--plain", action="store_true", help="Content-Length instead of chunked coding")
    options = parser.parse_args()
    try:
        from uvloop import run
    except ImportError:
        from asyncio import run
    run(serve(options))


if __name__ == "__main__":
    main()
