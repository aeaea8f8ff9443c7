"""What final records sum up to: counts, tokens, cost, percentiles. Pure.

One source for the live view, the summary and the records: all of them count what `written` reads from a record. Memory
is bounded, whatever the number of jobs and whatever names a server invents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from runner.limits import MAX_COUNTED_NAMES
from runner.sketch import Sketch

if TYPE_CHECKING:
    from runner.written import How, Written

WAITS: Final = ("queue_s", "limiter_wait_s")
TIMES: Final = ("ttft_s", "duration_s", *WAITS)
GAPS: Final = {"icl_p50_s": "p50", "icl_p99_s": "p99", "icl_max_s": "max"}
"""What the members of `icl` are called here."""
TOKENS: Final = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")


_NO_USAGE: Final = (None, "stop_after")
"""Finishes: of no answer, and of one whose end, where the usage stands, nobody waited for."""
_GET: Final = {name: attrgetter(GAPS.get(name, name)) for name in (*TOKENS, *TIMES, *GAPS)}


class Tally(Counter[str]):
    """Counts by name. Names may be a server's: after MAX_COUNTED_NAMES different ones the rest are `other`."""

    def note(self, name: str) -> None:
        """Counts one."""
        self[name if name in self or len(self) < MAX_COUNTED_NAMES else "other"] += 1

    def note_all(self, names: Sequence[str]) -> None:
        """Counts many."""
        if not names:
            return
        for name, count in Counter(names).items():  # in the order in which they first came, as one by one
            self[name if name in self or len(self) < MAX_COUNTED_NAMES else "other"] += count


class Counts:
    """What finished jobs sum up to, but for their times."""

    def __init__(self) -> None:
        self.succeeded = 0
        self.failed = 0
        self.rejected = 0
        self.attempts = 0
        self.chunks = 0
        self.tokens = dict.fromkeys(TOKENS, 0)
        self.cost: float | None = None
        self.unpriced = 0
        """Answers whose cost isn't known: no price, or no usage."""
        self.errors = Tally()
        self.finishes = Tally()
        self.retries = Tally()

    def add(self, records: Sequence[Written]) -> None:
        """Counts finished jobs: of many together each costs a sixth of what one alone does."""
        every = [record.runner for record in records]
        failed = [record for record in records if record.error is not None]
        self.succeeded += len(records) - len(failed)
        self.failed += len(failed)
        self.rejected += sum([record.runner.attempts == 0 for record in failed])
        self.errors.note_all([record.error.code for record in failed if record.error is not None])
        self.retries.note_all([retry.reason for how in every for retry in how.retries])
        self.attempts += sum([how.attempts for how in every])
        self.chunks += sum([how.chunks for how in every])
        self.finishes.note_all([how.finish for how in every if how.finish is not None])
        self._add_spent(every)

    def _add_spent(self, every: Sequence[How]) -> None:
        usages = [how.usage for how in every if how.usage is not None]
        for name in TOKENS:
            self.tokens[name] += sum(filter(None, map(_GET[name], usages)))
        self.unpriced += sum([how.finish not in _NO_USAGE for how in every if how.cost is None])
        costs = [how.cost for how in every if how.cost is not None]
        if costs:
            self.cost = sum(costs, self.cost or 0.0)


class Totals(Counts):
    """The same with the times: latencies of answers are those of jobs that succeeded, waits those of all sent."""

    def __init__(self) -> None:
        super().__init__()
        self.times = {name: Sketch() for name in (*TIMES, *GAPS)}

    def add(self, records: Sequence[Written]) -> None:
        """See `Counts`."""
        super().add(records)
        every = [record.runner for record in records]
        good = [record.runner for record in records if record.error is None]
        gaps = [how.icl for how in good if how.icl is not None]
        for name, sketch in self.times.items():
            owners: Sequence[object] = gaps if name in GAPS else every if name in WAITS else good
            sketch.add_all([value for value in map(_GET[name], owners) if value is not None])
