"""One try of one job: open, read, deadlines, close.

Bytes come from the client's `Body`, go through the SSE decoder and the accumulator, and leave as Deltas (to the sink)
and one `Attempted` at the end. How it ends is decided in one place, `_conclude`, and success is a positive fact: the
accumulator has seen what it needs, whatever the connection did afterwards.

A stamp is taken once a read, where the read returns and before anything is parsed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio
import httpx2

from runner import accumulate, faults, sse
from runner.accumulate import Accumulator, MalformedChunk, StreamError
from runner.accumulate.abridged import abridged
from runner.accumulate.allowance import Place, Room, allowance_of, has_too_many_values, reading_of
from runner.accumulate.held import plain
from runner.client import Poster
from runner.deadlines import Deadlines, Watch
from runner.deltas import Delta
from runner.faults import Fault, FaultKind
from runner.foreign import FOREIGN, fault_of
from runner.jobs import Api, Job
from runner.limits import (
    DRAIN_TIMEOUT_S,
    LARGE_EVENT_BYTES,
    MAX_BODY_BYTES,
    MAX_PARTIAL_BYTES,
    MAX_STREAM_BYTES,
    MIN_ROOM_BYTES,
    READING_ROOM_BYTES,
    SLICE_BYTES,
)
from runner.outcome import Completed, Failed, Outcome
from runner.sketch import Sketch
from runner.transport import ResponseBody


class Sink(Protocol):
    """Where deltas go as they arrive."""

    def delta(self, delta: Delta, t_s: float) -> None:
        """Takes one delta; `t_s` is seconds since the attempt was sent. Must not block."""

    @property
    def has_room(self) -> bool:
        """Whether more may be read at once."""

    async def room(self) -> None:
        """Returns when more may be read: the disk has caught up."""


@dataclass(slots=True)
class Attempted:
    """How one attempt went. Times are seconds since it was sent, on the monotonic clock."""

    outcome: Outcome
    status: int | None = None
    request_id: str | None = None
    ttft_s: float | None = None
    duration_s: float = 0.0
    chunks: int = 0
    """Chunks with content."""
    gaps: Sketch = field(default_factory=Sketch)
    """Gaps between chunks with content, in seconds, as they arrived."""


# Of this process, whatever runs in it.
_ANSWERS = Room(MIN_ROOM_BYTES)
_READING = Room(READING_ROOM_BYTES)


async def run_attempt(
    client: Poster,
    job: Job,
    content: bytes,
    *,
    choices: int,
    deadlines: Deadlines,
    sink: Sink,
    on_headers: Callable[[httpx2.Response], None],
) -> Attempted:
    """Makes one request and reads its answer to the end.

    `content` is the encoded body; `choices` how many choices the answer owes; `on_headers` is told of a good status
    as soon as it is in. Never raises for what the server, the network or a deadline did: that is in the outcome.
    Cancellation passes through, and closes the connection.
    """
    allowance = allowance_of(job, choices)
    watch = Watch(deadlines, streaming=job.stream)
    fault: Fault | None = None
    with watch, _ANSWERS.open(allowance) as answers, _READING.open(reading_of(allowance)) as reading:
        reader = _Reader(job, choices, sink, answers, reading)
        try:
            await reader.exchange(client, content, watch, on_headers)
        except _FaultError as found:
            fault = found.fault
        except FOREIGN as error:
            fault = fault_of(error)
    if watch.fired is not None:
        fault = Fault(watch.fired, f"{watch.fired.value.replace('_', ' ')} after {reader.elapsed_s():.1f} s")
    return reader.conclude(fault)


class _FaultError(Exception):
    """Raised inside an attempt when what came back can't become an answer."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault


