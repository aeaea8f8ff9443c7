"""How one attempt went: its outcome, and when what of it arrived. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import repeat
from operator import sub, truediv
from typing import TYPE_CHECKING, Any

from runner.outcome import Outcome
from runner.sketch import Sketch

if TYPE_CHECKING:
    from runner.accumulate import Accumulator


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

    def count(self, now_ns: int) -> None:
        """A chunk with content arrived."""
        if not self.last_content_ns:
            self.ttft_s = (now_ns - self.sent_ns) / 1e9
            self.first_content_ns = self.last_content_ns = now_ns
            self.chunks += 1
        else:
            self.count_all([now_ns - self.sent_ns])

    def count_all(self, after_ns: Sequence[int]) -> None:
        """More chunks with content arrived, so long after it was sent."""
        self.chunks += len(after_ns)
        sent_ns = self.sent_ns
        before_ns = self.last_content_ns - sent_ns
        self.last_content_ns = sent_ns + after_ns[-1]
        gaps_ns = list(map(sub, after_ns, (before_ns, *after_ns)))
        self.coalesced += gaps_ns.count(0)
        self.gaps.add_all(map(truediv, gaps_ns, repeat(1e9)))
