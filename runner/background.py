"""What is known of a background response: enough to ask for the rest of it. Pure.

A response with `"background": true` is generated whether or not anybody reads it, and every event of its stream has a
number: `GET /responses/{id}?stream=true&starting_after=N` goes on behind the event N. So a job whose connection broke
asks for the rest, and no token is paid twice. What a failed request means for the response (`verdict_on`):

| it ended with | the next request |
| --- | --- |
| no connection, a broken or cut one, a deadline; a GET refused with 429 or 5xx | goes on behind the last event |
| the same, where numbers don't rise or events are missing | gets all events again; what came of them is void |
| garbage in place of an event | the same, once; then it is posted again |
| a streamed GET refused for good (400: it is five minutes old), or one that brought nothing | asks for its state |
| an error of the response itself; a GET refused for good (404: it has expired) | is a new POST |

Source: https://platform.openai.com/docs/guides/background
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import orjson

from runner import accumulate
from runner.accumulate import Accumulator, MalformedChunk, StreamError
from runner.deltas import Delta
from runner.faults import Fault, FaultKind
from runner.jobs import Api, Job
from runner.sketch import Sketch

_UNFINISHED: Final = ("queued", "in_progress")
_SHOWN: Final = ("id", "status", "background")
_OF_THE_WAY: Final = frozenset(
    {
        *(FaultKind.CONNECT, FaultKind.BROKEN, FaultKind.TRUNCATED, FaultKind.WRONG_CONTENT, FaultKind.FD_LIMIT),
        *(FaultKind.FIRST_TOKEN_TIMEOUT, FaultKind.IDLE_TIMEOUT, FaultKind.TOTAL_TIMEOUT),
    }
)
"""Faults that say nothing of the response."""
MAX_ID_CHARS: Final = 512
"""A longer id is none: it becomes a part of a URL. The API's are 55 characters, some gateways' 300."""


def is_background(job: Job) -> bool:
    """Whether a job's answer is generated without its connection."""
    return job.body.get("background") is True and job.api is Api.RESPONSES


def id_of(response: Any) -> str | None:
    """The id of a response, or None where there is none that can be asked for."""
    name = response.get("id") if isinstance(response, dict) else None
    # "." and ".." would be another path.
    return name if isinstance(name, str) and name.strip(".") and len(name) <= MAX_ID_CHARS else None


def unfinished(job: Job, body: bytes) -> dict[str, Any] | None:
    """What a whole body shows of a background response that isn't finished; None for every other body."""
    if not is_background(job):
        return None
    try:
        response = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if id_of(response) is None or response.get("status") not in _UNFINISHED or response.get("error") is not None:
        return None
    return {key: response[key] for key in _SHOWN if key in response}


class Verdict(enum.Enum):
    """What becomes of the response that a request failed to get."""

    KEEP = "keep"
    """It goes on at the server, and so do we."""
    AFRESH = "afresh"
    """It does, but what we have of it isn't to be trusted."""
    UNSTREAMED = "unstreamed"
    """The server has it, and doesn't stream it (any more)."""
    GONE = "gone"
    """The server doesn't have it any more."""
    FAILED = "failed"


def verdict_on(fault: Fault, known: Known, *, asked_for: bool, stuck: bool = False) -> Verdict:
    """What a fault says of the response. `asked_for`: by a GET; `stuck`: which brought nothing new."""
    if asked_for and not known.in_one_piece and _says_no_stream(fault, stuck=stuck):
        return Verdict.UNSTREAMED
    if fault.kind in _OF_THE_WAY or (fault.status is not None and fault.retry):
        return Verdict.KEEP
    if fault.kind is FaultKind.MALFORMED:
        return Verdict.FAILED if known.garbled else Verdict.AFRESH
    return Verdict.GONE if asked_for and fault.kind is FaultKind.BAD_REQUEST else Verdict.FAILED


def _says_no_stream(fault: Fault, *, stuck: bool) -> bool:
    """A refusal (the API's is a 400: a stream can be had for five minutes), or a stream that ends as soon as it begins.

    Source: https://github.com/openai/openai-python/issues/2828
    """
    refused = fault.kind is FaultKind.BAD_REQUEST and fault.status not in (None, 404)
    return refused or (stuck and fault.kind is FaultKind.TRUNCATED)


@dataclass(slots=True)
class Text:
    """What has come of one text, over all the requests that brought it. Times are seconds since the first was sent."""

    last: int | None = None
    """Number of the last event."""
    ordered: bool = True
    """Whether the numbers rise, so that `last` is where the stream stands."""
    chunks: int = 0
    """Chunks with content."""
    chars: int = 0
    """Of visible text."""
    ttft_s: float | None = None
    t_s: float = 0.0
    """When the last delta came."""
    gaps: Sketch = field(default_factory=Sketch)
    """Gaps between chunks with content; none for the time between two connections."""
    _content_s: float | None = None

    def note(self, delta: Delta, t_s: float) -> None:
        """Takes the next delta."""
        number = delta.payload.get("sequence_number")
        if type(number) is int and (self.last is None or number > self.last):
            self.last = number
        else:
            self.ordered = False
        self.t_s = t_s
        if delta.kind.is_content:
            self._count(delta, t_s)

    def _count(self, delta: Delta, t_s: float) -> None:
        self.chunks += 1
        self.chars += len(delta.text)
        if self.ttft_s is None:
            self.ttft_s = t_s
        if self._content_s is not None:
            self.gaps.add(max(0.0, t_s - self._content_s))
        self._content_s = t_s

    def cut(self) -> None:
        """The connection is gone: the time to the next chunk is no gap of the server's."""
        self._content_s = None


@dataclass(slots=True)
class Known:
    """A response that can be asked for."""

    id: str
    endpoint: str
    """Name of the one that has it."""
    answer: Accumulator | None = None
    """What its events have made so far; None: it must come from its first event."""
    in_one_piece: bool = False
    """It is asked for without its stream: the job isn't streamed, all of its text has come, or there is no stream."""
    garbled: bool = False
    """There was something in its stream that is no event."""


class Stored(NamedTuple):
    """What deltas.jsonl holds of a text that was not finished."""

    answer: Accumulator
    text: Text
    said: str  # the visible text
    seq: int  # of the next line
    finish: str | None  # status of its terminal event, if that was the last one


def replay(lines: Iterable[dict[str, Any]]) -> Stored | None:
    """Rebuilds a text from its delta lines, in order; None where one is missing, or isn't what was written."""
    answer, text, said = accumulate.for_stream(Api.RESPONSES), Text(), []
    seq = 0
    for line in lines:
        try:
            if line["seq"] != seq:
                return None
            deltas = answer.feed("", orjson.dumps(line["delta"]))
            for delta in deltas:
                text.note(delta, float(line["t"]))
                said.append(delta.text)
        except (KeyError, TypeError, ValueError, MalformedChunk, StreamError):
            return None
        if not (deltas and text.ordered):
            return None
        seq += 1
    text.cut()
    return Stored(answer, text, "".join(said), seq, answer.finish) if seq else None
