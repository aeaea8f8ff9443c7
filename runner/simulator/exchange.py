"""One request and its answer on the wire: what the scenarios are written in.

A well-behaved answer is `open`, `play`, `close`. A scenario does the same and then something that it shouldn't:
`drop` and `reset` end the connection, and raise `HungUp` so that nothing more is sent.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

import orjson
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from runner.limits import SIMULATOR_STALL_S
from runner.simulator.background import Generation
from runner.simulator.ledger import Entry
from runner.simulator.pacing import Pace, Player, factors
from runner.simulator.plan import Plan
from runner.simulator.profile import Profile
from runner.simulator.refusals import ApiError
from runner.simulator.sse import Cut, Event

EVENT_STREAM: Final = "text/event-stream; charset=utf-8"
JSON: Final = "application/json"
_LINGER_OFF: Final = struct.pack("ii", 1, 0)  # close() then sends RST and discards what is unsent
_YIELD_EVERY: Final = 32


class HungUp(ConnectionResetError):
    """Raised after the simulator itself has ended the connection."""


def chunked(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def bare(data: bytes) -> bytes:
    """A piece of a body to an HTTP/1.0 client, which knows no chunks."""
    return data


@dataclass(slots=True)
class Exchange:
    """One request, understood and let in, and what has been sent of its answer."""

    request: web.Request
    plan: Plan
    profile: Profile
    entry: Entry
    headers: Mapping[str, str]
    """Of every answer: ids and limits."""
    started_s: float
    """Loop time at the request's arrival."""
    generation: Generation | None = None
    """What it delivers, where that is generated without it."""
    _response: web.StreamResponse | None = None
    _writer: AbstractStreamWriter | None = None
    _player: Player | None = None

    @property
    def ttft_s(self) -> float:
        """TTFT of this request, jitter and all."""
        asked = self.plan.rehearsal.ttft_s
        table = factors(self.profile.jitter, self.profile.seed)
        return (self.profile.ttft_s if asked is None else asked) * table[(self._salt - 1) % len(table)]

    @property
    def gap_s(self) -> float:
        """Mean gap between the tokens of one choice."""
        return 1 / (self.plan.rehearsal.tokens_per_s or self.profile.tokens_per_s)

    @property
    def duration_s(self) -> float:
        """When the whole of the answer is there."""
        return self.ttft_s + self.gap_s * max(0, self.plan.tokens / self.plan.width - 1)

    @property
    def response(self) -> web.StreamResponse:
        """What has been sent; for aiohttp, which closes a connection by finding it closed."""
        return self._response or web.Response()

    @property
    def _salt(self) -> int:
        # by number, not by content: ten equal requests are to differ in their timing
        return (self.entry.n if self.generation is None else self.generation.n) * 0x9E3779B1

    def _pace(self) -> Pace:
        if not self.plan.stream:
            return Pace(self.duration_s if self.generation is None else 0.0, 0)
        table = factors(self.profile.jitter, self.profile.seed)
        return Pace(self.ttft_s, self.gap_s / self.plan.width, table, self._salt % len(table))

    def begin(self, fault: str | None) -> Generation:
        """Begins a background response: what it delivers from now on is that."""
        duration_s = self.duration_s
        if self.plan.stream:
            pace = self._pace()
            gaps = (pace.factors[(pace.offset + i) % len(pace.factors)] for i in range(max(0, self.plan.tokens - 1)))
            duration_s = pace.first_s + (pace.gap_s * sum(gaps) if pace.gap_s else 0.0)
        assert self.entry.key is not None
        ends_s = self.started_s + duration_s
        self.generation = Generation(self.plan, self.entry.n, self.entry.key, self.started_s, ends_s, fault)
        return self.generation

    def cut(self, events: Iterator[Event] | None = None) -> Cut:
        """The answer's events up to the middle."""
        after = self.plan.after()
        if self.generation is not None and self.generation.fault is not None:
            after = max(0, after - self.plan.skipped_content())  # it befell the response, and not this delivery
        return Cut(self.plan.events() if events is None else events, after)

    def whole(self, status: int, payload: bytes, content_type: str, headers: Mapping[str, str] = {}) -> web.Response:
        """A plain answer."""
        self.entry.status = status
        return web.Response(status=status, body=payload, headers=self._headers(content_type, headers))

    def _headers(self, content_type: str, more: Mapping[str, str]) -> dict[str, str]:
        spent_ms = str(round(self.elapsed_s * 1_000))
        return {**self.headers, "openai-processing-ms": spent_ms, "content-type": content_type, **more}

    def refusal(self, error: ApiError) -> web.Response:
        """An error in the API's form."""
        return self.whole(error.status, orjson.dumps({"error": error.error}), JSON, error.headers)

    async def answer(self) -> web.StreamResponse:
        """The answer as it should be."""
        if self.plan.stream:
            await self.open()
            await self.play(self.plan.events())
            return await self.close()
        payload = orjson.dumps(self.plan.body())
        if self.generation is None:
            await self.until(self.duration_s)
        return self.whole(200, payload, JSON)

    @property
    def elapsed_s(self) -> float:
        """Since the arrival."""
        return asyncio.get_running_loop().time() - self.started_s

    async def until(self, after_s: float) -> None:
        """Waits until so many seconds after the arrival."""
        await asyncio.sleep(max(0.0, after_s - self.elapsed_s))

    async def open(self, content_type: str | None = None, headers: Mapping[str, str] = {}) -> None:
        """Sends the headers of a 200. From here on the pace is that of the plan as it now is."""
        natural = EVENT_STREAM if self.plan.stream else JSON
        both = self._headers(content_type or natural, {"cache-control": "no-cache", **headers})
        self._response = web.StreamResponse(status=200, headers=both)
        self.entry.status = 200
        writer = await self._response.prepare(self.request)
        assert writer is not None  # None only after the end of an answer
        self._writer = writer
        frame = bare if self.request.version < (1, 1) else chunked
        self._player = Player(writer, frame, self.started_s, self._pace())
        self._player.skip(self.plan.skipped_content())

    async def play(self, events: Iterable[Event]) -> None:
        """Sends events when they are due."""
        assert self._player is not None
        await self._player.play(iter(events) if self.generation is None else self.generation.live(events))

    async def put(self, data: bytes) -> None:
        """Sends one piece of the body at once, and waits where the reader is slow."""
        assert self._response is not None
        await self._response.write(data)
        await self.drained()

    async def pour(self, blocks: Iterable[bytes]) -> None:
        """Sends pieces as fast as the reader takes them, and lets others have their turn."""
        for number, block in enumerate(blocks):
            await self.put(block)
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)

    async def drained(self) -> None:
        """Waits while too much is on its way."""
        assert self._writer is not None
        await self._writer.drain()

    async def close(self) -> web.StreamResponse:
        """Ends the body as HTTP has it."""
        assert self._response is not None
        await self._response.write_eof()
        return self._response

    async def stall(self) -> None:
        """Waits as long as the request says, and then goes on; without a word from it, an hour, and then drops."""
        delay_s = self.plan.rehearsal.delay_s
        await asyncio.sleep(SIMULATOR_STALL_S if delay_s is None else min(delay_s, SIMULATOR_STALL_S))
        if delay_s is None:
            self.drop()

    def raw(self, data: bytes) -> None:
        """Writes to the socket past HTTP's framing."""
        self._transport().write(data)

    def drop(self) -> NoReturn:
        """Ends the connection by FIN, after what is written, in the middle of whatever was going on."""
        self._transport().close()
        raise HungUp

    def reset(self) -> NoReturn:
        """Ends the connection by RST."""
        transport = self._transport()
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)
        transport.abort()
        raise HungUp

    def _transport(self) -> asyncio.Transport:
        transport = self.request.transport
        if transport is None:
            raise ConnectionResetError("the client is gone")
        return transport
