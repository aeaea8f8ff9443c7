"""The httpx2 transport under AsyncOpenAI: one aiohttp session, with a guard on what comes back.

AsyncOpenAI builds every request (authorisation, base URL, headers) and raises its own errors for every bad status; only
the bytes pass through here. What this adds to the transport that the SDK vendors:

- no hidden connection limit (aiohttp's own is 100) and keep-alive that outlasts a pause between paced requests;
- no redirects, no cookies, no decompression, no response larger than a bound;
- a monotonic stamp of when the request went out;
- the response body is handed on as a `Body`, which the attempt reads block by block as it arrives.

Deadlines are the attempt's: only connecting has a timeout of its own here. Source for the map of exceptions:
aiohttp.client_exceptions and httpx2._exceptions of the installed versions.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import anyio
import httpx2
import yarl
from multidict import CIMultiDict

from runner.errors import UsageError
from runner.limits import CONNECT_TIMEOUT_S, KEEPALIVE_S, SOCKET_BLOCK_BYTES

BODY: Final = "runner.body"
"""Key of `Body` in a response's extensions."""


Take = Callable[[list[bytes], list[int]], bool]
"""Takes blocks of a body, and when each arrived (monotonic, in nanoseconds): both lists are its own. Returns True when
it has had enough for now."""


class ResponseBody(httpx2.AsyncByteStream, ABC):
    """One response whose headers have come, and its body, read as it arrives: what every transport's `send` returns.

    An httpx2.Response is made of it where somebody wants one (`response_of`): most are good, and nobody does.
    """

    __slots__ = ("arrived_ns", "gathers", "headers", "headers_ns", "sent_ns", "status")

    def __init__(self, sent_ns: int) -> None:
        self.sent_ns = sent_ns
        """Monotonic, when the request was handed to the connection pool."""
        self.status = 0
        """0 until the headers are in."""
        self.headers: list[tuple[bytes, bytes]] = []
        """As they were sent."""
        self.headers_ns = 0
        """Monotonic, when the last of the headers arrived."""
        self.arrived_ns = 0
        """Monotonic, when the first byte of what the last read returned arrived."""
        self.gathers = False
        """Whether `pour` may let blocks gather for `gather_s`; whoever takes them says so."""

    @property
    def gather_s(self) -> float:
        """How long they would; 0: they never do."""
        return 0.0

    @abstractmethod
    async def read(self) -> bytes:
        """What has arrived since the last read, or b"" at the end.

        Raises:
            httpx2.TransportError: the connection broke before the body's end.
        """

    @property
    @abstractmethod
    def at_end(self) -> bool:
        """Whether the body's end has been read: the connection can serve another request."""

    async def pour(self, take: Take) -> bool:
        """Hands over what has arrived, and what arrives; True when `take` has enough, False at the body's end.

        A transport that can calls `take` where the bytes arrive: no task is woken for a chunk.

        Raises:
            httpx2.TransportError: the connection broke before the body's end. What came before has been handed over.
            Exception: whatever `take` raised.
        """
        while block := await self.read():
            if take([block], [self.arrived_ns]):
                return True
        return False

    def catch_up(self) -> None:
        """Hands over at once what is gathered."""

    async def read_some(self, size: int, seconds: float) -> bytes:
        """What comes of the body within so many bytes and seconds; where it breaks off is no error."""
        blocks: list[bytes] = []
        with anyio.move_on_after(seconds), contextlib.suppress(httpx2.TransportError):
            while size > 0 and (block := await self.read()):
                blocks.append(block[:size])
                size -= len(block)
        return b"".join(blocks)

    async def drain(self, seconds: float) -> None:
        """Reads the end of the body, which mostly came with the last event, so that the connection is kept.

        What comes late, or is wrong with it, no longer matters: the answer is in. The connection is then closed.
        """
        if self.at_end:
            return
        with anyio.move_on_after(seconds), contextlib.suppress(httpx2.TransportError):
            while not self.at_end and await self.read():
                pass

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """For AsyncOpenAI's own reading of a body."""
        while block := await self.read():
            yield block

    @abstractmethod
    async def aclose(self) -> None:
        """Gives the connection back if the body was read to its end, else closes it."""


class Wire(Protocol):
    """What every transport offers beside httpx2's interface: a template is its own, made once and sent many times."""

    def template(self, request: httpx2.Request) -> Any:
        """What the requests of which this is an example have in common."""

    async def send(self, template: Any, content: bytes) -> ResponseBody:
        """Sends one of them; returns when its headers have arrived."""


def response_of(body: ResponseBody, request: httpx2.Request) -> httpx2.Response:
    """The same as an httpx2.Response; the body is its `extensions[BODY]`."""
    return httpx2.Response(
        status_code=body.status,
        headers=body.headers,
        stream=body,
        request=request,
        extensions={"http_version": b"HTTP/1.1", BODY: body},
    )


