"""Connections: kept, counted, written to with care, and never left behind."""

from __future__ import annotations

import asyncio
import random
import resource
from unittest import mock

import httpx2
import pytest

from runner.limits import KEEPALIVE_S, MIB, SOCKET_BLOCK_BYTES
from runner.native import Transport
from runner.native.connection import SMALL_BODY_BYTES
from runner.testing.virtual_time import run_virtual
from runner.transport import BODY
from tests.native.fed import Wire
from tests.native.servers import CONTENT, TEXT, Left, chunked, fetch, head, request, reset, serving, sized, turns, until


async def test_one_connection_serves_request_after_request():
    transport = Transport(trust_env=False)
    async with serving(chunked(TEXT)) as server:
        for _ in range(50):
            assert await fetch(transport, server.url) == (200, TEXT)
        assert (server.connections, len(server.requests)) == (1, 50)
    await transport.aclose()


async def test_a_thousand_requests_at_once_have_a_connection_each_and_share_them_afterwards():
    held: list[asyncio.Transport] = []

    def play(server, connection):
        held.append(connection)
        if len(held) >= 1_000:
            for waiting in held:
                waiting.write(chunked(TEXT))
            held.clear()

    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    transport = Transport(trust_env=False)
    async with serving(play) as server, asyncio.timeout(60):
        for _ in range(2):
            answers = await asyncio.gather(*(fetch(transport, server.url) for _ in range(1_000)))
            assert set(answers) == {(200, TEXT)}
        assert server.connections == 1_000
        assert len(server.requests) == 2_000
    await transport.aclose()


async def test_the_connection_that_was_used_last_is_used_first():
    transport = Transport(trust_env=False)
    used: list[asyncio.Transport] = []

    def play(server, connection):
        used.append(connection)
        connection.write(sized())

    async with serving(play) as server:
        await asyncio.gather(*(fetch(transport, server.url) for _ in range(5)))
        for _ in range(3):
            await fetch(transport, server.url)
    assert len(set(used[:5])) == 5
    assert len(set(used[5:])) == 1
    await transport.aclose()


@pytest.mark.parametrize("ending", ["fin", "reset", "word"])
async def test_no_request_is_lost_to_a_server_that_ends_idle_connections(ending):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)

    async def leave(server):
        for connection in list(server.open):
            if ending == "word":
                connection.write(head("connection: close", "content-length: 0", status="408 Request Timeout"))
            connection.close() if ending != "reset" else reset(connection)
        # The kernel knows of it when the server's loop has gone round; the client's may not.
        await until(lambda: not server.open)

    transport = Transport(trust_env=False)
    async with serving(chunked(TEXT)) as server:
        for _ in range(500):
            assert await fetch(transport, server.url) == (200, TEXT)
            if rng.random() < 0.5:
                await leave(server)
        assert len(server.requests) == 500
        assert 100 < server.connections < 400
    await transport.aclose()


async def test_a_connection_that_dies_after_the_request_is_an_error_and_no_second_request():
    def play(server, connection):
        if len(server.requests) == 1:
            connection.write(sized())
        else:
            connection.close()

    transport = Transport(trust_env=False)
    async with serving(play) as server:
        await fetch(transport, server.url)
        with pytest.raises(httpx2.ReadError, match="without an answer"):
            await fetch(transport, server.url)
        assert (len(server.requests), server.connections) == (2, 1)
    await transport.aclose()


def test_idle_connections_are_closed_after_a_while_and_not_before():
    async def main():
        transport = Transport(trust_env=False)
        async with serving(sized()) as server:
            await asyncio.gather(*(fetch(transport, server.url) for _ in range(3)))
            await asyncio.sleep(KEEPALIVE_S - 1)
            await fetch(transport, server.url)
            assert server.connections == len(server.open) == 3
            await asyncio.sleep(2)
            await turns()
            assert len(server.open) == 1
            await asyncio.sleep(KEEPALIVE_S)
            await turns()
            assert not server.open
            await fetch(transport, server.url)
            assert server.connections == 4
        await transport.aclose()

    run_virtual(main)


async def test_each_origin_has_its_own_connections():
    transport = Transport(trust_env=False)
    async with serving(sized()) as one, serving(sized(b"two")) as two:
        for _ in range(3):
            assert (await fetch(transport, one.url))[1] == TEXT
            assert (await fetch(transport, two.url))[1] == b"two"
        assert one.connections == two.connections == 1
    await transport.aclose()


