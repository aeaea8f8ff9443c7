"""Answers as servers send them, and as they shouldn't."""

from __future__ import annotations

import asyncio
import random

import httpx2
import pytest
from hypothesis import given, strategies

from runner.native import Transport
from runner.native.connection import MAX_HEAD_BYTES, MAX_HEADERS
from runner.transport import BODY
from tests.native.fed import fed
from tests.native.servers import TEXT, chunked, chunks, fetch, head, request, reset, serving, sized, turns

LONG = b"".join(b"data: %d\n\n" % i for i in range(80))
SIZED = sized(LONG)
CHUNKED = chunked(*(LONG[i : i + 70] for i in range(0, len(LONG), 70)))
TRAILERS = chunked(LONG)[:-2] + b"x-checksum: 1\r\n\r\n"
UNTIL_CLOSE = head("content-type: text/event-stream") + LONG
FAULTS = (httpx2.ReadError, httpx2.RemoteProtocolError, None)
INTERIM = head(status="100 Continue") + head("link: </a>", status="103 Early Hints")


@pytest.mark.parametrize("ending", ["fin", "reset"])
@pytest.mark.parametrize("answer", [SIZED, CHUNKED, INTERIM + CHUNKED], ids=["sized", "chunked", "interim"])
async def test_no_prefix_of_an_answer_is_taken_for_the_whole(answer, ending):
    cut = 0

    def play(server, transport):
        transport.write(answer[:cut])
        transport.close() if ending == "fin" else reset(transport)

    transport = Transport(trust_env=False)
    async with serving(play) as server:
        for cut in range(len(answer)):  # noqa: B007 - the server reads it
            with pytest.raises(httpx2.TransportError) as raised:
                await fetch(transport, server.url)
            assert type(raised.value) in FAULTS
        cut = len(answer)
        if ending == "fin":
            assert await fetch(transport, server.url) == (200, LONG)
        assert len(server.requests) == server.connections == len(answer) + (ending == "fin")
    await transport.aclose()


async def test_what_came_before_the_cut_is_read_before_the_error():
    async def read(transport, url):
        response = await transport.handle_async_request(request(url))
        body = response.extensions[BODY]
        received = b""
        with pytest.raises(httpx2.RemoteProtocolError, match="before the body's end"):  # noqa: PT012
            while True:
                received += await body.read()
        assert not body.at_end
        await body.aclose()
        return received

    def play(server, transport):
        transport.write(CHUNKED[:-7])
        transport.close()

    transport = Transport(trust_env=False)
    async with serving(play) as server:
        assert LONG.startswith(received := await read(transport, server.url))
        assert len(received) > len(LONG) - 80
    await transport.aclose()


@pytest.mark.parametrize("lines", [(), ("connection: close",)])
async def test_a_body_without_a_length_ends_with_its_connection(lines):
    def play(server, transport):
        transport.write(head(*lines) + LONG)
        transport.close()

    transport = Transport(trust_env=False)
    async with serving(play) as server:
        for _ in range(2):
            assert await fetch(transport, server.url) == (200, LONG)
        assert server.connections == 2
    await transport.aclose()


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
async def test_an_answer_that_has_no_body_ends_with_its_headers(status):
    transport = Transport(trust_env=False)
    async with serving(head("x-a: 1", status=status)) as server:
        for _ in range(2):
            assert await fetch(transport, server.url) == (int(status[:3]), b"")
        assert server.connections == 1
    await transport.aclose()


async def test_redirects_are_handed_on_and_cookies_and_codings_left_alone():
    answer = sized(
        b"\x1f\x8b", "location: http://elsewhere/", "set-cookie: a=b", "content-encoding: gzip", status="307 X"
    )
    transport = Transport(trust_env=False)
    async with serving(answer) as server:
        for _ in range(2):
            assert await fetch(transport, server.url) == (307, b"\x1f\x8b")
        assert not any(b"cookie" in sent for sent, _ in server.requests)
    await transport.aclose()


BAD = {
    "empty": b"",
    "no HTTP": b"SSH-2.0-OpenSSH\r\n\r\n",
    "html": b"<html></html>\r\n\r\n",
    "binary": bytes(range(256)) * 4,
    "no version": b"HTTP 200 OK\r\n\r\n",
    "version 0.9": head("content-length: 0", version="HTTP/0.9"),
    "version 2": head("content-length: 0", version="HTTP/2.0"),
    "status of letters": b"HTTP/1.1 abc OK\r\ncontent-length: 0\r\n\r\n",
    "status of two digits": b"HTTP/1.1 20 OK\r\ncontent-length: 0\r\n\r\n",
    "switching protocols": head("connection: upgrade", "upgrade: websocket", status="101 Switching Protocols"),
    "switching without a word": head(status="101 Switching Protocols"),
    "two lengths": head("content-length: 1", "content-length: 2") + b"ab",
    "length and chunks": head("content-length: 5", "transfer-encoding: chunked") + chunks(b"hello"),
    "length of letters": head("content-length: five") + b"hello",
    "negative length": head("content-length: -5") + b"hello",
    "huge length": head("content-length: 99999999999999999999999") + b"hello",
    "chunk of letters": head("transfer-encoding: chunked") + b"xyz\r\n",
    "huge chunk": head("transfer-encoding: chunked") + b"fffffffffffffffffffff\r\n",
    "chunk longer than said": head("transfer-encoding: chunked") + b"2\r\nabc\r\n0\r\n\r\n",
    "bare newlines": head("a: b", "content-length: 2").replace(b"\r\n", b"\n") + b"ab",
    "a header without a name": head(": 1", "content-length: 0"),
    "a header without a colon": head("hello", "content-length: 0"),
    "a space before the colon": head("content-length : 0"),
    "a NUL in a header": head("x: a\0b", "content-length: 0"),
    "a CR in a header": head("x: a\rb", "content-length: 0"),
    "a giant header": head("x: " + "a" * MAX_HEAD_BYTES, "content-length: 0"),
    "an endless header": head("x: " + "a" * 4 * MAX_HEAD_BYTES)[:-4],
    "an endless name": b"HTTP/1.1 200 OK\r\n" + b"x" * 4 * MAX_HEAD_BYTES,
    "an endless reason": b"HTTP/1.1 200 " + b"x" * 4 * MAX_HEAD_BYTES,
    "too many headers": head(*["x: 1"] * (MAX_HEADERS + 1), "content-length: 0"),
    "endless interim answers": head(status="100 Continue") * 4_000,
    "endless trailers": head("transfer-encoding: chunked") + b"0\r\n" + b"x: 1\r\n" * 20_000,
    "an endless trailer": head("transfer-encoding: chunked") + b"0\r\nx: " + b"x" * 4 * MAX_HEAD_BYTES,
    "an endless extension": head("transfer-encoding: chunked") + b"5;x=" + b"y" * 4 * MAX_HEAD_BYTES,
}


