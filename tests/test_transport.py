from __future__ import annotations

import asyncio

import pytest

from runner.client import Client
from runner.errors import UsageError
from runner.jobs import Api
from runner.transport import environment_proxy

NAMES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("env", "url", "proxy"),
    [
        ({}, "https://api.openai.com/v1", None),
        ({"HTTPS_PROXY": "http://p:1"}, "https://api.openai.com/v1", "http://p:1"),
        ({"https_proxy": "http://p:1"}, "https://api.openai.com/v1", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, "http://127.0.0.1:8000/v1", None),
        ({"ALL_PROXY": "http://p:1"}, "https://api.openai.com/v1", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "openai.com"}, "https://api.openai.com/v1", None),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, "https://api.openai.com/v1", None),
        ({"HTTP_PROXY": "http://u:secret@p:1"}, "http://h/v1", "http://u:secret@p:1"),
    ],
)
def test_the_environment_names_the_proxy(monkeypatch, env, url, proxy):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert environment_proxy(url) == proxy


@pytest.mark.parametrize(
    ("proxy", "said"),
    [
        ("socks5://user:secret@p:1", "socks5"),
        ("http://user:secret@p:99999", "can't be read"),
        ("http://user:secret@[p:1", "can't be read"),
        ("http://user:secret/@p:1", "can't be read"),
        ("http://user:secret@:1", "without a host"),
        ("http://", "without a host"),
        ("localhost:8080", "localhost"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_an_error_before_anything_is_sent(monkeypatch, proxy, said):
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(UsageError, match=said) as raised:
        environment_proxy("https://api.openai.com/v1")
    assert "secret" not in str(raised.value)


async def test_plain_requests_go_through_the_proxy_with_its_credentials(monkeypatch):
    seen = []

    async def proxy(reader, writer):
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    monkeypatch.setenv("HTTP_PROXY", f"http://me:pass@127.0.0.1:{port}")
    client = Client(base_url="http://model.example/v1", api_key="sk-1")
    body = await client.post(Api.CHAT, b"{}", stream=False)
    assert await body.read() == b"{}"
    await body.aclose()
    await client.aclose()
    server.close()
    (head,) = (data.lower() for data in seen)
    assert head.startswith(b"post http://model.example/v1/chat/completions http/1.1")
    assert b"proxy-authorization: basic" in head
    assert b"\nauthorization: bearer sk-1" in head
