"""Blocks of one streamed answer → events → deltas.

An event goes through the accumulator and leaves as Deltas, each to the sink at once. But nearly every event brings text
and nothing else: a run of such events is read in one go, by what each has in common with the one before (`Template`),
and its texts are handed on together. While a stream is steady, its body lets them gather (`gathers`), each with the
time at which it came: to touch all that an answer consists of, for one token, costs most of what reading it costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from operator import sub
from typing import Final, Protocol

from runner import faults, sse
from runner.accumulate import Accumulator, MalformedChunk, StreamError
from runner.accumulate.allowance import Place, has_too_many_values
from runner.attempted import Attempted
from runner.deadlines import Watch
from runner.deltas import Delta, Texts
from runner.faults import Fault, FaultKind
from runner.jobs import StopAfter
from runner.limits import KIB, LARGE_EVENT_BYTES, MAX_STREAM_BYTES, SLICE_BYTES
from runner.transport import ResponseBody

_STEADY: Final = 0.6
"""Of a stream whose blocks are further apart than this part of what they gather for, few would meet another."""
_SMALL_BYTES: Final = 2 * KIB
"""A block of a few events is as soon decoded as looked through for what they have in common."""
_SHORTEST: Final = len(b'data: {"choices":[{"text":"x"}]}\n\n')
"""Of an event that brings text. What is shorter on the average is mostly blank lines and keep-alives."""
_LARGEST_FRAME: Final = 256
"""Bytes round an event's data that are looked for in the next ones, too: a name, a keep-alive."""
_new = tuple.__new__  # a NamedTuple's own constructor is a Python function

Run = tuple[list[bytes], list[int]]
"""Pieces of a body, and when each arrived (monotonic, in nanoseconds)."""