# The finest class first: the first match wins.
_EXCEPTIONS: tuple[tuple[type[Exception], type[httpx2.TransportError]], ...] = (
    (aiohttp.ServerTimeoutError, httpx2.ConnectTimeout),
    (aiohttp.ClientProxyConnectionError, httpx2.ProxyError),
    (aiohttp.ClientHttpProxyError, httpx2.ProxyError),
    (aiohttp.ClientConnectorError, httpx2.ConnectError),
    (aiohttp.InvalidURL, httpx2.UnsupportedProtocol),
    (aiohttp.ClientConnectionError, httpx2.ReadError),
    (aiohttp.ClientError, httpx2.RemoteProtocolError),
    (OSError, httpx2.ReadError),
)


@contextlib.contextmanager
def map_exceptions() -> Iterator[None]:
    """Turns aiohttp's exceptions into httpx2's, which AsyncOpenAI knows; the cause stays chained."""
    try:
        yield
    except (aiohttp.ClientError, OSError) as error:
        raise _mapped(error) from error


def _mapped(error: aiohttp.ClientError | OSError) -> httpx2.TransportError:
    kind = next(ours for foreign, ours in _EXCEPTIONS if isinstance(error, foreign))
    return kind(str(error) or type(error).__name__)


class Body(ResponseBody):
    """A body that aiohttp reads."""

    __slots__ = ("_response",)

    def __init__(self, response: aiohttp.ClientResponse, sent_ns: int) -> None:
        super().__init__(sent_ns)
        self._response = response
        self.status = response.status
        self.headers = list(response.raw_headers)
        self.headers_ns = time.monotonic_ns()

    async def read(self) -> bytes:
        """See `ResponseBody`. The time of arrival is when this task came to read it."""
        try:  # not `map_exceptions`: a context manager a chunk is dear
            block = await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise _mapped(error) from error
        self.arrived_ns = time.monotonic_ns()
        return block

    @property
    def at_end(self) -> bool:
        """See `ResponseBody`."""
        return self._response.content.at_eof()

    async def aclose(self) -> None:
        """See `ResponseBody`."""
        if self.at_end:
            self._response.release()
        else:
            self._response.close()


def environment_proxy(url: str) -> str | None:
    """The proxy that HTTPS_PROXY, HTTP_PROXY or ALL_PROXY names for a URL and NO_PROXY doesn't except; else None.

    Raises:
        UsageError: it is of a kind that can't be used.
    """
    parts = urlsplit(url)
    if not parts.hostname or proxy_bypass(parts.hostname):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    kind = _kind_of(proxy) if proxy else "http"
    if kind not in ("http", "https"):
        raise UsageError(
            f"the environment names a proxy ({kind}) for {parts.hostname}: only http and https proxies work"
        )
    return proxy


def _kind_of(proxy: str) -> str:
    """A proxy's scheme. Why its URL can't be read isn't said: it may hold the password."""
    try:
        parts = urlsplit(proxy)
        scheme, host, _ = parts.scheme, parts.hostname, parts.port
    except ValueError:
        return "a URL that can't be read"
    if scheme in ("http", "https") and not host:
        return "without a host"
    return scheme or "without http://"


class Template(NamedTuple):
    """What the requests of one endpoint and credential have in common, in the types that aiohttp takes as they are."""

    request: httpx2.Request
    url: yarl.URL
    headers: CIMultiDict[str]  # without Content-Length, which is each request's own

    @classmethod
    def of(cls, request: httpx2.Request) -> Template:
        """The template that a built request is an example of."""
        headers = CIMultiDict(request.headers.multi_items())
        headers.pop("content-length", None)
        return cls(request, yarl.URL(str(request.url), encoded=True), headers)


class Transport(httpx2.AsyncBaseTransport):
    """httpx2's transport interface on one aiohttp session.

    Concurrency isn't bounded here: admission is the one place that does.
    """

    def __init__(self, *, trust_env: bool = True, proxy: str | None = None) -> None:
        self._trust_env = trust_env
        self._proxy = proxy
        self._session: aiohttp.ClientSession | None = None

    def _open_session(self) -> aiohttp.ClientSession:
        # Made on first use: aiohttp wants a running loop.
        connector = aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=KEEPALIVE_S,
            ttl_dns_cache=300,
            ssl=httpx2.create_ssl_context(trust_env=self._trust_env),
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,  # aiohttp would look for a proxy and for ~/.netrc in a thread, for every request
            proxy=self._proxy,
            read_bufsize=SOCKET_BLOCK_BYTES,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )

    def template(self, request: httpx2.Request) -> Template:
        """What the requests of which this is an example have in common."""
        return Template.of(request)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends one request and returns when its headers have arrived; the body is `extensions[BODY]`."""
        return response_of(await self.send(self.template(request), request.content), request)

    async def send(self, template: Template, content: bytes) -> Body:
        """The same for a request that was built before: only its content is new.

        Raises:
            httpx2.TransportError: no headers came back.
        """
        if self._session is None:
            self._session = self._open_session()
        sent_ns = time.monotonic_ns()
        with map_exceptions():
            response = await self._session.request(
                template.request.method,
                template.url,
                headers=template.headers,
                data=content or None,
                allow_redirects=False,
            )
        return Body(response, sent_ns)

    async def aclose(self) -> None:
        """Closes every connection."""
        if self._session is not None:
            await self._session.close()
