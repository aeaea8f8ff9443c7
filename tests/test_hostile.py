"""Answers that no server should give, from a raw socket, to the real process: one record a job, named for a person.

tests/test_scenarios.py has what the simulator can do; these are below HTTP, or against it.
"""

from __future__ import annotations

import asyncio
import gzip
from collections import Counter
from typing import Final

import orjson
import pytest

from tests.process import RUNNER, TIMEOUT_S, by_id, environment, write_jobs
from tests.raw_server import listening

BIG_BYTES: Final = 256 << 20


def event(value):
    return b"data: " + (value if isinstance(value, bytes) else orjson.dumps(value)) + b"\n\n"


def chunk(text, finish=None):
    return {"id": "x", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


WHOLE = event(chunk("hello")) + event(chunk("", "stop")) + event(b"[DONE]")
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


def sized(body, head=STREAM):
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


def refusal(status, body, more=b""):
    return sized(body, b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n%b" % (status, more))


def large(status):
    return refusal(status, b"")[:-5] + b"%d\r\n\r\n" % BIG_BYTES


NO_HTTP = ("connection_broken", "the server's answer is no HTTP: ")
ANSWERS: Final = {
    # name: (what is sent, code and a part of the message; None for success)
    "another protocol": (b"SSH-2.0-OpenSSH_9.2\r\n", NO_HTTP),
    "switching": (b"HTTP/1.1 101 X\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n", (NO_HTTP[0], "switches to")),
    "10,000 headers": (
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: y\r\n" % i for i in range(10_000)) + b"\r\n",
        (NO_HTTP[0], "more than 256 headers"),
    ),
    "two lengths": (STREAM + b"content-length: 5\r\ncontent-length: 500\r\n\r\n" + WHOLE, NO_HTTP),
    "length and chunks": (STREAM + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", NO_HTTP),
    "a negative length": (STREAM + b"content-length: -5\r\n\r\n" + WHOLE, NO_HTTP),
    "an endless chunk extension": (STREAM + b"transfer-encoding: chunked\r\n\r\n5;" + b"a" * 200_000, (NO_HTTP[0], "")),
    "status 99": (b"HTTP/1.1 99 X\r\n\r\n", NO_HTTP),
    "nothing but 100": (b"HTTP/1.1 100 Continue\r\n\r\n", ("connection_broken", "without an answer")),
    "a thousand times 100": (b"HTTP/1.1 100 Continue\r\n\r\n" * 1_000 + sized(WHOLE), None),
    "early hints": (b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + sized(WHOLE), None),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", ("wrong_content", "no content type")),
    "not modified": (b"HTTP/1.1 304 N\r\n\r\n", ("redirect", "HTTP 304")),
    "status 999": (refusal(999, b"{}"), ("server_error", "HTTP 999")),
    "a length that cuts": (STREAM + b"content-length: 40\r\n\r\n" + WHOLE, ("truncated", "terminal event")),
    "UTF-16": (sized(WHOLE.decode().encode("utf-16")), ("truncated", "terminal event")),
    "the end first": (sized(event(b"[DONE]") + WHOLE), ("truncated", "terminal event")),
    "carriage returns": (sized(WHOLE.replace(b"\n", b"\r")), None),
    "a second answer": (sized(WHOLE) * 2, None),
    "an error behind the end": (
        sized(event(chunk("a", "stop")) + event({"error": {"message": "late"}})),
        ("server_error", "late"),
    ),
    "an error that is nothing": (sized(event({"error": {}})), ("server_error", "inside the stream")),
    "another API's events": (sized(event({"type": "message_stop"})), ("truncated", "terminal event")),
    "a finish that is a list": (sized(event(chunk("a", ["stop"]))), ("malformed", "finish_reason")),
    "a bomb in an error": (
        refusal(400, gzip.compress(b" " * 50_000_000), b"content-encoding: gzip\r\n"),
        ("bad_request", ""),
    ),
    "a deep error": (refusal(400, b"[" * 200_000), ("bad_request", "[[[")),
    "an error in UTF-16": (refusal(400, '{"error":"h\u00e9"}'.encode("utf-16")), ("bad_request", "")),
    **{
        f"a large {status}": (large(status), (code, "xxx"))
        for status, code in ((400, "bad_request"), (500, "server_error"))
    },
}


class Hostile:
    """Answers each prompt by its name, and counts the requests."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()

    async def serve(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        size = int(head.partition(b"content-length:")[2].split(maxsplit=1)[0])
        name = orjson.loads(await reader.readexactly(size))["messages"][0]["content"]
        self.seen[name] += 1
        writer.write(ANSWERS[name][0])
        await writer.drain()
        if name.startswith("a large"):
            for _ in range(BIG_BYTES >> 20):
                writer.write(b"x" * (1 << 20))
                await writer.drain()


@pytest.mark.slow
async def test_whatever_a_server_sends_every_job_has_one_record_that_says_what_was_wrong(tmp_path):
    server = Hostile()
    path = write_jobs(tmp_path / "jobs.jsonl", ({"custom_id": name, "prompt": name} for name in ANSWERS))
    async with listening(server.serve) as port:
        options = ("--base-url", f"http://127.0.0.1:{port}/v1", "--model", "m", "--max-attempts", "2")
        process = await asyncio.create_subprocess_exec(
            *(*RUNNER, str(path), *options, "--progress", "none", "--log-level", "DEBUG"),
            cwd=tmp_path,
            env=environment(OPENAI_API_KEY="sk-none"),
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    assert (process.returncode, said) == (1, b""), said.decode()
    folder = tmp_path / "results" / "jobs"
    assert "Traceback" not in (folder / "run.log").read_text()
    found = by_id(folder)
    assert found.keys() == ANSWERS.keys()
    for name, (_, expected) in ANSWERS.items():
        record = found[name]
        error = record["error"]
        assert record["runner"]["attempts"] == server.seen[name], name
        assert (error is None) == (expected is None), (name, error)
        if expected is not None:
            assert error["code"] == expected[0], (name, error)
            assert expected[1] in error["message"], (name, error)
            assert "callback" not in error["message"], (name, error)
