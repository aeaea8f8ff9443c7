"""What goes over the wire is what AsyncOpenAI would have sent, although it is built once and not once a request."""

from __future__ import annotations

import gzip
import zlib
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import orjson
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from openai import APIConnectionError, AsyncAzureOpenAI, AsyncOpenAI, AuthenticationError, DefaultAsyncHttpxClient

from runner.client import Client, PreparedOpenAI
from runner.faults import FaultKind
from runner.jobs import Api
from runner.transport import Transport

CONTENT = b'{"model":"m"}'


@asynccontextmanager
async def listening(status=200):
    """A server that keeps what it is sent."""
    seen = []

    async def handle(request):
        seen.append((request.method, request.path_qs, dict(request.headers), await request.read()))
        return web.json_response({"error": {"message": "no", "code": "c"}} if status >= 400 else {}, status=status)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    server = web.AppRunner(app)
    await server.setup()
    site = web.TCPSite(server, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{server.addresses[0][1]}/v1", seen
    finally:
        await server.cleanup()


@asynccontextmanager
async def prepared(base_url, **kwargs):
    transport = Transport(trust_env=False)
    http_client = DefaultAsyncHttpxClient(transport=transport, timeout=None, trust_env=False)
    client = PreparedOpenAI(
        transport=transport, base_url=base_url, max_retries=0, timeout=None, http_client=http_client, **kwargs
    )
    try:
        yield client
    finally:
        await client.close()


def post(client, path="/chat/completions", **headers):
    options = {"headers": {"Content-Type": "application/json", "Accept-Encoding": "identity", **headers}}
    return client.post(path, content=CONTENT, cast_to=httpx2.Response, stream=True, stream_cls=None, options=options)


@pytest.mark.parametrize("path", [api.value for api in Api])
@pytest.mark.parametrize(
    "extra", [{}, {"organization": "org", "project": "proj"}, {"default_headers": {"x-team": "a"}}]
)
@pytest.mark.parametrize("query", [{}, {"api-version": "2026-01-01"}])
async def test_the_request_is_the_sdks_own_byte_for_byte(path, extra, query):
    async with listening() as (base_url, seen):
        reference = AsyncOpenAI(
            base_url=base_url,
            api_key="sk-1",
            max_retries=0,
            timeout=None,
            default_query=query,
            http_client=DefaultAsyncHttpxClient(transport=Transport(trust_env=False), timeout=None, trust_env=False),
            **extra,
        )
        await (await post(reference, path)).aclose()
        await reference.close()
        async with prepared(base_url, api_key="sk-1", default_query=query, **extra) as client:
            for _ in range(3):
                await (await post(client, path)).aclose()
    theirs, *ours = seen
    for method, path_qs, headers, body in ours:
        assert (method, path_qs, body) == (theirs[0], theirs[1], theirs[3])
        ignored = {"x-stainless-read-timeout"}  # absent without a timeout, in both
        assert {k.lower(): v for k, v in headers.items() if k.lower() not in ignored} == {
            k.lower(): v for k, v in theirs[2].items() if k.lower() not in ignored
        }


async def test_a_key_that_changes_is_honoured_at_once():
    async with listening() as (base_url, seen), prepared(base_url, api_key="sk-1") as client:
        await (await post(client)).aclose()
        client.api_key = "sk-2"
        await (await post(client)).aclose()
    assert [headers["Authorization"] for _, _, headers, _ in seen] == ["Bearer sk-1", "Bearer sk-2"]


async def test_a_key_from_a_function_is_asked_for_each_time_and_gathers_nothing():
    keys = iter(range(100))

    async def key() -> str:
        return f"sk-{next(keys)}"

    async with listening() as (base_url, seen), prepared(base_url, api_key=key) as client:
        for _ in range(60):
            await (await post(client)).aclose()
        assert len(client._templates) <= 20
    sent = [headers["Authorization"] for _, _, headers, _ in seen]
    assert sent == [f"Bearer sk-{i}" for i in range(60)]


async def test_a_bad_status_is_the_sdks_own_error():
    async with listening(401) as (base_url, _), prepared(base_url, api_key="sk-1") as client:
        with pytest.raises(AuthenticationError) as raised:
            await post(client)
    assert raised.value.code == "c"
    assert raised.value.response.status_code == 401


async def test_nobody_listening_is_the_sdks_connection_error():
    async with prepared("http://127.0.0.1:9/v1", api_key="sk-1") as client:
        with pytest.raises(APIConnectionError):
            await post(client)


async def test_streamed_and_whole_answers_are_asked_for_by_their_media_types():
    async with listening() as (base_url, seen):
        client = Client(base_url=base_url, api_key="k", trust_env=False)
        for stream in (True, False):
            response = await client.post(Api.CHAT, CONTENT, stream=stream)
            await response.aclose()
        await client.aclose()
    assert [headers["Accept"] for _, _, headers, _ in seen] == ["text/event-stream", "application/json"]
    assert {headers["Accept-Encoding"] for _, _, headers, _ in seen} == {"identity"}


async def test_more_streams_than_aiohttps_own_limit_of_100_run_at_once():
    import anyio

    arrived, release = 0, anyio.Event()

    async def handle(request):
        nonlocal arrived
        arrived += 1
        if arrived == 250:
            release.set()
        await release.wait()
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    server = web.AppRunner(app)
    await server.setup()
    await web.TCPSite(server, "127.0.0.1", 0).start()
    client = Client(base_url=f"http://127.0.0.1:{server.addresses[0][1]}/v1", api_key="k", trust_env=False)

    async def one():
        response = await client.post(Api.CHAT, CONTENT, stream=False)
        await response.aclose()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for _ in range(250):
                tasks.start_soon(one)
    await client.aclose()
    await server.cleanup()


@pytest.mark.parametrize("status", [401, 429, 500])
@pytest.mark.parametrize("ending", ["cut", "slow", "gzip"])
async def test_the_status_of_a_bad_answer_counts_whatever_becomes_of_its_body(status, ending, monkeypatch):
    import asyncio

    import openai

    from runner import client as module
    from runner.foreign import fault_of

    monkeypatch.setattr(module, "ERROR_BODY_TIMEOUT_S", 0.1)

    handlers: list[Any] = []
    over = asyncio.Event()

    async def serve(reader, writer):
        handlers.append(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(len(CONTENT))  # what is unread at the close would become a reset
        coding = b"content-encoding: gzip\r\n" if ending == "gzip" else b""
        head = b"HTTP/1.1 %d X\r\nx-note: gr\xc3\xbc\xdf\r\nretry-after: 7\r\n%bcontent-length: 500\r\n\r\n{" % (
            status,
            coding,
        )
        writer.write(head)
        await writer.drain()
        if ending == "slow":
            await over.wait()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with prepared(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", api_key="k") as client:
        with pytest.raises(openai.APIStatusError) as raised:
            await post(client)
    over.set()
    await asyncio.gather(*handlers)
    server.close()
    fault = fault_of(raised.value)
    assert (fault.status, fault.retry_after_s) == (status, 7)


@pytest.mark.parametrize(
    ("coding", "compress"),
    [("gzip", gzip.compress), ("X-GZIP", gzip.compress), ("deflate", zlib.compress), ("gzip", lambda body: body)],
)
async def test_a_refusal_that_was_compressed_unasked_says_what_it_says(coding, compress):
    import openai

    from runner.foreign import fault_of

    said = orjson.dumps({"error": {"code": "insufficient_quota", "message": "no money: " + "x" * 200_000}})
    if compress is gzip.compress:
        said = said.replace(b"x" * 200_000, b"x")

    async def refuse(request):
        return web.Response(status=429, headers={"content-encoding": coding}, body=compress(said))

    app = web.Application(client_max_size=2**20)
    app.router.add_post("/{path:.*}", refuse)
    server = TestServer(app)
    await server.start_server()
    async with prepared(str(server.make_url("/v1")), api_key="k") as client:
        with pytest.raises(openai.APIStatusError) as raised:
            await post(client)
    await server.close()
    fault = fault_of(raised.value)
    assert "no money" in fault.message
    assert compress is not gzip.compress or fault.kind is FaultKind.QUOTA


@pytest.mark.parametrize("api", list(Api))
async def test_azures_dated_api_is_asked_as_the_sdk_asks_it(api):
    async with listening() as (base_url, seen):
        resource = base_url.removesuffix("/v1")
        reference = AsyncAzureOpenAI(
            azure_endpoint=resource,
            api_key="key",
            api_version="2024-10-21",
            max_retries=0,
            timeout=None,
            http_client=DefaultAsyncHttpxClient(transport=Transport(trust_env=False), timeout=None, trust_env=False),
        )
        options: Any = {"headers": {"Accept": "text/event-stream", "Accept-Encoding": "identity"}}
        body = {"model": "my deployment"}
        await reference.post(api.value, body=body, cast_to=object, options=options)
        await reference.close()
        client = Client(base_url=resource, api_key="key", trust_env=False, api_version="2024-10-21")
        stream = await client.serving("my deployment").post(api, CONTENT, stream=True)
        await stream.aclose()
        await client.aclose()
        assert stream.status == 200
    theirs, ours = seen
    assert ours[:2] == theirs[:2]
    compared = {"api-key", "user-agent", "accept", "x-stainless-lang", "content-type", "accept-encoding"}
    kept = [{k.lower(): v for k, v in each[2].items() if k.lower() in compared} for each in (ours, theirs)]
    assert kept[0] == kept[1]
    assert kept[0]["api-key"] == "key"
    assert "Authorization" not in ours[2]
