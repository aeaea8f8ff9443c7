"""Requests of a load test as they might have gone."""

from __future__ import annotations

from dataclasses import replace

from runner.load.samples import RequestSample
from runner.sketch import Sketch


def sketch(*gaps):
    made = Sketch()
    for gap in gaps:
        made.add(gap)
    return made


_ANSWERED = RequestSample(
    scheduled=9.5,
    admitted=9.9,
    sent=10.0,
    first_content=10.3,
    first_text=10.4,
    last_content=10.5,
    end=10.6,
    input_tokens=5,
    output_tokens=11,
    first_chunk_tokens=1,
    chunks=11,
    gaps=sketch(*[0.02] * 10),
    ok=True,
)


def answered(**changes):
    """Due at 9.5, sent at 10, TTFT 0.3, 11 tokens in 11 chunks 20 ms apart, done at 10.5, closed at 10.6."""
    return replace(_ANSWERED, **changes)


def at(sent, *, length=1.0, ttft=0.2, **changes):
    """A request of a closed loop, answered within `length`."""
    times = {"sent": sent, "admitted": sent, "scheduled": None, "end": sent + length}
    content = {"first_content": sent + ttft, "first_text": sent + ttft, "last_content": sent + length}
    return answered(**(times | content | changes))


def failed(sent, fault="server_error", **changes):
    """A request of a closed loop that failed at once."""
    nothing = {"first_content": None, "first_text": None, "last_content": None, "output_tokens": None, "chunks": 0}
    return at(sent, length=0.01, ok=False, fault=fault, gaps=Sketch(), **(nothing | {"input_tokens": None} | changes))
