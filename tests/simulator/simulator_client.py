"""What the simulator's tests look at it with: a bare socket, and a client of the API's own."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson
from openai import AsyncOpenAI

from runner.simulator import Ledger, Profile, running_app

FAST = Profile(ttft_s=0.0, tokens_per_s=float("inf"), jitter=0.0)
GUARD_S = 60
"""An answer that never ends is to fail its test, not to hang the suite."""
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer", "minimum": 1, "maximum": 7}},
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "get_time",
            "parameters": {"type": "object", "properties": {"zone": {"enum": ["utc", "local"]}}},
        },
    },
]
FLAT_TOOLS: list[dict[str, Any]] = [{"type": "function", "strict": False, **tool["function"]} for tool in TOOLS]


class Raw(NamedTuple):
    """An answer as it stood on the wire."""

    status: int | None
    headers: dict[str, str]
    body: bytes
    """With HTTP's chunks undone, as far as they are whole."""
    ending: str
    """`whole`, `eof` inside the body, or `reset`."""
    rest: bytes = b""
    """What stood behind the last whole chunk."""

    @property
    def payloads(self):
        return [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: ")]


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self):
        self.now_s = 1_000.0

    def __call__(self):
        return self.now_s


def chat(text="hello", **more):
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


async def post(base_url, path, body, headers=()):
    """Sends one request over a socket of its own and reads until the answer or the connection ends."""
    url = urlsplit(base_url)
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    lines = [f"POST {url.path}{path} HTTP/1.1", f"host: {url.netloc}", f"content-length: {len(data)}", *headers]
    reader, writer = await asyncio.open_connection(url.hostname, url.port, limit=2**26)
    try:
        writer.write("\r\n".join([*lines, "", ""]).encode() + data)
        async with asyncio.timeout(GUARD_S):
            return await _read(reader)
    finally:
        writer.close()


async def _read(reader):
    status, headers, body = None, {}, b""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *rest = head.decode().split("\r\n")[:-2]
        status = int(first.split()[1])
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
        if "content-length" in headers:
            return Raw(status, headers, await reader.readexactly(int(headers["content-length"])), "whole")
        while True:
            size = int(await reader.readuntil(b"\r\n"), 16)
            chunk = await reader.readexactly(size + 2)
            if size == 0:
                return Raw(status, headers, body, "whole")
            body += chunk[:-2]
    except asyncio.IncompleteReadError as error:
        return Raw(status, headers, body, "eof", error.partial)
    except ConnectionResetError:
        return Raw(status, headers, body, "reset")


@asynccontextmanager
async def sdk(profile=FAST, key="sk-test"):
    """A simulator and the API's own client for it."""
    ledger = Ledger()
    async with running_app(profile, ledger) as url, AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
        yield client, ledger
