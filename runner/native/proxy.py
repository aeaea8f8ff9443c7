"""An HTTP proxy: what its URL says, and the tunnel that CONNECT opens through it (RFC 9110 §9.3.6).

After a 2xx to CONNECT the connection belongs to the origin, whatever length or `Connection: close` the proxy wrote
beside it: so its answer is read here, to the empty line and no further, and not by the parser of responses.
"""

from __future__ import annotations

import asyncio
import base64
import re
from typing import Final, NamedTuple, cast
from urllib.parse import unquote, urlsplit

import httpx2

MAX_ANSWER_BYTES: Final = 16 * 1024
"""A longer answer to CONNECT is none: it has no body, and a refusal's body isn't read."""
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-9]\d\d)(?: ([ -~]{0,100}))?")


class Proxy(NamedTuple):
    """Where a proxy listens and how to log in to it."""

    scheme: str
    host: str
    port: int
    authorization_lines: tuple[bytes, ...]
    """`Proxy-Authorization`, or nothing."""

    @classmethod
    def of(cls, url: str) -> Proxy:
        """The proxy that a URL (`http://user:password@host:port`) names."""
        parts = urlsplit(url)
        lines: tuple[bytes, ...] = ()
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            lines = (b"Proxy-Authorization: Basic " + base64.b64encode(login),)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return cls(parts.scheme, parts.hostname or "", port, lines)

    def connect_head(self, authority: bytes) -> bytes:
        """The request for a tunnel to an origin."""
        lines = (b"CONNECT %b HTTP/1.1" % authority, b"Host: " + authority, *self.authorization_lines)
        return b"".join(line + b"\r\n" for line in lines) + b"\r\n"


class Tunnel(asyncio.Protocol):
    """Asks a proxy for a tunnel; afterwards the transport can be given to another protocol."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport

    async def ask(self, head: bytes) -> None:
        """Sends a CONNECT and returns when the proxy has granted it.

        Raises:
            httpx2.ProxyError: it refused, answered with something else, or closed the connection.
        """
        self.transport.write(head)
        answer = await self._answer
        status = _STATUS.match(answer)
        if status is None:
            raise httpx2.ProxyError("the proxy's answer to CONNECT is no HTTP")
        if not status[1].startswith(b"2"):
            raise httpx2.ProxyError(f"the proxy refused to connect: {status[0].decode()}")
        if not answer.endswith(b"\r\n\r\n"):
            raise httpx2.ProxyError("the proxy sent more than its answer to CONNECT")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The proxy is reached."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """A piece of its answer."""
        if self._answer.done():
            return
        self._received += data
        if b"\r\n\r\n" in self._received:
            self._answer.set_result(bytes(self._received))
        elif len(self._received) > MAX_ANSWER_BYTES:
            self._answer.set_exception(httpx2.ProxyError("the proxy's answer to CONNECT is too long"))

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        if not self._answer.done():
            error = httpx2.ProxyError("the proxy closed the connection instead of answering CONNECT")
            error.__cause__ = exc
            self._answer.set_exception(error)
            self._answer.exception()  # seen: whoever asked may be cancelled by now
