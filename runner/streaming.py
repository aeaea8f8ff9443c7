"""Blocks of one streamed answer → events → deltas.

An event goes through the accumulator and leaves as Deltas, each to the sink at once. But nearly every event brings text
and nothing else: such texts are read by what they have in common with the one before (`Template`), and those that are
taken together are handed on together. While a stream is steady, its body lets them gather (`gathers`), each with the
time at which it came: to touch all that an answer consists of, for one token, costs most of what reading it costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from runner import faults, sse
from runner.accumulate import Accumulator, MalformedChunk, StreamError
from runner.accumulate.allowance import Place, has_too_many_values
from runner.attempted import Attempted
from runner.deadlines import Watch
from runner.deltas import Arrived, Delta
from runner.faults import Fault, FaultKind
from runner.jobs import StopAfter
from runner.limits import GATHER_S, LARGE_EVENT_BYTES, MAX_STREAM_BYTES, SLICE_BYTES
from runner.transport import ResponseBody

_STEADY_NS: Final = int(GATHER_S * 1e9 / 2)
"""Of a stream whose blocks are further apart, none would meet another."""
_new = tuple.__new__  # a NamedTuple's own constructor is a Python function


class Sink(Protocol):
    """Where deltas go as they arrive."""

    def delta(self, delta: Delta, t_s: float) -> None:
        """Takes one delta; `t_s` is seconds since the attempt was sent. Must not block."""

    def texts(self, arrived: Sequence[Arrived]) -> None:
        """Takes deltas that are text alone, in their order. Must not block."""

    @property
    def is_live(self) -> bool:
        """Whether somebody looks on: texts are handed over as they come."""

    @property
    def has_room(self) -> bool:
        """Whether more may be read at once."""

    async def room(self) -> None:
        """Returns when more may be read: the disk has caught up."""


class FaultFound(Exception):
    """Raised inside an attempt when what came back can't become an answer."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault


class Stream:
    """One streamed answer while it is read."""

    __slots__ = (
        "_answer",
        "_answers",
        "_body",
        "_chars",
        "_decoder",
        "_gap_ns",
        "_gathered",
        "_held",
        "_is_live",
        "_now_ns",
        "_reading",
        "_result",
        "_sink",
        "_size",
        "_stop_after",
        "_untaken",
        "_watch",
        "behind",
        "over",
        "stopped",
    )

    def __init__(
        self,
        body: ResponseBody,
        answer: Accumulator,
        result: Attempted,
        sink: Sink,
        watch: Watch,
        *,
        answers: Place,
        reading: Place,
        stop_after: StopAfter | None,
        chars: int,
    ) -> None:
        self._body = body
        self._answer = answer
        self._result = result
        self._sink = sink
        self._watch = watch
        self._answers = answers
        self._reading = reading
        self._stop_after = stop_after
        self._chars = chars
        self._is_live = sink.is_live or stop_after is not None
        self._decoder = sse.Decoder(reading.allowance.bound)
        self._gathered: list[Arrived] = []
        self._size = 0
        self._untaken: list[tuple[bytes, int]] = []  # the last first: what waits for the disk
        self._now_ns = 0  # when the last block arrived…
        self._gap_ns = 0  # …and how long after the one before
        self._held = (0, 0)
        """Bytes of the answer and of what is being read, as last bounded."""
        self.behind = False
        """The disk is: `go_on` when it has caught up."""
        self.over = False
        """Nothing more is wanted…"""
        self.stopped = False
        """…because the job said so."""

    def take(self, blocks: list[tuple[bytes, int]]) -> bool:
        """Takes what has arrived (see `Take`); True when nothing more is wanted, or the disk is behind.

        Raises:
            FaultFound: it can't become an answer.
        """
        if not self._size:
            self._result.first_chunk_ns = blocks[0][1]
        blocks.reverse()
        self._untaken = blocks
        return self.go_on()

    def go_on(self) -> bool:
        """Takes the rest of that, bit by bit where it is much; True as `take`."""
        self.behind = False
        while self._untaken and not self.behind:
            self.over = self._take_some()
            if self.over:
                return True
            if self._gathered:
                self._hand_over()
            self._bound()
        self._body.gathers = self._gap_ns < _STEADY_NS and not self._is_live and self._answer.repeated is not None
        return self.behind

    def _take_some(self) -> bool:
        """Takes up to SLICE_BYTES; True when nothing more is wanted."""
        untaken, left = self._untaken, SLICE_BYTES
        while untaken and left > 0:
            block, now_ns = untaken.pop()
            if len(block) > left:
                untaken.append((block[left:], now_ns))
                block = block[:left]
            left -= len(block)
            self._size += len(block)
            if self._size > MAX_STREAM_BYTES:
                raise FaultFound(Fault(FaultKind.TOO_LARGE, f"the stream is larger than {MAX_STREAM_BYTES} bytes"))
            self._gap_ns, self._now_ns = now_ns - self._now_ns, now_ns
            if self._take_events(block):
                return True
        return False

    def close(self) -> None:
        """Hands on what is gathered, and forgets what was being read, whose room is for others now."""
        if self._gathered:
            self._hand_over()
        self._decoder = sse.Decoder()
        self._untaken = []

    def _bound(self) -> None:
        """Looks what is held in memory, and whether the disk keeps up."""
        held = self._answer.held, self._decoder.held
        if held != self._held:  # seldom: a text is counted a batch at a time
            self._held = held
            bound(self._answers, held[0])
            bound(self._reading, held[1])
        self.behind = not self._sink.has_room

    def _take_events(self, block: bytes) -> bool:
        """Takes the events that a slice completes; True when nothing more is wanted."""
        template = self._answer.repeated
        if template is None or not self._decoder.is_idle or not block.endswith(b"\n\n"):
            return self._decode(block)
        after_ns = self._now_ns - self._result.sent_ns
        for event in block[:-2].split(b"\n\n"):
            found = None if template is None else template.text_of(event)
            if found is None:
                if self._decode(event + b"\n\n"):
                    return True
                template = self._answer.repeated
            else:
                self._gathered.append(_new(Arrived, (after_ns, *found)))
                if self._is_live and self._hand_over():
                    return True
        return False

    def _decode(self, block: bytes) -> bool:
        """Takes any bytes."""
        if self._gathered and self._hand_over():
            return True
        try:
            for name, data in self._decoder.feed(block):
                if self._take_event(name, data):
                    return True
        except sse.LineTooLong as error:
            raise FaultFound(Fault(FaultKind.TOO_LARGE, str(error))) from error
        except (MalformedChunk, StreamError) as error:
            raise FaultFound(fault_in_stream(error)) from error
        return False

    def _take_event(self, name: str, data: bytes) -> bool:
        if len(data) > LARGE_EVENT_BYTES:
            bound_values(data, self._answers)
        deltas = self._answer.feed(name, data)
        return bool(deltas and self._take_deltas(deltas)) or self._answer.ended

    def _take_deltas(self, deltas: Sequence[Delta]) -> bool:
        """Hands on the deltas of one event; True when the job wants no more of them."""
        t_s = (self._now_ns - self._result.sent_ns) / 1e9
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
        result = self._result
        result.count(self._now_ns)
        if not result.first_text_ns and self._chars:
            result.first_text_ns = self._now_ns
        return self._is_enough()

    def _hand_over(self) -> bool:
        """Hands on the texts that were taken together; True when the job wants no more of them."""
        gathered, self._gathered = self._gathered, []
        texts = [text for _, _, text in gathered]
        self._answer.take_texts(texts)
        self._sink.texts(gathered)
        self._watch.progress()
        self._chars += sum(map(len, texts))
        self._result.count_all([after_ns for after_ns, _, _ in gathered])
        return self._is_enough()

    def _is_enough(self) -> bool:
        wanted = self._stop_after
        self.stopped = wanted is not None and (
            (wanted.chunks is not None and self._result.chunks >= wanted.chunks)
            or (wanted.chars is not None and self._chars >= wanted.chars)
        )
        return self.stopped


def bound(place: Place, held: int) -> None:
    """Notes what an attempt holds in memory.

    Raises:
        FaultFound: it is too much.
    """
    refusal = place.refusal(held)
    if refusal is not None:
        raise FaultFound(Fault(FaultKind.TOO_LARGE, refusal))


def bound_values(data: bytes, answers: Place) -> None:
    """Looks how many values a JSON text holds, before it is parsed.

    Raises:
        FaultFound: they are too many.
    """
    if has_too_many_values(data, answers.allowance):
        raise FaultFound(Fault(FaultKind.TOO_LARGE, f"{len(data):,} bytes of JSON hold too many values"))


def fault_in_stream(error: MalformedChunk | StreamError) -> Fault:
    """What went wrong with an answer, by what the accumulator says."""
    if isinstance(error, StreamError):
        return faults.from_in_stream(error.error)
    return Fault(FaultKind.MALFORMED, str(error))