@pytest.mark.parametrize("name", BAD)
async def test_what_is_no_answer_is_a_transport_error_and_ends_the_connection(name):
    transport = Transport(trust_env=False)

    def play(server, connection):
        connection.write(BAD[name])
        if len(BAD[name]) < MAX_HEAD_BYTES:
            connection.write_eof()

    async with serving(play) as server, asyncio.timeout(30):
        with pytest.raises(httpx2.TransportError) as raised:
            await fetch(transport, server.url)
        assert type(raised.value) in FAULTS
        assert len(server.requests) == 1
        await turns(5)
        assert not transport._pool._open
    await transport.aclose()


async def test_headers_come_as_they_were_sent_the_empty_ones_and_the_doubled_ones_too():
    lines = ("X-Empty:", "x-twice: 1", "x-twice: 2", "x-space: \t a b \t", "X-Latin: \xe9", "x-last:")
    answer = head(*lines, "content-length: 0").replace(b"\xc3\xa9", b"\xe9")
    transport = Transport(trust_env=False)
    async with serving(answer) as server:
        response = await transport.handle_async_request(request(server.url))
        await response.aclose()
    assert response.headers.raw == [
        (b"X-Empty", b""),
        (b"x-twice", b"1"),
        (b"x-twice", b"2"),
        (b"x-space", b"a b"),
        (b"X-Latin", b"\xe9"),
        (b"x-last", b""),
        (b"content-length", b"0"),
    ]
    await transport.aclose()


async def test_an_upgrade_that_is_only_offered_changes_nothing():
    outcome = await fed([sized(LONG, "upgrade: h2c", "connection: upgrade")])
    assert (outcome.content, outcome.error) == (LONG, None)


async def test_trailers_are_no_headers():
    transport = Transport(trust_env=False)
    async with serving(TRAILERS) as server:
        for _ in range(3):
            response = await transport.handle_async_request(request(server.url))
            assert await response.aread() == LONG
            assert "x-checksum" not in response.headers
        assert server.connections == 1
    await transport.aclose()


# ── Without a socket: what a parser is fed decides, not how ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("answer", [SIZED, CHUNKED, TRAILERS, INTERIM + CHUNKED, UNTIL_CLOSE, *BAD.values()])
async def test_one_read_and_byte_by_byte_are_the_same(answer):
    answer = answer[: MAX_HEAD_BYTES // 2] if len(answer) > 2 * MAX_HEAD_BYTES else answer
    whole = await fed([answer])
    assert await fed([answer[i : i + 1] for i in range(len(answer))]) == whole


@given(garbage=strategies.lists(strategies.binary(max_size=200), max_size=5), cut=strategies.integers(0, 400))
@pytest.mark.parametrize("answer", [SIZED, CHUNKED, b""], ids=["sized", "chunked", "nothing"])
def test_whatever_garbage_comes_it_is_an_answer_or_one_named_error(answer, garbage, cut):
    outcome = asyncio.run(fed([answer[:cut], *garbage]))
    assert outcome.error in FAULTS


async def test_a_mutated_answer_is_an_answer_or_one_named_error():
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(1_500):
        answer = bytearray(rng.choice((SIZED, CHUNKED, TRAILERS, INTERIM + CHUNKED)))
        for _ in range(rng.randint(1, 3)):
            answer[rng.randrange(len(answer))] = rng.choice(b"\r\n :;0af\0\xff")
        outcome = await fed([bytes(answer)])
        assert outcome.error in FAULTS


@pytest.mark.parametrize("surplus", [b"HTTP/1.1 200 OK\r\n", b"garbage", sized(b"more"), b"\0"])
async def test_what_follows_an_answer_spoils_the_connection_and_not_the_answer(surplus):
    outcome = await fed([CHUNKED + surplus])
    assert outcome.content == LONG
    assert outcome.error is None
    assert not outcome.reusable
    assert (await fed([CHUNKED])).reusable
    later = await fed([CHUNKED, surplus])
    assert (later.content, later.error, later.reusable) == (LONG, None, False)


@pytest.mark.parametrize(
    ("answer", "reusable"),
    [
        (SIZED, True),
        (sized(TEXT, "connection: close"), False),
        (sized(TEXT, "Connection: Keep-Alive, Close"), False),
        (SIZED.replace(b"HTTP/1.1", b"HTTP/1.0"), False),
        (sized(TEXT, "connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"), True),
        (CHUNKED, True),
        (UNTIL_CLOSE, False),
    ],
)
async def test_a_connection_is_kept_when_the_server_keeps_it(answer, reusable):
    assert (await fed([answer])).reusable == reusable
