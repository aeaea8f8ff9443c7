"""One connection: writes a request, and parses its answer where the bytes arrive.

Steps of an exchange: write; wait for the headers; hand the body's blocks on as they come; at its last byte be free for
another request, or close.

- What comes while no answer is owed (a late byte, a second response, the server's goodbye) closes the connection.
- A request of up to `SMALL_BODY_BYTES` is one write. A larger one goes in slices, as fast as the socket takes them; the
  answer may overtake it. After an answer that is no success the rest isn't sent, and the connection isn't used again.
- Reading stops while `SOCKET_BLOCK_BYTES` wait to be read, so that one answer holds that and one read more.
- Framing is llhttp's, with none of its leniencies: two lengths, a length beside chunks, and a bare CR are errors.
"""

from __future__ import annotations

import asyncio
import select
from time import monotonic_ns
from typing import Final, Protocol, cast

import httptools
import httpx2

from runner.limits import KIB, SOCKET_BLOCK_BYTES
from runner.native.body import Body

MAX_HEAD_BYTES: Final = 64 * KIB
"""Of an answer's headers, its interim answers and trailers included, and of what frames a chunk. Servers' own limits
for requests are 8 to 64 KiB; gateways add some hundred bytes to an answer."""
MAX_HEADERS: Final = 256
"""Fields of one answer: aiohttp takes 128, Apache 100; the API sends about 25."""
SMALL_BODY_BYTES: Final = 64 * KIB
"""asyncio's own high-water mark: what is below it, the transport may hold."""
_HTTP_VERSIONS: Final = ("1.1", "1.0")
_FRAMING: Final = (b"content-length", b"transfer-encoding")
_INTERIM: Final = range(100, 200)
_SWITCHING: Final = 101


class Owner(Protocol):
    """Who is told what becomes of a connection."""

    @property
    def buffer(self) -> memoryview:
        """Where any of its connections reads to: each has parsed it before the next one reads.

        asyncio would allocate 256 KiB for every read and shrink it to what came: that took 27 of a chunk's 45 µs.
        """

    def opened(self, connection: Connection) -> None:
        """It is there."""

    def freed(self, connection: Connection) -> None:
        """It can serve another request."""

    def lost(self, connection: Connection) -> None:
        """It is closed."""


class _Unwanted(Exception):
    """Raised in a callback of the parser at an answer that isn't read on."""


