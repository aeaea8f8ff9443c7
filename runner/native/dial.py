"""A new connection to an origin: addresses, TCP, the proxy's tunnel, TLS, all within one `CONNECT_TIMEOUT_S`.

Addresses are looked up once for all that wait for them, and kept as long as aiohttp's would be: a burst of a thousand
requests asks the resolver one question. The faster of IPv6 and IPv4 wins (RFC 8305), by aiohttp's own
aiohappyeyeballs: it keeps the errno when every address fails alike, so that EMFILE can be told from a dead server.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from functools import cached_property
from typing import Final, NamedTuple

import httpx2
from aiohappyeyeballs import AddrInfoType, start_connection

from runner.limits import CONNECT_TIMEOUT_S
from runner.native.connection import Connection, Owner
from runner.native.head import Origin
from runner.native.proxy import Proxy, Tunnel

HAPPY_EYEBALLS_DELAY_S: Final = 0.25
"""RFC 8305 §5: how long the preferred address has before the next is tried beside it."""
ADDRESSES_S: Final = 300.0
"""How long addresses are kept; all of them failing ends it sooner."""


class _Addresses(NamedTuple):
    infos: list[AddrInfoType]
    until: float


class Dialer:
    """Opens connections, directly or through a proxy."""

    def __init__(self, proxy: Proxy | None, *, trust_env: bool) -> None:
        self._trust_env = trust_env
        self._proxy = proxy
        self._addresses: dict[tuple[str, int], _Addresses] = {}
        self._lookups: dict[tuple[str, int], asyncio.Lock] = {}

    @cached_property
    def _context(self) -> ssl.SSLContext:
        """Made when TLS is first needed: to read the authorities' certificates takes 50 to 100 ms."""
        return httpx2.create_ssl_context(trust_env=self._trust_env)

    async def dial(self, origin: Origin, owner: Owner) -> Connection:
        """Opens a connection; `owner` is told of it and of its end.

        Raises:
            httpx2.ConnectTimeout, httpx2.ConnectError, httpx2.ProxyError: there is none; the cause is what the system
                said.
        """
        connection = Connection(owner, origin)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._reach(origin, connection)
        except TimeoutError as error:
            message = f"no connection to {origin.host}:{origin.port} within {CONNECT_TIMEOUT_S:g} s"
            raise httpx2.ConnectTimeout(message) from error
        except OSError as error:  # of TLS as well, which has no words for a server that hangs up
            said = str(error) or "the connection was closed during the TLS handshake"
            raise httpx2.ConnectError(f"{origin.host}:{origin.port}: {said}") from error
        except BaseException:
            connection.abort()  # cancelled just as it was made: TLS would wait for the server's goodbye
            raise
        return connection

    async def _reach(self, origin: Origin, connection: Connection) -> None:
        if self._proxy is None:
            await self._open(origin.scheme, origin.host, origin.port, connection)
        elif origin.scheme == "http":
            await self._open_proxy(self._proxy, connection)
        else:
            await self._tunnel(self._proxy, origin, connection)

    async def _tunnel(self, proxy: Proxy, origin: Origin, connection: Connection) -> None:
        tunnel = Tunnel()
        await self._open_proxy(proxy, tunnel)
        transport = tunnel.transport
        try:
            await tunnel.ask(proxy.connect_head(origin.authority))
            secured = await asyncio.get_running_loop().start_tls(
                transport, connection, self._context, server_hostname=origin.host
            )
        except BaseException:
            transport.abort()
            raise
        if secured is None:  # the connection went just as TLS was done
            raise ConnectionResetError("the connection was closed during the TLS handshake")
        connection.connection_made(secured)

    async def _open_proxy(self, proxy: Proxy, protocol: asyncio.BaseProtocol) -> None:
        try:
            await self._open(proxy.scheme, proxy.host, proxy.port, protocol)
        except TimeoutError:
            raise
        except OSError as error:
            raise httpx2.ProxyError(f"the proxy {proxy.host}:{proxy.port}: {error}") from error

    async def _open(self, scheme: str, host: str, port: int, protocol: asyncio.BaseProtocol) -> None:
        """TCP, and TLS where the scheme asks for it."""
        try:
            sock = await start_connection(await self._resolve(host, port), happy_eyeballs_delay=HAPPY_EYEBALLS_DELAY_S)
        except OSError:
            self._addresses.pop((host, port), None)
            raise
        secure = scheme == "https"
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: protocol,
                sock=sock,
                ssl=self._context if secure else None,
                server_hostname=host if secure else None,
            )
        except BaseException:
            sock.close()  # cancelled before the loop had taken it
            raise

    async def _resolve(self, host: str, port: int) -> list[AddrInfoType]:
        key = host, port
        loop = asyncio.get_running_loop()
        # The first to come asks, the others wait for its answer; where it is cancelled, the next one asks.
        async with self._lookups.setdefault(key, asyncio.Lock()):
            known = self._addresses.get(key)
            if known is None or known.until < loop.time():
                infos = _literal(host, port) or await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                known = self._addresses[key] = _Addresses(list(infos), loop.time() + ADDRESSES_S)
            return known.infos


def _literal(host: str, port: int) -> list[AddrInfoType]:
    """The address that a host already is: no thread need look it up."""
    try:
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
    except socket.gaierror:
        return []