# ── Requests ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_request_is_written_once_with_its_head_and_its_length():
    transport = Transport(trust_env=False)
    async with serving(sized()) as server:
        template = transport.template(request(server.url + "?a=b%20c", b"old", authorization="Bearer k"))
        for content in (b"", b"first", b"second!"):
            body = await transport.send(template, content)
            while await body.read():
                pass
        port = server.port
        assert [content for _, content in server.requests] == [b"", b"first", b"second!"]
        assert server.requests[2][0] == (
            b"POST /v1?a=b%%20c HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nauthorization: Bearer k\r\nContent-Length: 7\r\n\r\n"
            % port
        )
    await transport.aclose()


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\nb", "a\rb", "a\0b", "sk-1\n"])
def test_a_header_that_would_begin_another_is_refused_and_not_shown(value):
    transport = Transport(trust_env=False)
    with pytest.raises(httpx2.LocalProtocolError) as raised:
        transport.template(request("http://h/", authorization=value))
    assert value not in str(raised.value)


@pytest.mark.parametrize("name", ["a b", "a:b", "a\r\nb", ""])
def test_a_header_whose_name_is_no_token_is_refused(name):
    with pytest.raises(httpx2.LocalProtocolError):
        Transport(trust_env=False).template(httpx2.Request("POST", "http://h/", headers={name: "x"}))


@pytest.mark.parametrize("url", ["ftp://h/", "/relative", "unix:///socket"])
def test_a_url_of_another_kind_is_refused(url):
    with pytest.raises(httpx2.UnsupportedProtocol):
        Transport(trust_env=False).template(request(url))


@pytest.mark.parametrize("size", [SMALL_BODY_BYTES, SMALL_BODY_BYTES + 1, 10 * MIB])
async def test_a_large_request_arrives_whole_and_the_transport_holds_little_of_it(size):
    content = random.Random(1).randbytes(size)
    transport = Transport(trust_env=False)
    most = 0

    def watch(server, connection):
        connection.write(sized())

    async with serving(watch) as server:
        for _ in range(2):
            assert await fetch(transport, server.url, content) == (200, TEXT)
            (connection,) = transport._pool._open
            assert connection._transport is not None
            most = max(most, connection._transport.get_write_buffer_size())
        assert [sent == content for _, sent in server.requests] == [True, True]
        assert server.connections == 1
    assert most <= 4 * SMALL_BODY_BYTES
    await transport.aclose()


async def test_a_large_request_waits_for_the_socket():
    wire = Wire()
    asked = asyncio.ensure_future(wire.connection.exchange(b"", bytes(10 * SMALL_BODY_BYTES), 0))
    wire.connection.pause_writing()
    await turns()
    assert len(wire.transport.written) == 1  # the head
    for _ in range(2):
        wire.connection.resume_writing()
        wire.connection.pause_writing()
        await turns()
    wire.connection.resume_writing()
    await turns()
    assert sum(map(len, wire.transport.written)) == 10 * SMALL_BODY_BYTES + len(b"655360\r\n\r\n")
    wire.feed(sized())
    body = await asked
    assert await body.read() == TEXT
    assert wire.free
    wire.close()


@pytest.mark.parametrize(("status", "rest"), [("413 Too Large", False), ("200 OK", True)])
async def test_an_answer_may_overtake_its_request_and_a_refusal_ends_it(status, rest):
    wire = Wire()
    asked = asyncio.ensure_future(wire.connection.exchange(b"", bytes(10 * SMALL_BODY_BYTES), 0))
    wire.connection.pause_writing()
    await turns()
    wire.feed(sized(b"no", status=status)[:-1])
    body = await asked
    assert body.status == int(status[:3])
    written = sum(map(len, wire.transport.written))
    assert (written > 10 * SMALL_BODY_BYTES) == rest
    wire.feed(b"o")
    assert await body.read() == b"no"
    assert await body.read() == b""
    assert wire.free == rest
    assert wire.transport.aborted == (not rest)
    wire.close()


async def test_a_connection_whose_request_is_still_being_written_is_not_used_again():
    wire = Wire()
    asked = asyncio.ensure_future(wire.connection.exchange(b"", b"x", 0))
    await turns()
    wire.transport.holds = 1
    wire.feed(sized())
    assert await (await asked).read() == TEXT
    assert not wire.free
    assert wire.transport.aborted
    wire.close()


async def test_a_refusal_in_the_middle_of_a_large_request_is_read_over_a_real_socket():
    transport = Transport(trust_env=False)

    def play(server, connection):
        connection.pause_reading()
        connection.write(sized(b"too large", status="413 Too Large"))

    async with serving(play, whole=False) as server:
        assert await fetch(transport, server.url, bytes(20 * MIB)) == (413, b"too large")
        await turns()
        assert not transport._pool._open
    await transport.aclose()


# ── Reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_reader_that_lags_stops_the_socket_and_starts_it_again():
    wire = Wire()
    asked = asyncio.ensure_future(wire.connection.exchange(b"", b"", 0))
    await turns()
    wire.feed(head(f"content-length: {SOCKET_BLOCK_BYTES + 10}"))
    body = await asked
    paused = []
    for piece in (bytes(SOCKET_BLOCK_BYTES), b"1"):
        wire.feed(piece)
        paused.append(wire.transport.paused)
    assert len(await body.read()) == SOCKET_BLOCK_BYTES + 1
    paused.append(wire.transport.paused)
    assert paused == [False, True, False]
    wire.close()


