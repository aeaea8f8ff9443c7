"""Servers on bare sockets that send what a test says, byte for byte, and count what they were sent."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from runner.transport import BODY

CONTENT = b'{"model":"m"}'
TEXT = b"data: one\n\ndata: two\n\n"


def head(*lines: str, status: str = "200 OK", version: str = "HTTP/1.1") -> bytes:
    return "".join(f"{line}\r\n" for line in (f"{version} {status}", *lines, "")).encode()


def sized(content: bytes = TEXT, *lines: str, status: str = "200 OK") -> bytes:
    return head("content-type: text/event-stream", f"content-length: {len(content)}", *lines, status=status) + content


def chunks(*blocks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(block), block) for block in (*blocks, b""))


def chunked(*blocks: bytes) -> bytes:
    return head("content-type: text/event-stream", "transfer-encoding: chunked") + chunks(*blocks)


@dataclass
class Server:
    """What a server saw, and its connections that are open."""

    port: int = 0
    scheme: str = "http"
    connections: int = 0
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Heads and contents."""
    open: set[asyncio.Transport] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/v1"


Answer = Callable[[Server, asyncio.Transport], None]


class _Raw(asyncio.Protocol):
    def __init__(self, server: Server, answer: Answer, *, whole: bool) -> None:
        self._server = server
        self._answer = answer
        self._whole = whole
        self._received = bytearray()
        self._transport: Any = None

    def connection_made(self, transport):
        self._transport = transport
        self._server.connections += 1
        self._server.open.add(transport)

    def data_received(self, data):
        self._received += data
        while (end := self._received.find(b"\r\n\r\n") + 4) > 3:
            head = bytes(self._received[:end])
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
            if self._whole and len(self._received) < end + length:
                return
            self._server.requests.append((head, bytes(self._received[end : end + length])))
            del self._received[: end + length]
            self._answer(self._server, self._transport)
            if not self._whole:
                self._received.clear()
                return

    def connection_lost(self, exc):
        self._server.open.discard(self._transport)


@asynccontextmanager
async def serving(answer: Answer | bytes, *, context: ssl.SSLContext | None = None, whole: bool = True):
    """Answers every request with bytes, or as a function says; `whole=False`: as soon as its head is there."""
    reply = (lambda _, transport: transport.write(answer)) if isinstance(answer, bytes) else answer
    server = Server(scheme="https" if context else "http")
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: _Raw(server, reply, whole=whole), "127.0.0.1", 0, ssl=context)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for transport in list(server.open):
            transport.abort()
        await turns(5)


async def turns(n: int = 3) -> None:
    """Lets the loop go round: what is under way between two sockets of this process arrives."""
    for _ in range(n):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Goes round until something has happened; a test's own deadline ends one that waits in vain."""
    while not condition():  # noqa: ASYNC110 - what is waited for is the kernel's, and sets no event
        await asyncio.sleep(0)


def reset(transport: asyncio.Transport) -> None:
    """Ends a connection by RST."""
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def request(url: str, content: bytes = CONTENT, **headers: str) -> httpx2.Request:
    return httpx2.Request("POST", url, content=content, headers=headers)


async def fetch(transport: Any, url: str, content: bytes = CONTENT) -> tuple[int, bytes]:
    """Status and whole body."""
    response = await transport.handle_async_request(request(url, content))
    body = response.extensions[BODY]
    blocks = []
    try:
        while block := await body.read():
            blocks.append(block)
    finally:
        await body.aclose()
    return response.status_code, b"".join(blocks)


@dataclass(frozen=True, slots=True)
class Left:
    """Descriptors and tasks of this process."""

    descriptors: int
    tasks: int

    @classmethod
    def now(cls) -> Left:
        return cls(len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks()))
