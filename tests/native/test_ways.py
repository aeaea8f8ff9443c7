"""The ways to a server: addresses, TLS, proxies, and what each says when it is barred."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from contextlib import asynccontextmanager

import httpx2
import openai
import pytest

from runner.faults import FaultKind
from runner.foreign import fault_of
from runner.native import Transport
from runner.native import dial as dialing
from runner.native.proxy import MAX_ANSWER_BYTES
from tests.native.servers import TEXT, Left, chunked, fetch, request, serving, sized, turns, until
from tests.raw_server import listening

trustme = pytest.importorskip("trustme")
CA = trustme.CA()
OTHER_CA = trustme.CA()


def secured(authority=CA, *names: str) -> ssl.SSLContext:
    """A server's context."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*(names or ("127.0.0.1", "localhost"))).configure_cert(context)
    return context


@pytest.fixture
def trusting(monkeypatch):
    """A transport that trusts the tests' authority."""

    def context(**_):
        made = ssl.create_default_context()
        CA.configure_trust(made)
        return made

    monkeypatch.setattr(httpx2, "create_ssl_context", context)


def fault(error: Exception) -> FaultKind:
    """As the runner sees it: the SDK's error, caused by the transport's."""
    wrapped = openai.APIConnectionError(request=request("http://h"))
    wrapped.__cause__ = error
    return fault_of(wrapped).kind


# ── TLS ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.usefixtures("trusting")
async def test_connections_of_tls_are_kept_as_well():
    transport = Transport()
    async with serving(chunked(TEXT), context=secured()) as server:
        for _ in range(20):
            assert await fetch(transport, server.url) == (200, TEXT)
        assert server.connections == 1
    await transport.aclose()


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("context", [secured(OTHER_CA), secured(CA, "elsewhere.example")], ids=["stranger", "name"])
async def test_a_certificate_that_does_not_convince_is_a_certificate_fault(context):
    transport = Transport()
    async with serving(sized(), context=context) as server:
        with pytest.raises(httpx2.ConnectError) as raised:
            await fetch(transport, server.url)
        assert not server.requests
    assert fault(raised.value) is FaultKind.CERTIFICATE
    await transport.aclose()