class _Reader:
    """The state of one attempt while it is read."""

    def __init__(self, job: Job, choices: int, sink: Sink, answers: Place, reading: Place) -> None:
        self._job = job
        self._answers = answers
        self._reading = reading
        self._sink = sink
        self._answer: Accumulator | None = accumulate.for_stream(job.api, choices=choices) if job.stream else None
        self._whole: accumulate.Answer | None = None
        self._stopped = False
        self._chars = 0
        self._sent_ns = time.monotonic_ns()
        self._last_ns: int | None = None
        self._ended_ns: int | None = None
        self._result = Attempted(Failed(Fault(FaultKind.INTERNAL, "the attempt has not ended")))

    def elapsed_s(self) -> float:
        return (time.monotonic_ns() - self._sent_ns) / 1e9

    # ── Opening ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def exchange(
        self, client: Poster, content: bytes, watch: Watch, on_headers: Callable[[httpx2.Response], None]
    ) -> None:
        """From sending to the last byte that matters; the connection is given back or closed in every case."""
        response, body = await client.post(self._job.api, content, stream=self._job.stream)
        try:
            self._sent_ns = body.sent_ns
            self._result.status = response.status_code
            self._result.request_id = response.headers.get("x-request-id")
            on_headers(response)
            if self._job.stream and not _is_json(response):
                _require(response, "text/event-stream")
                await self._read_stream(body, watch)
            else:
                # A server that answers a stream with one JSON body still answered; an error in it is found below.
                _require(response, "application/json")
                await self._read_whole(body, watch)
        finally:
            await body.aclose()

    async def _read_whole(self, body: ResponseBody, watch: Watch) -> None:
        blocks: list[bytes] = []
        size = 0
        while block := await body.read():
            size += len(block)
            if size > MAX_BODY_BYTES:
                raise _FaultError(Fault(FaultKind.TOO_LARGE, f"the answer is larger than {MAX_BODY_BYTES} bytes"))
            _bound(self._reading, size)
            blocks.append(block)
        watch.progress()
        whole = b"".join(blocks)
        self._bound_values(whole)
        try:
            self._whole = accumulate.parse_body(self._job.api, whole)
        except (MalformedChunk, StreamError) as error:
            raise _FaultError(_fault_in_stream(error)) from error

    # ── Streaming ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _read_stream(self, body: ResponseBody, watch: Watch) -> None:
        decoder = sse.Decoder(self._reading.allowance.bound)
        size = 0
        while block := await body.read():
            now_ns = time.monotonic_ns()
            size += len(block)
            if size > MAX_STREAM_BYTES:
                raise _FaultError(Fault(FaultKind.TOO_LARGE, f"the stream is larger than {MAX_STREAM_BYTES} bytes"))
            if await self._take_slices(decoder, block, now_ns, watch):
                break
        self._ended_ns = time.monotonic_ns()
        if not self._stopped:
            await _drain(body)

    async def _take_slices(self, decoder: sse.Decoder, block: bytes, now_ns: int, watch: Watch) -> bool:
        """Takes what one read brought, bit by bit where it is much; True when nothing more is wanted."""
        assert self._answer is not None
        for start in range(0, len(block), SLICE_BYTES):
            if self._take_block(decoder, block[start : start + SLICE_BYTES], now_ns, watch):
                return True
            _bound(self._answers, self._answer.held)
            _bound(self._reading, decoder.held)
            if not self._sink.has_room:
                with watch.suspended():
                    await self._sink.room()
        return False

    def _take_block(self, decoder: sse.Decoder, block: bytes, now_ns: int, watch: Watch) -> bool:
        """Takes a slice of what one read brought; True when nothing more is wanted."""
        answer = self._answer
        assert answer is not None
        try:
            for event in decoder.feed(block):
                self._bound_values(event.data)
                deltas = answer.feed(event.name, event.data)
                if deltas and self._take_deltas(deltas, now_ns, watch):
                    return True
                if answer.ended:
                    return True
        except sse.LineTooLong as error:
            raise _FaultError(Fault(FaultKind.TOO_LARGE, str(error))) from error
        except (MalformedChunk, StreamError) as error:
            raise _FaultError(_fault_in_stream(error)) from error
        return False

    def _bound_values(self, data: bytes) -> None:
        if len(data) > LARGE_EVENT_BYTES and has_too_many_values(data, self._answers.allowance):
            raise _FaultError(Fault(FaultKind.TOO_LARGE, f"{len(data):,} bytes of JSON hold too many values"))

    def _take_deltas(self, deltas: Any, now_ns: int, watch: Watch) -> bool:
        """Hands on the deltas of one chunk; True when the job wants no more of them."""
        t_s = (now_ns - self._sent_ns) / 1e9
        content = False
        for delta in deltas:
            self._sink.delta(delta, t_s)
            kind = delta.kind
            if kind.is_content:
                content = True
                self._chars += len(delta.text)
            elif kind.is_progress:
                watch.progress()
        if not content:
            return False
        watch.progress()
        self._count_chunk(now_ns, t_s)
        return self._enough()

    def _count_chunk(self, now_ns: int, t_s: float) -> None:
        result = self._result
        result.chunks += 1
        if self._last_ns is None:
            result.ttft_s = t_s
        else:
            result.gaps.add((now_ns - self._last_ns) / 1e9)
        self._last_ns = now_ns

    def _enough(self) -> bool:
        wanted = self._job.stop_after
        if wanted is None:
            return False
        self._stopped = (wanted.chunks is not None and self._result.chunks >= wanted.chunks) or (
            wanted.chars is not None and self._chars >= wanted.chars
        )
        return self._stopped

    # ── Ending ───────────────────────────────────────────────────────────────────────────────────────────────────

    def conclude(self, fault: Fault | None) -> Attempted:
        """The one place that says how an attempt ended."""
        ended_ns = self._ended_ns or time.monotonic_ns()
        self._result.duration_s = (ended_ns - self._sent_ns) / 1e9
        self._result.outcome = self._outcome(fault)
        return self._result

    def _outcome(self, fault: Fault | None) -> Outcome:
        if self._whole is not None:
            return Completed(self._whole.body, self._whole.finish, self._whole.usage)
        answer = self._answer
        if answer is None:
            return Failed(fault or Fault(FaultKind.TRUNCATED, "the body ended early"))
        if self._stopped:
            return Completed(_mark_stopped(self._job.api, answer.body()), "stop_after", answer.usage)
        if answer.complete and _survives(fault):
            return Completed(answer.body(), answer.finish or "stop", answer.usage)
        if fault is None:
            fault = Fault(FaultKind.TRUNCATED, "the stream ended without a terminal event")
        return Failed(fault, self._partial(answer, fault), answer.usage)

    def _partial(self, answer: Accumulator, fault: Fault) -> dict[str, Any] | None:
        """What had arrived, as plain values, since it will be looked through for secrets."""
        if not self._result.chunks:
            return None
        if fault.kind is FaultKind.TOO_LARGE:
            answer.shorten(MAX_PARTIAL_BYTES)
            return abridged(answer.body(), MAX_PARTIAL_BYTES)
        return plain(answer.body())


