"""The two transports keep the same promises: what holds for one is asked of both, and what one reads the other reads.

What only the native one promises is in tests/native.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from contextlib import asynccontextmanager

import httpx2
import openai
import pytest
from openai import AuthenticationError, DefaultAsyncHttpxClient

from runner.client import PreparedOpenAI
from runner.foreign import FOREIGN, fault_of
from runner.transport import BODY
from runner.transport import Transport as AiohttpTransport
from tests.native.servers import TEXT, chunks, fetch, head, reset, serving, sized, turns, until
from tests.test_client import listening, post

pytest.importorskip("httptools")

from runner.native import Transport as NativeTransport

TRANSPORTS = {"aiohttp": AiohttpTransport, "native": NativeTransport}


@pytest.fixture(params=TRANSPORTS)
def transport_class(request):
    return TRANSPORTS[request.param]


class OpenAIOnAny(PreparedOpenAI):
    """The project's client on the transport that it is given."""

    def _build(self, options):
        wire: object = self._wire
        if isinstance(wire, NativeTransport):
            return wire.template(self._build_request(options))
        return super()._build(options)


@asynccontextmanager
async def prepared(transport, base_url, **kwargs):
    http_client = DefaultAsyncHttpxClient(transport=transport, timeout=None, trust_env=False)
    client = OpenAIOnAny(
        transport=transport,
        api_key="sk-1",
        base_url=base_url,
        max_retries=0,
        timeout=None,
        http_client=http_client,
        **kwargs,
    )
    try:
        yield client
    finally:
        await client.close()


@pytest.mark.parametrize("query", [{}, {"api-version": "2026-01-01", "q": "a b&c/ä"}])
async def test_both_send_the_same_request(query):
    async with listening() as (base_url, seen):
        for made in TRANSPORTS.values():
            async with prepared(made(trust_env=False), base_url, default_query=query, organization="org") as client:
                for _ in range(2):
                    await (await post(client, **{"X-Team": "a, b"})).aclose()
    first, *others = ((m, path, {k.lower(): v for k, v in h.items()}, body) for m, path, h, body in seen)
    assert others == [first] * 3


async def test_both_hand_on_every_byte_of_answers_that_are_chunked_at_random():
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    plan: list[list[bytes]] = []

    async def play(connection, pieces):
        for piece in pieces:
            connection.write(piece)
            await turns(rng.randint(0, 2))

    def answer(server, connection):
        tasks.append(asyncio.ensure_future(play(connection, plan[0])))

    tasks: list[asyncio.Task] = []
    transports = [made(trust_env=False) for made in TRANSPORTS.values()]
    async with serving(answer) as server:
        for _ in range(60):
            content = rng.randbytes(rng.choice((0, 1, 50, 3_000, 100_000)))
            plan[:] = [_pieces(rng, content)]
            assert [await fetch(transport, server.url) for transport in transports] == [(200, content)] * 2
        assert server.connections == 2
    await asyncio.gather(*tasks)
    for transport in transports:
        await transport.aclose()


def _pieces(rng: random.Random, content: bytes) -> list[bytes]:
    """An answer with this content, framed and cut at random."""
    if rng.random() < 0.3:
        wire = sized(content)
    else:
        cuts = sorted({0, len(content), *(rng.randrange(len(content) + 1) for _ in range(rng.randint(0, 20)))})
        wire = head("transfer-encoding: chunked") + chunks(*(content[a:b] for a, b in itertools.pairwise(cuts)))
    cuts = sorted({0, len(wire), *(rng.randrange(len(wire)) for _ in range(rng.randint(0, 20)))})
    return [wire[a:b] for a, b in itertools.pairwise(cuts)]


