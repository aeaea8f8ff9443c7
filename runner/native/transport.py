"""httpx2's transport interface on `Pool`, `Dialer` and `Connection`."""

from __future__ import annotations

import time
from collections.abc import Coroutine
from typing import Any

import httpx2

from runner.native.body import Body
from runner.native.dial import Dialer
from runner.native.head import Template
from runner.native.pool import Pool
from runner.native.proxy import Proxy
from runner.transport import response_of


class Transport(httpx2.AsyncBaseTransport):
    """What AsyncOpenAI sends through.

    Concurrency isn't bounded here: admission is the one place that does.
    """

    def __init__(self, *, trust_env: bool = True, proxy: str | None = None) -> None:
        self._proxy = None if proxy is None else Proxy.of(proxy)
        self._dialer = Dialer(self._proxy, trust_env=trust_env)
        self._pool = Pool()

    def template(self, request: httpx2.Request) -> Template:
        """What the requests of which this is an example have in common.

        Raises:
            httpx2.UnsupportedProtocol, httpx2.LocalProtocolError: it can't be sent.
        """
        return Template.of(request, self._proxy)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends one request and returns when its headers have arrived; the body is `extensions[BODY]`."""
        return response_of(await self.send(self.template(request), request.content), request)

    def send(self, template: Template, content: bytes) -> Coroutine[Any, Any, Body]:
        """The same for a request that was built before: only its content is new.

        Raises:
            httpx2.TransportError: no headers came back.
        """
        sent_ns = time.monotonic_ns()
        connection = self._pool.take(template.origin)
        if connection is None:
            return self._send_on_new(template, content, sent_ns)
        return connection.exchange(template.head, content, sent_ns)

    async def _send_on_new(self, template: Template, content: bytes, sent_ns: int) -> Body:
        connection = await self._dialer.dial(template.origin, self._pool)
        return await connection.exchange(template.head, content, sent_ns)

    async def aclose(self) -> None:
        """Closes every connection."""
        await self._pool.aclose()
