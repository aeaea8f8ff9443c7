"""A request's head as bytes: made once for an endpoint and credential, and sent with each request's own length.

Refused, before anything is sent: names that are no tokens, values with CR, LF or NUL (they would begin a header or a
request of their own: RFC 9112 §11.1), schemes other than http and https, and the two methods whose answers are framed
in another way than all others.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import httpx2

from runner.native.proxy import Proxy

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(rb"[^\r\n\0]*")
_FRAMING: Final = (b"content-length", b"transfer-encoding")
_UNUSUAL_METHODS: Final = ("HEAD", "CONNECT")


class Origin(NamedTuple):
    """Where a connection leads: connections to one origin can stand in for each other."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> bytes:
        """As in CONNECT: the host, and always the port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}".encode("ascii")


class Template(NamedTuple):
    """What the requests of one endpoint and credential have in common."""

    request: httpx2.Request
    origin: Origin
    head: bytes
    """Up to and with `Content-Length: `; the number, an empty line and the content follow."""

    @classmethod
    def of(cls, request: httpx2.Request, proxy: Proxy | None = None) -> Template:
        """The template that a built request is an example of.

        Raises:
            httpx2.UnsupportedProtocol, httpx2.LocalProtocolError: it can't be sent.
        """
        origin = _origin(request)
        lines = [_request_line(request, origin, proxy), *_header_lines(request)]
        if proxy is not None and origin.scheme == "http":
            lines += proxy.authorization_lines
        return cls(request, origin, b"".join(line + b"\r\n" for line in lines) + b"Content-Length: ")


def _origin(request: httpx2.Request) -> Origin:
    url = request.url
    if url.scheme not in _DEFAULT_PORTS or not url.host:
        raise httpx2.UnsupportedProtocol(f"only http:// and https:// can be requested, not {url.scheme}://")
    host = url.raw_host.decode("ascii").strip("[]").rstrip(".")
    return Origin(url.scheme, host, url.port or _DEFAULT_PORTS[url.scheme])


def _request_line(request: httpx2.Request, origin: Origin, proxy: Proxy | None) -> bytes:
    method = request.method.encode("ascii", "replace")
    if not _TOKEN.fullmatch(method) or request.method in _UNUSUAL_METHODS:
        raise httpx2.LocalProtocolError(f"the method {request.method!r} can't be sent")
    target = request.url.raw_path
    if not _VALUE.fullmatch(target) or b" " in target:
        raise httpx2.LocalProtocolError("the request's path has characters that must be escaped")
    if proxy is not None and origin.scheme == "http":
        target = b"http://" + request.url.netloc + target
    return b"%b %b HTTP/1.1" % (method, target)


def _header_lines(request: httpx2.Request) -> list[bytes]:
    lines: list[bytes] = []
    for name, value in request.headers.raw:
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            # The value isn't shown: it may be the key, with a newline at its end.
            raise httpx2.LocalProtocolError(f"the header {name!r} has characters that must not stand in a header")
        if name.lower() not in _FRAMING:
            lines.append(b"%b: %b" % (name, value))
    return lines