BROKEN = {
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nx:",
    "no HTTP": b"SSH-2.0-OpenSSH\r\n\r\n",
    "cut": sized(TEXT)[:-1],
    "cut chunks": head("transfer-encoding: chunked") + chunks(TEXT)[:-4],
    "broken chunks": head("transfer-encoding: chunked") + b"xyz\r\n\r\n",
    "two lengths": head("content-length: 1", "content-length: 2") + b"ab",
    "giant header": head("x: " + "a" * 100_000, "content-length: 0"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("ending", ["fin", "reset"])
async def test_both_call_the_same_fault_by_the_same_name(name, ending):
    def play(server, connection):
        connection.write(BROKEN[name])
        connection.close() if ending == "fin" else reset(connection)

    found = []
    async with serving(play) as server:
        for made in TRANSPORTS.values():
            async with prepared(made(trust_env=False), server.url) as client:
                with pytest.raises(FOREIGN) as raised:
                    await _whole(client)
                found.append(fault_of(raised.value).kind)
    assert found[0] == found[1]


async def _whole(client):
    response = await post(client)
    body = response.extensions[BODY]
    try:
        while await body.read():
            pass
    finally:
        await body.aclose()


async def test_nobody_listening_is_the_sdks_connection_error(transport_class):
    async with prepared(transport_class(trust_env=False), "http://127.0.0.1:9/v1") as client:
        with pytest.raises(openai.APIConnectionError):
            await post(client)


async def test_a_bad_status_is_the_sdks_own_error(transport_class):
    async with (
        listening(401) as (base_url, _),
        prepared(transport_class(trust_env=False), base_url) as client,
    ):
        with pytest.raises(AuthenticationError) as raised:
            await post(client)
    assert raised.value.code == "c"


async def test_a_key_that_changes_is_honoured_at_once(transport_class):
    async with listening() as (base_url, seen), prepared(transport_class(trust_env=False), base_url) as client:
        await (await post(client)).aclose()
        client.api_key = "sk-2"
        await (await post(client)).aclose()
    assert [headers["Authorization"] for _, _, headers, _ in seen] == ["Bearer sk-1", "Bearer sk-2"]


async def test_the_sdk_reads_a_body_itself(transport_class):
    async with (
        serving(sized(b'{"id":"x"}')) as server,
        prepared(transport_class(trust_env=False), server.url) as client,
    ):
        response = await post(client)
        assert await response.aread() == b'{"id":"x"}'
        assert response.extensions[BODY].at_end


async def test_plain_requests_go_through_the_proxy_with_its_credentials(transport_class):
    async with serving(sized()) as server:
        transport = transport_class(trust_env=False, proxy=f"http://me:pa%20ss@127.0.0.1:{server.port}")
        async with prepared(transport, "http://model.example/v1") as client:
            await (await post(client)).aclose()
        sent = server.requests[0][0].lower()
    assert sent.startswith(b"post http://model.example/v1/chat/completions http/1.1")
    assert b"proxy-authorization: basic bwu6cgegc3m=\r\n" in sent
    assert b"\r\nauthorization: bearer sk-1" in sent


async def test_an_early_close_ends_the_connection_and_a_late_one_keeps_it(transport_class):
    transport = transport_class(trust_env=False)
    async with serving(sized(TEXT)) as server, prepared(transport, server.url) as client:
        for _ in range(3):
            body = (await post(client)).extensions[BODY]
            assert await body.read() == TEXT
            assert await body.read() == b""
            assert body.at_end
            await body.aclose()
        assert server.connections == 1
    async with serving(sized(TEXT)[:-1]) as server:
        async with prepared(transport_class(trust_env=False), server.url) as client:
            for _ in range(3):
                body = (await post(client)).extensions[BODY]
                assert await body.read() == TEXT[:-1]
                assert not body.at_end
                await body.aclose()
                await until(lambda: not server.open)
        assert server.connections == 3


async def test_an_error_body_is_read_as_far_as_it_comes(transport_class):
    def play(server, connection):
        connection.write(sized(b'{"error":1}', status="200 OK")[:-3])
        connection.close()

    async with serving(play) as server, prepared(transport_class(trust_env=False), server.url) as client:
        body = (await post(client)).extensions[BODY]
        assert await body.read_some(4, 5) + await body.read_some(100, 5) in (b'{"er', b'{"error"')
        await body.aclose()


async def test_a_request_without_content_has_the_length_zero(transport_class):
    transport = transport_class(trust_env=False)
    async with serving(sized()) as server:
        response = await transport.handle_async_request(httpx2.Request("POST", server.url))
        assert await response.aread() == TEXT
        assert b"\r\ncontent-length: 0\r\n" in server.requests[0][0].lower()
    await transport.aclose()