def _bound(place: Place, held: int) -> None:
    """Notes what an attempt holds in memory."""
    refusal = place.refusal(held)
    if refusal is not None:
        raise _FaultError(Fault(FaultKind.TOO_LARGE, refusal))


def _survives(fault: Fault | None) -> bool:
    """Whether a complete answer stands although this came after it: the connection's end proves nothing, an error does.

    A finish reason without [DONE], followed by a reset or by silence, is a whole answer that lacks its usage.
    """
    return fault is None or fault.row.whose == "network" or fault.kind in _SILENCES


_SILENCES = frozenset({FaultKind.IDLE_TIMEOUT, FaultKind.TOTAL_TIMEOUT, FaultKind.FIRST_TOKEN_TIMEOUT})


def _mark_stopped(api: Api, body: dict[str, Any]) -> dict[str, Any]:
    """Says in the body itself that we closed the stream: no reader may take it for the model's own end."""
    if api is Api.RESPONSES:
        return body | {"status": "incomplete", "incomplete_details": {"reason": "stop_after"}}
    for choice in body.get("choices", ()):
        if choice.get("finish_reason") is None:
            choice["finish_reason"] = "stop_after"
    return body


def _fault_in_stream(error: MalformedChunk | StreamError) -> Fault:
    if isinstance(error, StreamError):
        return faults.from_in_stream(error.error)
    return Fault(FaultKind.MALFORMED, str(error))


def _is_json(response: httpx2.Response) -> bool:
    return _media_type(response) == "application/json"


def _media_type(response: httpx2.Response) -> str:
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()


def _require(response: httpx2.Response, media_type: str) -> None:
    """The guard: what isn't announced as what was asked for isn't read."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        # Identity was asked for. 292 KB of gzip can be 1.2 GB of text.
        raise _FaultError(Fault(FaultKind.WRONG_CONTENT, f"the server compressed its answer ({encoding[:40]})"))
    found = _media_type(response)
    if found != media_type:
        message = f"expected {media_type}, the server sent {found[:80] or 'no content type'}"
        raise _FaultError(Fault(FaultKind.WRONG_CONTENT, message, status=response.status_code))


async def _drain(body: ResponseBody) -> None:
    """Reads the end of the body, which mostly came with the last event, so that the connection is kept.

    What comes late, or is wrong with it, no longer matters: the answer is in. The connection is then closed instead.
    """
    with anyio.move_on_after(DRAIN_TIMEOUT_S):
        try:
            while not body.at_end and await body.read():
                pass
        except httpx2.TransportError:
            return
