"""One try of one job: open, read, deadlines, close.

Bytes come from the client's `Body`, go through the SSE decoder and the accumulator, and leave as Deltas (to the sink)
and one `Attempted` at the end. How it ends is decided in one place, `_conclude`, and success is a positive fact: the
accumulator has seen what it needs, whatever the connection did afterwards.

A stamp is taken once a read, where the read returns and before anything is parsed; a transport that stamps what
arrives at the socket itself (`arrived_ns`) has the better one.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import httpx2

from runner import accumulate, faults, sse
from runner.accumulate import Accumulator, MalformedChunk, StreamError
from runner.accumulate.abridged import abridged
from runner.accumulate.allowance import Place, Room, allowance_of, has_too_many_values, reading_of
from runner.accumulate.held import plain
from runner.announced import EVENT_STREAM, JSON, announced
from runner.background import unfinished
from runner.client import Poster
from runner.deadlines import Deadlines, Watch
from runner.deltas import Delta
from runner.faults import Fault, FaultKind
from runner.foreign import FOREIGN, fault_of
from runner.jobs import Api, Job, StopAfter
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
    coalesced: int = 0
    """Of the chunks with content, how many were read in one wake-up with the one before."""
    # Monotonic, in nanoseconds; 0 did not happen.
    sent_ns: int = 0
    headers_ns: int = 0
    first_chunk_ns: int = 0
    """The first of the body, whatever it held."""
    first_content_ns: int = 0
    first_text_ns: int = 0
    """The first that a reader would see: no reasoning, no tool call."""
    last_content_ns: int = 0
    ended_ns: int = 0
    answer: Accumulator | None = None
    """What the events of a stream have made."""
    pending: dict[str, Any] | None = None
    """What the answer showed of a background response that isn't finished; the outcome then means nothing."""


Opening = Callable[[], Awaitable[tuple[httpx2.Response, ResponseBody]]]


@dataclass(frozen=True, slots=True)
class Continuation:
    """A response that is there already: what is sent in the place of a POST, and what has come of it so far."""

    open: Opening
    """Sends the request; raises as `Poster.post`."""
    answer: Accumulator | None
    """Takes the events that come; None: the answer comes in one piece."""
    chunks: int = 0
    """Chunks with content that have come."""
    chars: int = 0
    """Of visible text."""


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
    continuation: Continuation | None = None,
) -> Attempted:
    """Makes one request and reads its answer to the end.

    `content` is the encoded body; `choices` how many choices the answer owes; `on_headers` is told of a good status
    as soon as it is in. With a `continuation` its request is sent instead, and its answer goes on. Never raises for
    what the server, the network or a deadline did: that is in the outcome. Cancellation passes through, and closes the
    connection.
    """
    allowance = allowance_of(job, choices)
    if continuation is None:
        answer = accumulate.for_stream(job.api, choices=choices) if job.stream else None
        continuation = Continuation(partial(client.post, job.api, content, stream=job.stream), answer)
    watch = Watch(deadlines, streaming=continuation.answer is not None)
    fault: Fault | None = None
    with watch, _ANSWERS.open(allowance) as answers, _READING.open(reading_of(allowance)) as reading:
        reader = _Reader(job, continuation, sink, watch, answers, reading)
        try:
            await reader.exchange(continuation.open, on_headers)
        except _FaultError as found:
            fault = found.fault
        except FOREIGN as error:
            fault = fault_of(error)
        finally:
            reader.let_go()
    if watch.fired is not None:
        fault = Fault(watch.fired, f"{watch.fired.value.replace('_', ' ')} after {reader.elapsed_s():.1f} s")
    return reader.conclude(fault)


