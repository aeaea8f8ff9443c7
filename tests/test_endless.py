"""Too much of everything, from 32 streams at once, as fast as it is read: the runner says so and stays small.

The real command against a server that writes without end. What is compared is the peak of its memory with that of the
same command and short answers. And what is long, but was asked for, is whole.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple

import anyio
import orjson
import pytest
from anyio.from_thread import start_blocking_portal

from runner import attempt
from runner.attempt import run_attempt
from runner.deadlines import Deadlines
from runner.faults import FaultKind
from runner.jobs import Api
from runner.limits import SLICE_BYTES
from runner.outcome import Completed, Failed
from tests.process import RUNNER, TIMEOUT_S, environment, records, write_jobs
from tests.raw_server import listening
from tests.scripted import ListSink, ScriptedClient, chat_chunk, chat_job, sse

STREAMS = 32
ALLOWED_BYTES = 64 << 20
EMPTY_DELTAS = 64_000
"""Of all streams together, each written to deltas.jsonl; `scripts/soak endless` has a million in each of them."""
MANY_EMPTY_DELTAS = 1_000_000
"""Of one stream. They are not written here: that takes three times as long, and other floods fill the disk's queue."""
WORDS = " again" * 40
ENTRY = {"token": " again", "logprob": -0.123456, "bytes": [32, 97, 103, 97, 105, 110]}
LOGPROBS = {"content": [ENTRY | {"top_logprobs": [ENTRY] * 20}], "refusal": None}