class Connection(asyncio.BufferedProtocol):
    """One connection to an origin, for one request at a time."""

    __slots__ = (
        "_body",
        "_buffer",
        "_complete",
        "_cut",
        "_field_bytes",
        "_full",
        "_headers",
        "_lasting",
        "_now_ns",
        "_owner",
        "_parser",
        "_paused",
        "_pieces",
        "_poll",
        "_status",
        "_transport",
        "_unframed",
        "key",
        "on_body",
    )

    def __init__(self, owner: Owner, key: object) -> None:
        self.key = key
        """What the owner keeps it under."""
        self._owner = owner
        self._buffer = owner.buffer
        self._transport: asyncio.Transport | None = None
        self._poll: select.poll | None = None
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append
        """A callback of the parser: a piece of the body."""
        self._parser: httptools.HttpResponseParser | None = None
        self._body: Body | None = None
        self._full = self._paused = self._cut = self._complete = self._lasting = False
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._field_bytes = 0
        self._unframed = 0
        self._now_ns = 0

    # ── For the owner and the body ───────────────────────────────────────────────────────────────────────────────

    async def exchange(self, head: bytes, content: bytes, sent_ns: int) -> Body:
        """Sends one request (`head` ends where the content's length is due); returns when its headers have come.

        Raises:
            httpx2.TransportError: they won't.
        """
        body = self._body = Body(self, sent_ns)
        self._status = self._unframed = self._field_bytes = 0
        self._headers = []
        self._complete = self._cut = False
        try:
            request = b"%b%d\r\n\r\n" % (head, len(content))
            if len(content) <= SMALL_BODY_BYTES:
                self._write(request + content)
            else:
                await self._write_in_slices(body, request, memoryview(content))
            await body.opened()
        except BaseException:
            self.abort()
            raise
        return body

    @property
    def is_fresh(self) -> bool:
        """Whether an idle connection is as it was left: nothing has come since, and no end.

        Asks the kernel: the server's FIN may be there although the loop hasn't come to it. It costs a microsecond, and
        saves the request that would be written to a closed connection, of which nobody could say if it was seen.
        """
        return self._transport is not None and self._poll is not None and not self._poll.poll(0)

    def abort(self) -> None:
        """Closes at once. Whoever waits for an answer is told."""
        body, self._body = self._body, None
        if body is not None and not body.ended:
            body.end(httpx2.ReadError("the connection was closed"))
            body.wake()
        if self._transport is not None:
            self._transport.abort()

    def resume(self) -> None:
        """Reads the socket again."""
        if self._paused:
            self._paused = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    # ── Writing ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _write(self, data: bytes | memoryview) -> None:
        if self._transport is None or self._transport.is_closing():
            raise httpx2.WriteError("the connection is closed")
        self._transport.write(data)

    async def _write_in_slices(self, body: Body, request: bytes, content: memoryview) -> None:
        self._cut = True
        self._write(request)
        for start in range(0, len(content), SMALL_BODY_BYTES):
            while self._full and not body.status and not body.ended:
                await body.wait()
            if body.ended or body.status >= 300:
                return
            self._write(content[start : start + SMALL_BODY_BYTES])
        self._cut = False

    def pause_writing(self) -> None:
        """The transport holds enough."""
        self._full = True

    def resume_writing(self) -> None:
        """The socket has taken what the transport held."""
        self._full = False
        if self._body is not None:
            self._body.wake()

    # ── Reading ──────────────────────────────────────────────────────────────────────────────────────────────────

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the loop is to read to."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Parses what has arrived, and wakes the reader once."""
        body, parser, pieces = self._body, self._parser, self._pieces
        if body is None or parser is None:
            self.abort()
            return
        now_ns = self._now_ns = monotonic_ns()
        try:
            parser.feed_data(self._buffer[:nbytes])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if pieces:
                body.put(b"".join(pieces), now_ns)
            self._misunderstood(body, error)
            return
        waits = False
        if pieces:
            self._unframed = 0
            waits = body.put(b"".join(pieces), now_ns)
            pieces.clear()
        else:
            self._unframed += nbytes
        if not waits or self._complete:
            self._look_up(body)

    def _look_up(self, body: Body) -> None:
        """Sees to what a read may have changed, which is nothing for most."""
        if self._unframed > MAX_HEAD_BYTES and not self._complete:
            self._fail(body, httpx2.RemoteProtocolError(f"more than {MAX_HEAD_BYTES} bytes of headers"))
            return
        if self._complete:
            self._release(body)
        body.wake()
        # Asked when it has been poured, if it is: nobody would start the socket again for what was taken.
        if body.size > SOCKET_BLOCK_BYTES and not body.ended and not self._paused:
            self._paused = True
            cast("asyncio.Transport", self._transport).pause_reading()

    def _misunderstood(self, body: Body, error: Exception) -> None:
        if self._complete:
            # The answer was whole; what came after it nobody asked for.
            self._complete = False
            body.end()
            body.wake()
            self.abort()
            return
        reason = error.__context__ if isinstance(error.__context__, _Unwanted) else error
        self._fail(body, httpx2.RemoteProtocolError(f"the server's answer is no HTTP: {reason}"), error)

    def _release(self, body: Body) -> None:
        """The last byte is in: the connection is free, if both sides are done with the request."""
        self._body = None
        self._complete = False
        body.end()
        assert self._transport is not None
        if self._cut or not self._lasting or self._transport.get_write_buffer_size():
            self._transport.abort()
            return
        self.resume()
        self._owner.freed(self)

    def _fail(self, body: Body, error: httpx2.TransportError, cause: BaseException | None = None) -> None:
        error.__cause__ = cause
        body.end(error)
        body.wake()
        self.abort()

    # ── The parser's callbacks ───────────────────────────────────────────────────────────────────────────────────

    def on_message_begin(self) -> None:
        """A response begins: the one that is owed, or one that isn't."""
        if self._complete:
            raise _Unwanted("a second answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which is left out."""
        size = self._field_bytes = self._field_bytes + len(name) + len(value)
        if size > MAX_HEAD_BYTES:
            raise _Unwanted(f"more than {MAX_HEAD_BYTES} bytes of headers")
        if not self._status:
            headers = self._headers
            headers.append((name, value.rstrip(b" \t")))
            if len(headers) > MAX_HEADERS:
                raise _Unwanted(f"more than {MAX_HEADERS} headers")

    def on_headers_complete(self) -> None:
        """The head is whole: of an interim answer, which says nothing, or of the answer."""
        assert self._parser is not None
        assert self._body is not None
        if self._parser.get_http_version() not in _HTTP_VERSIONS:
            raise _Unwanted("its version isn't 1.0 or 1.1")
        status = self._parser.get_status_code()
        if status == _SWITCHING:
            raise _Unwanted("it switches to another protocol")
        if status in _INTERIM:
            self._headers = []
            return
        self._status = status
        self._body.open(status, self._headers, self._now_ns)

    def on_message_complete(self) -> None:
        """The answer, or an interim one, is whole."""
        assert self._parser is not None
        self._complete = self._status != 0
        self._lasting = self._parser.should_keep_alive()  # llhttp has forgotten it when this callback returns

    # ── The socket's life ────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open: TLS, if any, is done."""
        self._transport = cast("asyncio.Transport", transport)
        self._parser = httptools.HttpResponseParser(self)
        self._poll = select.poll()
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._owner.opened(self)

    def eof_received(self) -> None:
        """The server will send no more."""
        self._end(None)
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self._end(exc)
        # The parser holds this object's methods: without a word the two would wait for the garbage collector.
        self._transport = self._parser = self._poll = None
        self._owner.lost(self)

    def _end(self, cause: Exception | None) -> None:
        body = self._body
        if body is None:
            return
        if cause is None and body.status and self._lasts_until_close():
            body.end()
            body.wake()
            self._body = None
        elif body.status:
            self._fail(body, httpx2.RemoteProtocolError("the connection was closed before the body's end"), cause)
        else:
            self._fail(body, httpx2.ReadError("the server closed the connection without an answer"), cause)

    def _lasts_until_close(self) -> bool:
        """Whether the body's end is the connection's: it has no other frame (RFC 9112 §6.3)."""
        return not any(name.lower() in _FRAMING for name, _ in self._headers)