@pytest.mark.usefixtures("trusting")
async def test_a_server_without_tls_is_a_connection_fault():
    transport = Transport()

    async def speak(reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    with pytest.raises(httpx2.ConnectError) as raised:
        await fetch(transport, f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    assert fault(raised.value) is FaultKind.CONNECT
    server.close()
    await transport.aclose()


@pytest.mark.usefixtures("trusting")
async def test_no_request_is_lost_to_a_server_that_ends_idle_connections_of_tls():
    transport = Transport()
    async with serving(sized(), context=secured()) as server:
        for _ in range(30):
            assert await fetch(transport, server.url) == (200, TEXT)
            for connection in list(server.open):
                connection.close()
            await turns()
        assert len(server.requests) == 30
    await transport.aclose()


# ── Addresses ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_nobody_listening_is_a_connection_fault_that_says_so():
    transport = Transport(trust_env=False)
    with pytest.raises(httpx2.ConnectError, match=r"127\.0\.0\.1:9: ") as raised:
        await fetch(transport, "http://127.0.0.1:9/")
    assert fault(raised.value) is FaultKind.CONNECT
    await transport.aclose()


async def test_a_burst_asks_for_the_addresses_once(monkeypatch):
    asked = []
    loop = asyncio.get_running_loop()

    async def getaddrinfo(host, port, **_):
        asked.append(host)
        await turns(5)
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    class Names:
        def __getattr__(self, name):
            return getaddrinfo if name == "getaddrinfo" else getattr(loop, name)

    monkeypatch.setattr(asyncio, "get_running_loop", Names)
    transport = Transport(trust_env=False)
    async with serving(sized()) as server:
        url = f"http://model.example.:{server.port}/"
        answers = await asyncio.gather(*(fetch(transport, url) for _ in range(40)))
        assert set(answers) == {(200, TEXT)}
        assert b"\r\nHost: model.example.:" in server.requests[0][0]
    assert asked == ["model.example"]
    monkeypatch.undo()
    await transport.aclose()


async def test_a_name_that_nobody_knows_is_a_connection_fault(monkeypatch):
    async def resolve(self, host, port):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(dialing.Dialer, "_resolve", resolve)
    transport = Transport(trust_env=False)
    with pytest.raises(httpx2.ConnectError, match="not known") as raised:
        await fetch(transport, "http://model.example/")
    assert fault(raised.value) is FaultKind.CONNECT
    await transport.aclose()


@pytest.mark.parametrize("proxy", [None, "http://127.0.0.1:9"])
async def test_no_descriptor_left_is_a_fault_of_its_own(monkeypatch, proxy):
    async def start_connection(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(dialing, "start_connection", start_connection)
    transport = Transport(trust_env=False, proxy=proxy)
    with pytest.raises(httpx2.TransportError) as raised:
        await fetch(transport, "http://127.0.0.1:9/")
    assert fault(raised.value) is FaultKind.FD_LIMIT
    await transport.aclose()


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_connecting_ends_after_its_time_and_leaves_nothing(monkeypatch, scheme):
    monkeypatch.setattr(dialing, "CONNECT_TIMEOUT_S", 0.05)
    if scheme == "http":

        async def start_connection(*_, **__):
            await asyncio.Event().wait()

        monkeypatch.setattr(dialing, "start_connection", start_connection)
    transport = Transport(trust_env=False)
    async with serving(b"") as server:  # which never answers the greeting of TLS
        with pytest.raises(httpx2.ConnectTimeout, match="within") as raised:
            await fetch(transport, server.url.replace("http", scheme))
        await until(lambda: not server.open)
    assert fault(raised.value) is FaultKind.CONNECT
    await transport.aclose()


async def test_a_server_that_hangs_up_during_the_handshake_is_said_to_have_done_so():
    async def hang_up(reader, writer):
        await reader.read(1)
        writer.write(b"\x16\x03\x03\x00\x7a\x02\x00")  # the beginning of its greeting
        writer.close()

    transport = Transport(trust_env=False)
    async with listening(hang_up) as port:
        with pytest.raises(httpx2.ConnectError, match="closed during the TLS handshake"):
            await fetch(transport, f"https://127.0.0.1:{port}/")
    await transport.aclose()


# ── Proxies ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def proxying(answer: bytes = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 7\r\n\r\n", context=None):
    """A proxy that answers CONNECT with these bytes and, where they grant it, carries what comes."""
    heads: list[bytes] = []
    tasks: set[asyncio.Task] = set()
    writers: set[asyncio.StreamWriter] = set()

    async def carry(reader, writer):
        writers.add(writer)
        try:
            while data := await reader.read(65_536):
                writer.write(data)
        except OSError:
            pass
        finally:
            writer.transport.abort()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        writers.add(writer)
        try:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            if not answer.startswith(b"HTTP/1.1 200") or not answer.endswith(b"\r\n\r\n"):
                return
            host, port = heads[-1].split(b" ")[1].decode().rsplit(":", 1)
            there, back = await asyncio.open_connection(host, int(port))
            await asyncio.gather(carry(reader, back), carry(there, writer))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    scheme = "https" if context else "http"
    try:
        yield f"{scheme}://me:pa%3Ass@127.0.0.1:{server.sockets[0].getsockname()[1]}", heads, writers
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.gather(*tasks)
        await turns(5)


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("proxy_tls", [False, True], ids=["http", "https"])
async def test_https_goes_through_a_tunnel_that_is_kept(proxy_tls):
    async with (
        serving(chunked(TEXT), context=secured()) as server,
        proxying(context=secured() if proxy_tls else None) as (url, heads, _),
    ):
        transport = Transport(proxy=url)
        for _ in range(10):
            assert await fetch(transport, server.url) == (200, TEXT)
        assert server.connections == 1
        assert heads == [
            b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nProxy-Authorization: Basic bWU6cGE6c3M=\r\n\r\n"
            % (server.port, server.port)
        ]
        assert b"proxy-authorization" not in server.requests[0][0].lower()
        await transport.aclose()


async def test_http_goes_to_the_proxy_in_absolute_form():
    async with serving(sized()) as server:
        transport = Transport(trust_env=False, proxy=f"http://me:secret@127.0.0.1:{server.port}")
        for _ in range(2):
            assert await fetch(transport, "http://model.example:81/v1?q=1") == (200, TEXT)
        (sent, _), _ = server.requests
        assert sent.startswith(b"POST http://model.example:81/v1?q=1 HTTP/1.1\r\nHost: model.example:81\r\n")
        assert b"Proxy-Authorization: Basic bWU6c2VjcmV0\r\n" in sent
        assert server.connections == 1
        await transport.aclose()


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
        b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 3\r\n\r\nbad",
        b"HTTP/1.1 200 OK\r\n\r\nsurplus",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 2 * MAX_ANSWER_BYTES,
        b"HTTP/1.1 20",
        b"",
        b"SSH-2.0\r\n\r\n",
        b"HTTP/1.1 000 \r\n\r\n",
        b"\0\r\n\r\n",
    ],
)
async def test_a_proxy_that_does_not_grant_the_tunnel_is_a_connection_fault(answer):
    async with proxying(answer) as (url, heads, _):
        transport = Transport(proxy=url)
        with pytest.raises(httpx2.ProxyError) as raised:
            await fetch(transport, "https://model.example/v1")
        assert fault(raised.value) is FaultKind.CONNECT
        assert "pa:ss" not in str(raised.value)
        assert len(heads) == 1
        await turns(5)
        assert not transport._pool._open
        await transport.aclose()


async def test_a_proxy_that_is_not_there_is_a_proxy_error():
    transport = Transport(trust_env=False, proxy="http://me:secret@127.0.0.1:9")
    for scheme in ("http", "https"):
        with pytest.raises(httpx2.ProxyError, match=r"the proxy 127\.0\.0\.1:9") as raised:
            await fetch(transport, f"{scheme}://model.example/")
        assert "secret" not in str(raised.value)
    await transport.aclose()


@pytest.mark.usefixtures("trusting")
async def test_a_certificate_behind_a_proxy_is_looked_at():
    async with (
        serving(sized(), context=secured(OTHER_CA)) as server,
        proxying() as (url, _, _),
    ):
        transport = Transport(proxy=url)
        with pytest.raises(httpx2.ConnectError) as raised:
            await fetch(transport, server.url)
        assert fault(raised.value) is FaultKind.CERTIFICATE
        await transport.aclose()


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("phase", ["proxy", "tunnel", "tls", "direct tls"])
@pytest.mark.parametrize("rounds", [1, 3, 6, 10, 20, 40])
async def test_a_way_that_is_cancelled_leaves_no_socket_and_no_task(phase, rounds):
    async def cancelled(url):
        task = asyncio.ensure_future(fetch(transport, url))
        await turns(rounds)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not transport._pool._open)

    silent = phase in ("tls", "direct tls")
    async with serving(b"", context=None if silent else secured()) as server, proxying() as (proxy, _, _):
        transport = Transport(proxy=None if phase == "direct tls" else proxy)
        url = server.url.replace("http:", "https:")
        await cancelled(url)
        await until(lambda: not server.open)
        await turns(200)
        before = Left.now()
        for _ in range(3):
            await cancelled(url)
            await until(lambda: not server.open)
            await turns(200)
        assert Left.now() == before
        await transport.aclose()