async def test_an_unread_flood_stays_with_the_server():
    flood = bytes(64 * MIB)
    transport = Transport(trust_env=False)

    def play(server, connection):
        connection.write(head(f"content-length: {len(flood)}"))
        connection.write(flood)

    async with serving(play) as server:
        response = await transport.handle_async_request(request(server.url))
        body = response.extensions[BODY]
        await turns(200)
        assert SOCKET_BLOCK_BYTES < body.size <= 2 * SOCKET_BLOCK_BYTES
        size = 0
        while block := await body.read():
            size += len(block)
            assert len(block) <= 2 * SOCKET_BLOCK_BYTES
        assert size == len(flood)
        assert await fetch(transport, server.url) == (200, flood)
        assert server.connections == 1
    await transport.aclose()


async def test_a_stamp_is_of_the_arrival_and_not_of_the_reading():
    wire = Wire()
    with mock.patch("runner.native.connection.monotonic_ns", side_effect=range(1_000, 9_000, 1_000)):
        asked = asyncio.ensure_future(wire.connection.exchange(b"", b"", 7))
        await turns()
        wire.feed(head("content-length: 9"))  # at 1,000
        body = await asked
        wire.feed(b"abc")  # at 2,000
        wire.feed(b"def")  # at 3,000
        assert (await body.read(), body.arrived_ns) == (b"abcdef", 2_000)
        wire.feed(b"ghi")  # at 4,000
        assert (await body.read(), body.arrived_ns) == (b"ghi", 4_000)
    assert (body.sent_ns, body.headers_ns) == (7, 1_000)
    wire.close()


async def test_what_is_there_is_read_without_giving_way():
    wire = Wire()
    asked = asyncio.ensure_future(wire.connection.exchange(b"", b"", 0))
    await turns()
    wire.feed(sized())
    body = await asked
    with pytest.raises(StopIteration) as ended:
        body.read().send(None)
    assert ended.value.value == TEXT
    wire.close()


# ── Leaving ──────────────────────────────────────────────────────────────────────────────────────────────────────────

PHASES = {
    "connecting": b"",
    "headers": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nx:",
    "body": head("content-length: 5") + b"abc",
    "large request": b"",
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("rounds", range(4))
async def test_a_request_that_is_cancelled_leaves_no_socket_and_no_task(phase, rounds):
    def play(server, connection):
        connection.pause_reading() if phase == "large request" else connection.write(PHASES[phase])

    transport = Transport(trust_env=False)
    async with serving(play, whole=phase != "large request") as server:
        await fetch_cancelled(transport, server, phase, rounds)  # what a loop opens once, it opens here
        before = Left.now()
        for _ in range(5):
            await fetch_cancelled(transport, server, phase, rounds)
        assert Left.now() == before
        assert not transport._pool._open
    await transport.aclose()


async def fetch_cancelled(transport, server, phase, rounds):
    content = bytes(20 * MIB) if phase == "large request" else CONTENT
    seen = len(server.requests)
    task = asyncio.ensure_future(fetch(transport, server.url, content))
    if phase != "connecting":
        await until(lambda: len(server.requests) > seen)
    await turns(rounds)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for connection in server.open:
        connection.resume_reading()
    await until(lambda: not server.open and not transport._pool._open)
    await turns(5)


async def test_a_transport_that_is_closed_leaves_no_socket_and_ends_what_is_under_way():
    def play(server, connection):
        connection.write(sized() if len(server.requests) <= 3 else head("content-length: 5") + b"abc")

    async def opened_and_closed():
        transport = Transport(trust_env=False)
        async with serving(play) as server:
            await asyncio.gather(*(fetch(transport, server.url) for _ in range(3)))
            response = await transport.handle_async_request(request(server.url))
            body = response.extensions[BODY]
            await transport.aclose()
            with pytest.raises(httpx2.ReadError, match="closed"):
                assert await body.read() == b"abc" == await body.read()
            await body.aclose()
        await turns(5)

    await opened_and_closed()  # what a loop opens once, it opens here
    before = Left.now()
    await opened_and_closed()
    assert Left.now() == before


async def test_a_body_that_is_closed_early_closes_its_connection_and_wakes_its_reader():
    transport = Transport(trust_env=False)
    async with serving(head("content-length: 9") + b"abc") as server:
        response = await transport.handle_async_request(request(server.url))
        body = response.extensions[BODY]
        assert await body.read() == b"abc"
        reader = asyncio.ensure_future(body.read())
        await turns()
        await body.aclose()
        await body.aclose()
        with pytest.raises(httpx2.ReadError, match="closed"):
            await reader
        await until(lambda: not server.open)
        assert not transport._pool._open
    await transport.aclose()
