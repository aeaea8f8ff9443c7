"""A client whose answers are lists: bytes to deliver, seconds to wait, exceptions to raise. No socket."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import anyio
import orjson

from runner.deltas import Delta
from runner.jobs import Api, Job
from runner.transport import ResponseBody

FOREVER = float(10**9)


def sse(*events: Any) -> bytes:
    """Chat or completions chunks as an event stream; a str is sent as it is, e.g. "[DONE]"."""
    return b"".join(b"data: %b\n\n" % (e.encode() if isinstance(e, str) else orjson.dumps(e)) for e in events)


def chat_chunk(content=None, finish=None, index=0, **top):
    delta = {} if content is None else {"content": content}
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **top}


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
HELLO = sse(
    chat_chunk("Hel"),
    chat_chunk("lo"),
    chat_chunk(finish="stop"),
    {**chat_chunk(), "choices": [], "usage": USAGE},
    "[DONE]",
)


def chat_job(**kwargs: Any) -> Job:
    defaults: dict[str, Any] = {
        "id": "j",
        "line": 1,
        "api": Api.CHAT,
        "body": {},
        "stream": True,
        "digest": 1,
        "size_bytes": 1,
    }
    return Job(**(defaults | kwargs))


class ScriptedBody(ResponseBody):
    """A response body that follows its script; `closed` and `at_end` can be inspected afterwards."""

    def __init__(self, script):
        super().__init__(sent_ns=time.monotonic_ns())
        self._script = list(script)
        self.closed = False
        self.headers_ns = self.sent_ns

    def announcing(self, headers, status=200):
        """The same with a head."""
        self.status = status
        self.headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        return self

    async def read(self):
        while self._script:
            step = self._script.pop(0)
            if isinstance(step, BaseException):
                raise step
            if isinstance(step, int | float):
                await anyio.sleep(step)
            elif step:
                self.arrived_ns = time.monotonic_ns()
                return step
        return b""

    @property
    def at_end(self):
        return not self._script

    async def aclose(self):
        self.closed = True


@dataclass
class ScriptedClient:
    """Answers every post with the next script (the last one again and again), or raises it."""

    scripts: list[Any]
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": "text/event-stream"})
    status: int = 200
    posts: list[bytes] = field(default_factory=list)
    bodies: list[ScriptedBody] = field(default_factory=list)

    async def post(self, api, content, *, stream):
        self.posts.append(content)
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        if isinstance(script, BaseException):
            raise script
        body = ScriptedBody(script)
        self.bodies.append(body)
        return body.announcing({"x-request-id": "req", **self.headers}, self.status)


@dataclass
class ListSink:
    """Keeps what it is given."""

    deltas: list[Delta] = field(default_factory=list)

    is_live = False

    def delta(self, delta, t_s):
        self.deltas.append(delta)

    def texts(self, texts):
        self.deltas += texts.deltas

    @property
    def has_room(self):
        return True

    async def room(self):
        await anyio.lowlevel.checkpoint()
