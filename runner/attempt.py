"""One try of one job: open, read, deadlines, close.

Bytes come from the client's `Body`, go through a `Stream` (or are one whole body), and leave as Deltas (to the sink)
and one `Attempted` at the end. How it ends is decided in one place, `conclude`, and success is a positive fact: the
accumulator has seen what it needs, whatever the connection did afterwards.

A stamp is taken once a read, where the read returns and before anything is parsed; a transport that stamps what
arrives at the socket itself (`arrived_ns`) has the better one.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, NamedTuple

from runner import accumulate
from runner.accumulate import Accumulator, MalformedChunk, StreamError
from runner.accumulate.abridged import abridged
from runner.accumulate.allowance import Allowance, Room, allowance_of
from runner.accumulate.held import plain
from runner.announced import EVENT_STREAM, JSON, announced
from runner.attempted import Attempted as Attempted
from runner.background import unfinished
from runner.client import Poster
from runner.deadlines import Deadlines, Watch
from runner.faults import Fault, FaultKind
from runner.foreign import FOREIGN, fault_of, let_go
from runner.jobs import Api, Job
from runner.limits import (
    DRAIN_TIMEOUT_S,
    MAX_BODY_BYTES,
    MAX_PARTIAL_BYTES,
    MAX_SSE_LINE_BYTES,
    MIN_ROOM_BYTES,
    READING_ROOM_BYTES,
)
from runner.outcome import Completed, Failed, Outcome
from runner.streaming import FaultFound, Sink, Stream, bound, bound_values, fault_in_stream
from runner.transport import ResponseBody

Opening = Callable[[], Awaitable[ResponseBody]]


class Continuation(NamedTuple):
    """A response that is there already: what is sent in the place of a POST, and what has come of it so far."""

    open: Opening
    """Sends the request; raises as `Poster.post`."""
    answer: Accumulator | None
    """Takes the events that come; None: the answer comes in one piece."""
    chunks: int = 0
    """Chunks with content that have come."""
    chars: int = 0
    """Of visible text."""


_NOT_ENDED: Final = Failed(Fault(FaultKind.INTERNAL, "the attempt has not ended"))

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
    on_headers: Callable[[ResponseBody], None],
    continuation: Continuation | None = None,
) -> Attempted:
    """Makes one request and reads its answer to the end.

    `content` is the encoded body; `choices` how many choices the answer owes; `on_headers` is told of a good status
    as soon as it is in. With a `continuation` its request is sent instead, and its answer goes on. Never raises for
    what the server, the network or a deadline did: that is in the outcome. Cancellation passes through, and closes the
    connection.
    """
    if continuation is None:
        answer = accumulate.for_stream(job.api, choices=choices) if job.stream else None
        continuation = Continuation(partial(client.post, job.api, content, stream=job.stream), answer)
    watch = Watch(deadlines, streaming=continuation.answer is not None)
    fault: Fault | None = None
    with watch:
        reader = _Reader(job, continuation, sink, watch, allowance_of(job, choices))
        try:
            await reader.exchange(continuation.open, on_headers)
        except FaultFound as found:
            fault = found.fault
        except FOREIGN as error:
            fault = fault_of(error)
            let_go(error)
        finally:
            reader.close()
    if watch.fired is not None:
        fault = Fault(watch.fired, f"{watch.fired.value.replace('_', ' ')} after {reader.elapsed_s():.1f} s")
    return reader.conclude(fault)


class _Reader:
    """The state of one attempt while it is read."""

    def __init__(self, job: Job, begun: Continuation, sink: Sink, watch: Watch, allowance: Allowance) -> None:
        self._job = job
        self._watch = watch
        self._answers = _ANSWERS.open(allowance.bound, allowance.share)
        # What is read may be a whole answer, or what is put into one by other means.
        self._reading = _READING.open(max(allowance.bound, MAX_SSE_LINE_BYTES), allowance.share)
        self._sink = sink
        self._answer = begun.answer
        self._whole: accumulate.Answer | None = None
        self._stream: Stream | None = None
        self._chars = begun.chars
        self._ended_ns: int | None = None
        self._result = Attempted(_NOT_ENDED, chunks=begun.chunks, sent_ns=time.monotonic_ns(), answer=begun.answer)

    def close(self) -> None:
        """Forgets what was being read, and leaves its room to others."""
        if self._stream is not None:
            self._stream.close()
        self._answers.close()
        self._reading.close()

    def elapsed_s(self) -> float:
        return (time.monotonic_ns() - self._result.sent_ns) / 1e9

    # ── Opening ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def exchange(self, send: Opening, on_headers: Callable[[ResponseBody], None]) -> None:
        """From sending to the last byte that matters; the connection is given back or closed in every case."""
        body = await send()
        try:
            self._result.sent_ns = body.sent_ns
            self._result.headers_ns = body.headers_ns
            self._result.status = body.status
            head = announced(body.headers)
            self._result.request_id = head.request_id
            on_headers(body)
            # A server that answers a stream with one JSON body still answered; an error in it is found below.
            answer = self._answer if head.media_type != JSON else None
            refusal = head.refusal(JSON if answer is None else EVENT_STREAM, body.status)
            if refusal is not None:
                raise FaultFound(refusal)
            await (self._read_whole(body) if answer is None else self._read_stream(body, answer))
        finally:
            await body.aclose()

    async def _read_whole(self, body: ResponseBody) -> None:
        blocks: list[bytes] = []
        size = 0
        while block := await body.read():
            size += len(block)
            if size > MAX_BODY_BYTES:
                raise FaultFound(Fault(FaultKind.TOO_LARGE, f"the answer is larger than {MAX_BODY_BYTES} bytes"))
            bound(self._reading, size)
            blocks.append(block)
        self._watch.progress()
        whole = b"".join(blocks)
        bound_values(whole, self._answers)
        self._result.pending = unfinished(self._job, whole)
        if self._result.pending is not None:
            return
        try:
            self._whole = accumulate.parse_body(self._job.api, whole)
        except (MalformedChunk, StreamError) as error:
            raise FaultFound(fault_in_stream(error)) from error

    async def _read_stream(self, body: ResponseBody, answer: Accumulator) -> None:
        stream = self._stream = Stream(
            body,
            answer,
            self._result,
            self._sink,
            self._watch,
            answers=self._answers,
            reading=self._reading,
            stop_after=self._job.stop_after,
            chars=self._chars,
        )
        self._watch.catch_up = body.catch_up
        more = True
        while more and not stream.over:
            more = await body.pour(stream.take)
            while stream.behind:
                with self._watch.suspended():
                    await self._sink.room()
                stream.go_on()
        self._ended_ns = time.monotonic_ns()
        if not stream.stopped:
            await body.drain(DRAIN_TIMEOUT_S)

    # ── Ending ───────────────────────────────────────────────────────────────────────────────────────────────────

    def conclude(self, fault: Fault | None) -> Attempted:
        """The one place that says how an attempt ended."""
        result = self._result
        result.ended_ns = self._ended_ns or time.monotonic_ns()
        result.duration_s = (result.ended_ns - result.sent_ns) / 1e9
        result.outcome = self._outcome(fault)
        return result

    def _outcome(self, fault: Fault | None) -> Outcome:
        if self._whole is not None:
            return Completed(self._whole.body, self._whole.finish, self._whole.usage)
        answer = self._answer
        if answer is None:
            return Failed(fault or Fault(FaultKind.TRUNCATED, "the body ended early"))
        if self._stream is not None and self._stream.stopped:
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
