"""What failed is free at once: a server that is down must not leave thousands of answers to the garbage collector."""

from __future__ import annotations

import gc
import random
import socket
from collections import Counter
from contextlib import asynccontextmanager, contextmanager

import anyio
import httpx2
import openai
import orjson
import pytest

from runner.attempt import run_attempt
from runner.client import Client
from runner.deadlines import Deadlines
from runner.outcome import Failed
from runner.retries import AttemptFailed, retrying
from tests.raw_server import listening
from tests.scripted import HELLO, ListSink, chat_job

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
ANSWERS = {
    "nothing listens": None,
    "closed without an answer": b"",
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "cut": HEAD + b"content-length: 5000\r\n\r\n" + HELLO[:60],
    "refused": b"HTTP/1.1 500 X\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
    "garbage": HEAD + b"content-length: 16\r\n\r\ndata: {garbage\n\n",
    "no finish": HEAD + b"content-length: 14\r\n\r\ndata: [DONE]\n\n",
}
MINUTE = Deadlines(first_token_s=60, idle_s=60, total_s=60)


def counts(kind: type) -> bool:
    """What is ours, or a transport's error. The tests' own loop makes a ring of every transport; uvloop doesn't."""
    ours = str(kind.__module__).startswith("runner.")
    return ours or issubclass(kind, httpx2.TransportError | openai.OpenAIError | OSError)


@contextmanager
def collected():
    """Yields what was left meanwhile for the garbage collector alone to find: a count by class, filled at the end."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found.update(type(thing).__qualname__ for thing in gc.garbage if counts(type(thing)))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


@asynccontextmanager
async def serving(answer):
    if answer is None:
        with socket.socket() as held:  # bound, so that nobody else gets the port, but not listening
            held.bind(("127.0.0.1", 0))
            yield held.getsockname()[1]
        return

    async def serve(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        await reader.readexactly(length)
        writer.write(answer)
        await writer.drain()

    async with listening(serve) as port:
        yield port


async def attempt(client):
    result = await run_attempt(
        client,
        chat_job(),
        orjson.dumps({"model": "m"}),
        choices=1,
        deadlines=MINUTE,
        sink=ListSink(),
        on_headers=lambda response: None,
    )
    assert isinstance(result.outcome, Failed)
    raise AttemptFailed(result.outcome.fault)


async def at_once(seconds):
    await anyio.lowlevel.checkpoint()


async def failed_job(client):
    try:
        await retrying(lambda: attempt(client), 3, rng=random.Random(1), sleep=at_once)
    except AttemptFailed:
        return
    pytest.fail("it ended well")


@pytest.mark.parametrize("transport", ["native", "aiohttp"])
@pytest.mark.parametrize("name", ANSWERS)
async def test_a_job_that_failed_leaves_nothing_to_the_garbage_collector(name, transport):
    async with serving(ANSWERS[name]) as port:
        client = Client(base_url=f"http://127.0.0.1:{port}/v1", api_key="k", trust_env=False, transport=transport)
        try:
            await failed_job(client)  # what is made once: classes, caches, the session
            await anyio.wait_all_tasks_blocked()
            with collected() as found:
                for _ in range(5):
                    await failed_job(client)
                await anyio.wait_all_tasks_blocked()
            assert found == {}
        finally:
            await client.aclose()