class _FaultError(Exception):
    """Raised inside an attempt when what came back can't become an answer."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault


class _Reader:
    """The state of one attempt while it is read."""

    def __init__(self, job: Job, begun: Continuation, sink: Sink, watch: Watch, answers: Place, reading: Place) -> None:
        self._job = job
        self._watch = watch
        self._answers = answers
        self._reading = reading
        self._sink = sink
        self._answer = begun.answer
        self._whole: accumulate.Answer | None = None
        self._decoder = sse.Decoder(reading.allowance.bound)
        self._size = 0
        self._untaken = b""  # of the last block: what waits for the disk
        self._now_ns = 0  # when that block arrived
        self._behind = False  # the disk is
        self._held = (0, 0)
        """Bytes of the answer and of what is being read, as last bounded."""
        self._over = self._stopped = False  # nothing more is wanted; …because the job said so
        self._chars = begun.chars
        self._sent_ns = time.monotonic_ns()
        self._last_ns: int | None = None
        self._ended_ns: int | None = None
        not_ended = Failed(Fault(FaultKind.INTERNAL, "the attempt has not ended"))
        self._result = Attempted(not_ended, chunks=begun.chunks, answer=begun.answer)

    def let_go(self) -> None:
        """Forgets what was being read, whose room is for others now."""
        self._decoder = sse.Decoder()
        self._untaken = b""

    def elapsed_s(self) -> float:
        return (time.monotonic_ns() - self._sent_ns) / 1e9

    # ── Opening ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def exchange(self, send: Opening, on_headers: Callable[[httpx2.Response], None]) -> None:
        """From sending to the last byte that matters; the connection is given back or closed in every case."""
        response, body = await send()
        try:
            self._sent_ns = body.sent_ns
            self._result.headers_ns = body.headers_ns
            self._result.status = response.status_code
            head = announced(response.headers.raw)
            self._result.request_id = head.request_id
            on_headers(response)
            # A server that answers a stream with one JSON body still answered; an error in it is found below.
            streams = self._answer is not None and head.media_type != JSON
            refusal = head.refusal(EVENT_STREAM if streams else JSON, response.status_code)
            if refusal is not None:
                raise _FaultError(refusal)
            await (self._read_stream(body) if streams else self._read_whole(body))
        finally:
            await body.aclose()

    async def _read_whole(self, body: ResponseBody) -> None:
        blocks: list[bytes] = []
        size = 0
        while block := await body.read():
            size += len(block)
            if size > MAX_BODY_BYTES:
                raise _FaultError(Fault(FaultKind.TOO_LARGE, f"the answer is larger than {MAX_BODY_BYTES} bytes"))
            _bound(self._reading, size)
            blocks.append(block)
        self._watch.progress()
        whole = b"".join(blocks)
        self._bound_values(whole)
        self._result.pending = unfinished(self._job, whole)
        if self._result.pending is not None:
            return
        try:
            self._whole = accumulate.parse_body(self._job.api, whole)
        except (MalformedChunk, StreamError) as error:
            raise _FaultError(_fault_in_stream(error)) from error

    # ── Streaming ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _read_stream(self, body: ResponseBody) -> None:
        more = True
        while more and not self._over:
            more = await body.pour(self._take)
            while self._behind:
                with self._watch.suspended():
                    await self._sink.room()
                self._take_slices()
        self._ended_ns = time.monotonic_ns()
        if not self._stopped:
            await body.drain(DRAIN_TIMEOUT_S)

    def _take(self, block: bytes, now_ns: int) -> bool:
        """Takes what one read brought; True when nothing more is wanted, or the disk is behind."""
        if not self._size:
            self._result.first_chunk_ns = now_ns
        self._size += len(block)
        if self._size > MAX_STREAM_BYTES:
            raise _FaultError(Fault(FaultKind.TOO_LARGE, f"the stream is larger than {MAX_STREAM_BYTES} bytes"))
        self._now_ns = now_ns
        if len(block) <= SLICE_BYTES:
            return self._take_slice(block)
        self._untaken = block
        return self._take_slices()

    def _take_slices(self) -> bool:
        """Bit by bit where it is much."""
        self._behind = False
        while block := self._untaken[:SLICE_BYTES]:
            self._untaken = self._untaken[SLICE_BYTES:]
            if self._take_slice(block):
                return True
        return False

    def _take_slice(self, block: bytes) -> bool:
        """True when nothing more is wanted, or the disk is behind."""
        answer = self._answer
        assert answer is not None
        self._over = self._take_events(answer, block)
        if self._over:
            return True
        held = answer.held, self._decoder.held
        if held != self._held:  # seldom: a text is counted a batch at a time
            self._held = held
            _bound(self._answers, held[0])
            _bound(self._reading, held[1])
        self._behind = not self._sink.has_room
        return self._behind

    def _take_events(self, answer: Accumulator, block: bytes) -> bool:
        """Takes the events that a slice completes; True when nothing more is wanted."""
        try:
            for name, data in self._decoder.feed(block):
                if len(data) > LARGE_EVENT_BYTES:
                    self._bound_values(data)
                deltas = answer.feed(name, data)
                if (deltas and self._take_deltas(deltas)) or answer.ended:
                    return True
        except sse.LineTooLong as error:
            raise _FaultError(Fault(FaultKind.TOO_LARGE, str(error))) from error
        except (MalformedChunk, StreamError) as error:
            raise _FaultError(_fault_in_stream(error)) from error
        return False

    def _bound_values(self, data: bytes) -> None:
        if has_too_many_values(data, self._answers.allowance):
            raise _FaultError(Fault(FaultKind.TOO_LARGE, f"{len(data):,} bytes of JSON hold too many values"))

    def _take_deltas(self, deltas: Sequence[Delta]) -> bool:
        """Hands on the deltas of one chunk; True when the job wants no more of them."""
        t_s = (self._now_ns - self._sent_ns) / 1e9
        content = progress = False
        for delta in deltas:
            self._sink.delta(delta, t_s)
            kind, _, text = delta
            if kind.is_content:
                content = progress = True
                self._chars += len(text)
            elif kind.is_progress:
                progress = True
        if progress:
            self._watch.progress()
        if not content:
            return False
        self._count_chunk(self._now_ns, t_s)
        return self._job.stop_after is not None and self._enough(self._job.stop_after)

    def _count_chunk(self, now_ns: int, t_s: float) -> None:
        result = self._result
        result.chunks += 1
        if self._last_ns is None:
            result.ttft_s = t_s
            result.first_content_ns = now_ns
        else:
            gap_ns = now_ns - self._last_ns
            result.coalesced += gap_ns == 0
            result.gaps.add(gap_ns / 1e9)
        if not result.first_text_ns and self._chars:
            result.first_text_ns = now_ns
        self._last_ns = now_ns

    def _enough(self, wanted: StopAfter) -> bool:
        self._stopped = (wanted.chunks is not None and self._result.chunks >= wanted.chunks) or (
            wanted.chars is not None and self._chars >= wanted.chars
        )
        return self._stopped

    # ── Ending ───────────────────────────────────────────────────────────────────────────────────────────────────

    def conclude(self, fault: Fault | None) -> Attempted:
        """The one place that says how an attempt ended."""
        result = self._result
        result.sent_ns, result.last_content_ns = self._sent_ns, self._last_ns or 0
        result.ended_ns = self._ended_ns or time.monotonic_ns()
        result.duration_s = (result.ended_ns - self._sent_ns) / 1e9
        result.outcome = self._outcome(fault)
        return result

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