def deltas(**delta: object) -> bytes:
    return sse({"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})


def event(kind: str, **fields: object) -> bytes:
    return sse({"type": f"response.{kind}", "output_index": 0, "content_index": 0, "item_id": "m", **fields})


def with_logprobs() -> bytes:
    choice = {"index": 0, "delta": {"content": " again"}, "logprobs": LOGPROBS, "finish_reason": None}
    return sse({"id": "c", "choices": [choice]})


def new_keys() -> Iterator[bytes]:
    for first in itertools.count(step=100):
        yield b"".join(deltas(**{f"x{number}": {"y": []}}) for number in range(first, first + 100))


END = sse(chat_chunk("hi"), chat_chunk(finish="stop"), "[DONE]")
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


class Flood(NamedTuple):
    """What a server sends, and what becomes of it."""

    blocks: Callable[[], Iterable[bytes]]
    code: str | None = "too_large"
    url: str = CHAT
    headers: bytes = b"content-type: text/event-stream"
    begins: str = ""
    streams: int = STREAMS
    options: tuple[str, ...] = ()


def empty_deltas(count: int, **how: Any) -> Flood:
    """A whole answer that says nothing `count` times before it says something."""
    return Flood(lambda: [*[deltas(content="") * 100] * (count // 100), END], code=None, **how)


FLOODS = {
    "text": Flood(lambda: itertools.repeat(deltas(content=WORDS) * 100), begins=" again again"),
    "emoji": Flood(lambda: itertools.repeat(deltas(content=" ag😀" * 40) * 100), begins=" ag😀"),
    "arguments": Flood(
        lambda: itertools.repeat(deltas(tool_calls=[{"index": 0, "function": {"arguments": WORDS}}]) * 100)
    ),
    "reasoning": Flood(lambda: itertools.repeat(deltas(reasoning_content=WORDS) * 100)),
    "log probabilities": Flood(lambda: itertools.repeat(with_logprobs() * 20), begins=" again"),
    "unknown fields": Flood(new_keys),
    "responses": Flood(lambda: itertools.repeat(event("output_text.delta", delta=WORDS) * 100), url=RESPONSES),
    "a line of 200 MB": Flood(
        lambda: [b'data: {"choices":[{"delta":{"content":"', *[b"a" * (1 << 20)] * 200, b'"}}]}\n\n'],
    ),
    "a name without end": Flood(lambda: itertools.chain([b"event: "], itertools.repeat(b"a" * 65_536))),
    "very many values": Flood(lambda: itertools.repeat(b'data: {"x":[' + b"[]," * 400_000 + b"0]}\n\n")),
    "empty deltas": empty_deltas(EMPTY_DELTAS // STREAMS),
    "a million empty deltas in one stream": empty_deltas(MANY_EMPTY_DELTAS, streams=1, options=("--no-deltas",)),
    "gzip": Flood(
        lambda: itertools.repeat(os.urandom(65_536)),
        code="wrong_content",
        headers=b"content-type: text/event-stream\r\ncontent-encoding: gzip",
    ),
    "a body without end": Flood(lambda: itertools.repeat(b" " * 65_536), headers=b"content-type: application/json"),
}
SHORT = Flood(lambda: [END], code=None)


def serving(flood: Flood) -> AbstractAsyncContextManager[int]:
    """A server that answers everything alike; yields its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        (length,) = (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n%b\r\n\r\n" % flood.headers)
        for block in flood.blocks():
            writer.write(block)
            await writer.drain()

    return listening(answer)


MEASURED = """
import os, sys
pid = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[1:]], os.environ)
_, status, usage = os.wait4(pid, 0)
print(usage.ru_maxrss * 1024, os.waitstatus_to_exitcode(status))
"""
"""Runs a command and prints its peak. From a small process: a child's peak begins with what its parent has."""


def peak_bytes(flood: Flood, folder, timeout_s: float = TIMEOUT_S) -> int:
    """The peak of a run of a job a stream, whose records are in `folder`/out."""
    request = (
        {"model": "m", "input": "x"}
        if flood.url == RESPONSES
        else {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    )
    job = {"method": "POST", "url": flood.url, "body": request}
    write_jobs(folder / "jobs.jsonl", [{"custom_id": f"j{number}", **job} for number in range(flood.streams)])
    options = ("--concurrency", STREAMS, "--max-attempts", 1, "--progress", "none", "--out", "out", *flood.options)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serving(flood)) as port:
        ended = subprocess.run(
            [sys.executable, "-S", "-c", MEASURED, *RUNNER[1:], "jobs.jsonl", *map(str, options)],
            env=environment(OPENAI_API_KEY="k", OPENAI_BASE_URL=f"http://127.0.0.1:{port}/v1"),
            cwd=folder,
            capture_output=True,
            check=False,
            timeout=timeout_s,
        )
    peak, code = map(int, ended.stdout.split()[-2:])
    assert code == (1 if flood.code else 0), ended.stderr.decode()[-2000:]
    return peak


@pytest.fixture(scope="module")
def baseline_bytes(tmp_path_factory) -> int:
    return peak_bytes(SHORT, tmp_path_factory.mktemp("short"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_a_named_fault_and_no_flood_of_memory(name, tmp_path, baseline_bytes):
    flood = FLOODS[name]
    more = peak_bytes(flood, tmp_path) - baseline_bytes
    print(f"{name}: {baseline_bytes / 1e6:.1f} MB + {more / 1e6:.1f} MB")
    found = records(tmp_path / "out")
    assert len(found) == flood.streams
    assert {(record["error"] or {}).get("code") for record in found} == {flood.code}
    assert max(len(orjson.dumps(record)) for record in found) < 256 << 10
    if flood.begins:
        partial = found[0]["error"]["partial"]["choices"][0]["message"]["content"]
        assert partial.startswith(flood.begins)
    assert more <= ALLOWED_BYTES


# ── One stream ───────────────────────────────────────────────────────────────────────────────────────────────────


def assert_nothing_is_held():
    for room in (attempt._ANSWERS, attempt._READING):
        assert (room.held, room.shares) == (0, 0), "an answer that has ended holds room"


async def attempted(blocks, *, choices=1, **job):
    client: Any = ScriptedClient([blocks])
    sink, deadlines = ListSink(), Deadlines(first_token_s=300, idle_s=60, total_s=1800)
    result = await run_attempt(
        client,
        chat_job(**job),
        b"{}",
        choices=choices,
        deadlines=deadlines,
        sink=sink,
        on_headers=lambda response: None,
    )
    assert all(body.closed for body in client.bodies), "a connection was left open"
    assert_nothing_is_held()
    return result


TOKENS = 384 * 1024
LONGEST = " नमस्ते"[:4] * TOKENS  # 10 bytes a token, and 3.8 MB


async def test_the_longest_answer_of_the_api_is_whole():
    step = len(LONGEST) // 1_000
    parts = [LONGEST[at : at + step] for at in range(0, len(LONGEST), step)]
    result = await attempted([*(sse(chat_chunk(part)) for part in parts), END])
    assert isinstance(result.outcome, Completed), result.outcome
    assert result.outcome.body["choices"][0]["message"]["content"] == LONGEST + "hi"


async def test_a_terminal_event_that_repeats_the_longest_answer_is_read():
    output = [{"type": "message", "content": [{"type": "output_text", "text": LONGEST}]}]
    response = {"id": "r", "object": "response", "status": "completed", "output": output}
    line = b"data: " + json.dumps({"type": "response.completed", "response": response}).encode() + b"\n\n"
    blocks = [
        event("output_text.delta", delta=LONGEST),
        *(line[at : at + 65_536] for at in range(0, len(line), 65_536)),
    ]
    result = await attempted(blocks, api=Api.RESPONSES)
    assert isinstance(result.outcome, Completed), result.outcome
    assert result.outcome.body["output"] == output


async def test_choices_that_were_asked_for_have_room_each():
    blocks = [sse(chat_chunk("x" * 500_000, index=index)) for index in range(20)]
    ends = [sse(chat_chunk(finish="stop", index=index)) for index in range(20)]
    body = {"n": 20, "max_tokens": 100_000}
    result = await attempted([*blocks, *ends], choices=20, body=body)
    assert isinstance(result.outcome, Completed), result.outcome


async def test_an_answer_of_ten_tokens_is_no_megabytes():
    result = await attempted([sse(chat_chunk("x" * 100_000))] * 100, body={"max_tokens": 10})
    assert isinstance(result.outcome, Failed)
    assert result.outcome.fault.kind is FaultKind.TOO_LARGE
    assert result.outcome.partial is not None
    assert 60_000 < len(result.outcome.partial["choices"][0]["message"]["content"]) <= 64 * 1024
    assert result.chunks < 20, "it was read on"


async def test_a_cancelled_answer_holds_no_room():
    with anyio.CancelScope() as scope:
        scope.cancel()
        await attempted([1.0, sse(chat_chunk("x"))])
    assert_nothing_is_held()


async def test_a_large_read_is_taken_bit_by_bit_while_the_disk_is_behind():
    class Behind(ListSink):
        has_room = False
        waits = 0

        async def room(self):
            self.waits += 1
            await super().room()

    sink = Behind()
    block = sse(*[chat_chunk("x" * 100)] * 4_000) + END
    client: Any = ScriptedClient([[block]])
    await run_attempt(
        client,
        chat_job(),
        b"{}",
        choices=1,
        deadlines=Deadlines(first_token_s=300, idle_s=60, total_s=1800),
        sink=sink,
        on_headers=lambda response: None,
    )
    assert sink.waits == len(block) // SLICE_BYTES
