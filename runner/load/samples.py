"""One request of a load test: its stamps and counts, and what every metric makes of them. Pure.

Times are seconds since the level's start, on the monotonic clock, taken where a read returns; None did not happen.
What a metric is, its unit and its names in other clients stand in `definitions`; the arithmetic stands here, once:

| metric | value | unknown where |
| --- | --- | --- |
| ttft | first_content − sent | nothing was streamed |
| ttfv | first_text − sent | no visible text came |
| tpot | (last_content − first_content) ÷ (output_tokens − first_chunk_tokens) | no usage, one chunk |
| itl | (last_content − first_content) ÷ (output_tokens − 1) | no usage, one token |
| output_tokens_per_s_per_user | 1 ÷ tpot | tpot is unknown or 0 |
| e2e | (last_content, else end) − sent | |
| …_from_schedule | the same, less `scheduled` | closed loops |
| queue_wait | sent − scheduled | closed loops |
| send_lag | sent − scheduled − limiter_wait_s | closed loops, retried requests |
| limiter_wait | limiter_wait_s | |
| icl | every gap between content chunks | |

`sent` is of the last attempt: what earlier ones and the backoff between them took is in queue_wait and in the figures
from schedule, never in ttft or e2e. Where the number of tokens in the first chunk isn't known it is taken as one, as
every other client does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

from runner.faults import FaultKind
from runner.sketch import Sketch

Ending = Literal["succeeded", "failed", "throttled", "dropped", "waiting", "in_flight"]
THROTTLED: Final = frozenset(kind.value for kind in (FaultKind.RATE_LIMITED, FaultKind.SLOW_DOWN, FaultKind.CAPACITY))
"""Answers with 429: a class of their own."""


@dataclass(frozen=True, slots=True)
class RequestSample:
    """What one request left."""

    scheduled: float | None = None
    """Intended send time; None in a closed loop."""
    admitted: float | None = None
    sent: float | None = None
    """Of the last attempt; None: the client never sent it."""
    headers: float | None = None
    first_chunk: float | None = None
    first_content: float | None = None
    """Text, reasoning or a tool call."""
    first_text: float | None = None
    """Visible text."""
    last_content: float | None = None
    end: float | None = None
    """None: it was still in flight when the level was closed."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    """By the server's usage, reasoning included, as all tokens here; None: it sent none."""
    reasoning_tokens: int | None = None
    first_chunk_tokens: int | None = None
    chunks: int = 0
    """With content."""
    coalesced: int = 0
    """Of these, how many were read in one wake-up with an earlier one."""
    gaps: Sketch = field(default_factory=Sketch)
    """Between content chunks."""
    ok: bool = False
    fault: str | None = None
    """Kind of the last attempt's fault."""
    attempts: int = 1
    throttled_attempts: int = 0
    """How many of them a 429 answered."""
    limiter_wait_s: float = 0.0
    waiting: bool = False
    """Whether it was still waiting for the user's own limits when the level was closed."""
    asked: float | None = None
    """When one that was never sent was asked for: in a closed loop it has no other time."""
    output_tokens_by_tokenizer: int | None = None

    @property
    def ending(self) -> Ending:
        """What became of it: each request is exactly one of these."""
        if self.sent is None:
            return "waiting" if self.waiting else "dropped"
        if self.end is None:
            return "in_flight"
        if self.ok:
            return "succeeded"
        return "throttled" if self.fault in THROTTLED else "failed"

    @property
    def due(self) -> float | None:
        """Which moment decides whether it counts: when it was due, in a closed loop when it was sent or was to be."""
        moments = (self.scheduled, self.sent, self.admitted, self.asked)
        return next((moment for moment in moments if moment is not None), None)

    @property
    def tokens(self) -> int | None:
        """Output tokens for rates: the server's count, else the tokenizer's."""
        return self.output_tokens if self.output_tokens is not None else self.output_tokens_by_tokenizer

    @property
    def finished(self) -> float | None:
        """The end of the answer as a user sees it."""
        return self.last_content if self.last_content is not None else self.end

    def value(self, metric: str) -> float | None:
        """What a metric of `definitions` makes of it, None where it is unknown; `icl` has no one value."""
        return next((value for name, value in values(self) if name == metric), None)


def values(sample: RequestSample) -> Iterator[tuple[str, float]]:
    """Every metric of one request that is known, but for `icl`."""
    streaming = _streaming_s(sample)
    tokens, first = sample.output_tokens, sample.first_chunk_tokens
    found = {
        "ttft": _between(sample.sent, sample.first_content),
        "ttft_from_schedule": _between(sample.scheduled, sample.first_content),
        "ttfv": _between(sample.sent, sample.first_text),
        "tpot": _per(streaming, tokens, 1 if first is None else first),
        "itl": _per(streaming, tokens, 1),
        "e2e": _between(sample.sent, sample.finished),
        "e2e_from_schedule": _between(sample.scheduled, sample.finished),
        "queue_wait": _between(sample.scheduled, sample.sent),
        "send_lag": _send_lag(sample),
        "limiter_wait": sample.limiter_wait_s,
        "input_tokens": sample.input_tokens,
        "output_tokens": tokens,
    }
    if found["tpot"]:
        found["output_tokens_per_s_per_user"] = 1 / found["tpot"]
    for name, value in found.items():
        if value is not None:
            yield name, value


def _between(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else end - start


def _streaming_s(sample: RequestSample) -> float | None:
    # One chunk takes no time, whatever it holds.
    return _between(sample.first_content, sample.last_content) if sample.chunks > 1 else None


def _per(seconds: float | None, tokens: int | None, first: int) -> float | None:
    return None if seconds is None or tokens is None or tokens <= first else seconds / (tokens - first)


def _send_lag(sample: RequestSample) -> float | None:
    waited = _between(sample.scheduled, sample.sent)
    return None if waited is None or sample.attempts > 1 else max(0.0, waited - sample.limiter_wait_s)