class Sink(Protocol):
    """Where deltas go as they arrive."""

    def delta(self, delta: Delta, t_s: float) -> None:
        """Takes one delta; `t_s` is seconds since the attempt was sent. Must not block."""

    def texts(self, texts: Texts) -> None:
        """Takes deltas that are text alone, at least one. Must not block."""

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
        "_frame",
        "_gap_ns",
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
        self._decoder = sse.Decoder(reading.bound)
        self._frame = sse.FRAME
        self._size = 0
        self._untaken: Run = [], []  # what waits for the disk
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

    def take(self, blocks: list[bytes], arrived_ns: list[int]) -> bool:
        """Takes what has arrived (see `Take`); True when nothing more is wanted, or the disk is behind.

        Raises:
            FaultFound: it can't become an answer.
        """
        if not self._size:
            self._result.first_chunk_ns = arrived_ns[0]
        before_ns = arrived_ns[-2] if len(blocks) > 1 else self._now_ns
        self._now_ns = arrived_ns[-1]
        self._gap_ns = self._now_ns - before_ns
        self._untaken = blocks, arrived_ns
        return self.go_on()

    def go_on(self) -> bool:
        """Takes the rest of that, slice by slice where it is much; True as `take`."""
        self.behind = False
        while self._untaken[0] and not self.behind:
            self.over = self._take_slice(*self._next_slice())
            if self.over:
                return True
            self._bound()
        self._body.gathers = (
            self._answer.repeated is not None
            and not self._is_live
            and self._gap_ns < _STEADY * 1e9 * self._body.gather_s  # so it is steady
        )
        return self.behind

    def _next_slice(self) -> Run:
        """Up to SLICE_BYTES of what is to be taken."""
        untaken, self._untaken = self._untaken, ([], [])
        size = sum(map(len, untaken[0]))
        if size > SLICE_BYTES:
            untaken, self._untaken = _cut(*untaken, SLICE_BYTES)
            size = SLICE_BYTES
        self._size += size
        if self._size > MAX_STREAM_BYTES:
            raise FaultFound(Fault(FaultKind.TOO_LARGE, f"the stream is larger than {MAX_STREAM_BYTES} bytes"))
        return untaken

    def close(self) -> None:
        """Forgets what was being read, whose room is for others now: nothing more is taken."""
        del self._decoder, self._untaken

    def _bound(self) -> None:
        """Looks what is held in memory, and whether the disk keeps up."""
        held = self._answer.held, self._decoder.held
        if held != self._held:  # seldom: a text is counted a batch at a time
            self._held = held
            bound(self._answers, held[0])
            bound(self._reading, held[1])
        self.behind = not self._sink.has_room

    def _take_slice(self, blocks: list[bytes], arrived_ns: list[int]) -> bool:
        """Takes what a slice completes; True when nothing more is wanted.

        Blocks of several events are taken apart. A run in which one event isn't like the others is halved until that
        event is alone.
        """
        todo = [(blocks, arrived_ns)]
        while todo:
            run, times = todo.pop()
            texts = self._alike(run, times)
            if texts is not None:
                if self._hand_over(texts):
                    return True
            elif (run is blocks or len(run) == 1) and len((events := self._events_of(run, times))[0]) > len(run):
                todo.append(events)
            elif len(run) > 1:
                middle = len(run) // 2
                todo += (run[middle:], times[middle:]), (run[:middle], times[:middle])
            elif self._decode(run[0], times[0]):
                return True
        return False

    def _alike(self, run: list[bytes], arrived_ns: list[int]) -> Texts | None:
        """What a run of blocks says, if each is an event that brings text alone; None: they aren't."""
        template = self._answer.repeated
        if template is None or not self._decoder.is_idle or (self._is_live and len(run) > 1):
            return None
        found = template.texts_of(run, self._frame)
        if found is None:
            return None
        after_ns = list(map(sub, arrived_ns, repeat(self._result.sent_ns)))
        return _new(Texts, (after_ns, *found, template.before, template.behind))

    def _events_of(self, run: list[bytes], arrived_ns: list[int]) -> Run:
        """A block for each event of these blocks; none where that isn't worth while, or an event came in two blocks."""
        answer = self._answer
        if not answer.may_repeat or not self._decoder.is_idle:
            return [], []
        size = sum(map(len, run))
        if answer.repeated is None and size <= _SMALL_BYTES * len(run):
            return [], []
        _, end = self._frame
        if not all(block.endswith(end) for block in run):
            return [], []
        if size < _SHORTEST * sum([block.count(end) for block in run]):
            return [], []
        blocks = [block.removesuffix(end).split(end) for block in run]
        times = [now_ns for now_ns, events in zip(arrived_ns, blocks, strict=True) for _ in events]
        return [event + end for events in blocks for event in events], times

    def _decode(self, block: bytes, now_ns: int) -> bool:
        """Takes any bytes."""
        answer, was_idle = self._answer, self._decoder.is_idle
        try:
            events = self._decoder.feed(block)
            for name, data in events:
                if len(data) > LARGE_EVENT_BYTES:
                    bound_values(data, self._answers)
                deltas = answer.feed(name, data)
                if (deltas and self._take_deltas(deltas, now_ns)) or answer.ended:
                    return True
            if answer.repeated is not None and len(events) == 1 and was_idle and self._decoder.is_idle:
                self._frame = _frame_of(block, events[0][1])
        except sse.LineTooLong as error:
            raise FaultFound(Fault(FaultKind.TOO_LARGE, str(error))) from error
        except (MalformedChunk, StreamError) as error:
            raise FaultFound(fault_in_stream(error)) from error
        return False

    def _take_deltas(self, deltas: Sequence[Delta], now_ns: int) -> bool:
        """Hands on the deltas of one event; True when the job wants no more of them."""
        t_s = (now_ns - self._result.sent_ns) / 1e9
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
        result.count(now_ns)
        if not result.first_text_ns and self._chars:
            result.first_text_ns = now_ns
        return self._is_enough()

    def _hand_over(self, texts: Texts) -> bool:
        """Hands on texts that were taken together; True when the job wants no more of them."""
        joined = "".join(texts.texts)
        self._answer.take_text(joined)
        self._sink.texts(texts)
        self._watch.progress()
        self._chars += len(joined)
        self._result.count_all(texts.after_ns)
        return self._is_enough()

    def _is_enough(self) -> bool:
        wanted = self._stop_after
        self.stopped = wanted is not None and (
            (wanted.chunks is not None and self._result.chunks >= wanted.chunks)
            or (wanted.chars is not None and self._chars >= wanted.chars)
        )
        return self.stopped


def _frame_of(event: bytes, data: bytes) -> sse.Frame:
    """What stands round the data of one event; the usual frame where that can't be told."""
    if len(event) - len(data) > _LARGEST_FRAME or event.count(data) != 1:
        return sse.FRAME
    before, _, behind = event.partition(data)
    return before, behind


def _cut(blocks: list[bytes], arrived_ns: list[int], size: int) -> tuple[Run, Run]:
    """The first `size` bytes of what is more, and the rest."""
    for at, block in enumerate(blocks):
        if len(block) > size:
            first, rest = [*blocks[:at], block[:size]], [block[size:], *blocks[at + 1 :]]
            return (first, arrived_ns[: at + 1]), (rest, arrived_ns[at:])
        size -= len(block)
    return (blocks, arrived_ns), ([], [])


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
    if has_too_many_values(data, answers.bound):
        raise FaultFound(Fault(FaultKind.TOO_LARGE, f"{len(data):,} bytes of JSON hold too many values"))


def fault_in_stream(error: MalformedChunk | StreamError) -> Fault:
    """What went wrong with an answer, by what the accumulator says."""
    if isinstance(error, StreamError):
        return faults.from_in_stream(error.error)
    return Fault(FaultKind.MALFORMED, str(error))
