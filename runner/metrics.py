"""Counters of a run, fed by the workers and read by the live view and the summary. Pure but for the clock it is given.

What a finished job counts is read from its own record (`written`), here and where summary.json is made from the file:
one source for the live view, the summary and the records.

Live tokens a second are chunks a second, times the tokens that a chunk of this run's finished answers carried: servers
name tokens only at the end, chunks arrive as they come. Memory is bounded, whatever the number of jobs and whatever
names a server invents.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from runner.totals import Counts
from runner.totals import Tally as Tally
from runner.written import Written, of_record

if TYPE_CHECKING:
    from runner.admission import AdmissionStatistics

WINDOW_S: Final = 10.0
"""Rates shown are over this long."""
ETA_WINDOW_S: Final = 60.0
"""The ETA goes by the jobs of the last minute: answers may take longer than WINDOW_S each."""
NOTABLE: Final = 0.2
"""What takes less than this part of the time doesn't limit a run."""
_TOGETHER: Final = 64
"""So many finished jobs are counted together, unless somebody looks before."""
_BINS: Final = 40
"""Bins of a window: events are counted to a fortieth of it, which bounds a rate's memory."""


class Snapshot(NamedTuple):
    """The one thing that views read. Counts are jobs, of this run, unless they say otherwise."""

    total: int | None  # lines of the input; None for standard input
    resumed: int  # had their record before this run
    succeeded: int
    failed: int  # rejected lines included
    rejected: int  # never sent: lines that can't be jobs, jobs that can't fit
    attempts: int  # requests sent by jobs that are finished
    retries: int  # attempts that failed, followed by another or not
    retries_by_kind: dict[str, int]
    errors: dict[str, int]  # failed jobs by error code
    finishes: dict[str, int]  # jobs by finish reason
    in_flight: int  # attempts
    waiting: int  # attempts
    limit: int  # concurrency slots
    chunks: int  # with content, as they arrived
    input_tokens: int  # of finished jobs, as all tokens here
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost: float | None  # in the currency of the prices; None while no answer had a price
    tokens_per_s: float  # output, over the last 10 s
    chunks_per_s: float  # over the last 10 s
    jobs_per_s: float  # over the last 10 s
    rpm_used: float  # requests in the last 60 s
    rpm_allowed: float | None
    tpm_used: float  # tokens in the last 60 s
    tpm_allowed: float | None
    cooldown_s: float  # remaining; 0 when there is none
    limited_by: str | None  # what the first in line waited for in the last 10 s
    elapsed_s: float
    eta_s: float | None  # None: the total is unknown, or nothing has finished yet
    pending_bytes: int  # deltas and records waiting for the disk

    @property
    def done(self) -> int:
        """Jobs that have their record, of this run and of earlier ones."""
        return self.resumed + self.succeeded + self.failed


class _Rate:
    """Events a second over a sliding window that ends now; until the window is full, since the start."""

    def __init__(self, clock: Callable[[], float], window_s: float = WINDOW_S) -> None:
        self._clock = clock
        self._start = clock()
        self._window_s = window_s
        self._bin_s = window_s / _BINS
        self._bins: deque[list[float]] = deque()  # [number of the bin, amount]
        self._bin_ends = -math.inf

    def add(self, amount: float, now_s: float) -> None:
        if now_s < self._bin_ends:  # what nearly every job meets
            self._bins[-1][1] += amount
            return
        number = int(now_s / self._bin_s)
        bins = self._bins
        bins.append([number, amount])
        self._bin_ends = (number + 1) * self._bin_s
        while bins[0][0] < number - _BINS:
            bins.popleft()

    @property
    def per_s(self) -> float:
        now = self._clock()
        # Whole bins only: the window begins where its first bin does.
        first = math.ceil((now - self._window_s) / self._bin_s)
        covered_s = now - max(self._start, first * self._bin_s)
        # At least a second: the first chunks of a run are no rate.
        return sum(amount for number, amount in self._bins if number >= first) / max(1.0, covered_s)


class _Growth:
    """How fast a count grows, by when it was looked at: who counts up a million times has no clock to ask."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque([(clock(), 0)])

    def per_s(self, count: int) -> float:
        """A second over the last WINDOW_S, or since it was last looked at where that is longer ago."""
        now, seen = self._clock(), self._seen
        while len(seen) > 1 and seen[1][0] <= now - WINDOW_S:
            seen.popleft()
        since, before = seen[0]
        if now > seen[-1][0]:
            seen.append((now, count))
        # At least a second: the first chunks of a run are no rate.
        return (count - before) / max(1.0, now - since)


class Bottleneck:
    """What the first in line has waited for in the last seconds, from totals that only grow."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, dict[str, float]]] = deque()

    def sample(self, blocked_s: Mapping[str, float]) -> str | None:
        """Takes the totals of now; the name of what took most of the last WINDOW_S, or None where nothing did."""
        now = self._clock()
        self._seen.append((now, dict(blocked_s)))
        while len(self._seen) > 1 and now - self._seen[0][0] > WINDOW_S:
            self._seen.popleft()
        since, before = self._seen[0]
        grown = {name: total - before.get(name, 0.0) for name, total in blocked_s.items()}
        longest = max(grown, key=lambda name: grown[name], default=None)
        return longest if longest is not None and grown[longest] > NOTABLE * (now - since) > 0 else None


class RunMetrics:
    """The counters of one run."""

    def __init__(self, clock: Callable[[], float], *, total: int | None) -> None:
        self._clock = clock
        self._start = clock()
        self.total = total
        self.resumed = 0
        self.chunks = 0
        """Chunks with content that have arrived; counted up by who takes them."""
        self.retries = Tally()
        """Attempts that failed, by kind of fault, as they happen."""
        self._totals = Counts()  # no times: nobody looks at them while the run goes on
        self._uncounted: list[Written] = []  # jobs that these don't hold yet
        self._bottleneck = Bottleneck(clock)
        self._chunk_rate = _Growth(clock)
        self._whole_rate = _Rate(clock)  # tokens of answers that came in one piece
        self._job_rate = _Rate(clock)
        self._eta_rate = _Rate(clock, ETA_WINDOW_S)
        self._streamed = [0, 0]  # tokens and chunks of finished streams whose usage is known

    # ── Fed by the workers ───────────────────────────────────────────────────────────────────────────────────────

    def skipped(self) -> None:
        """A job had its record already."""
        self.resumed += 1

    def attempt_failed(self, kind: str) -> None:
        """An attempt met a fault of this kind."""
        self.retries.note(kind)

    def record(self, record: dict[str, Any]) -> None:
        """A job's final record is written."""
        job = of_record(record)
        self._uncounted.append(job)
        if len(self._uncounted) >= _TOGETHER:
            self._count()
        now_s, how = self._clock(), job.runner
        self._job_rate.add(1, now_s)
        self._eta_rate.add(1, now_s)
        tokens = (how.usage.output_tokens if how.usage is not None else 0) or 0
        if not how.chunks:
            self._whole_rate.add(tokens, now_s)
        elif tokens:
            self._streamed[0] += tokens
            self._streamed[1] += how.chunks

    def _count(self) -> None:
        jobs, self._uncounted = self._uncounted, []
        self._totals.add(jobs)

    # ── Read ─────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def totals(self) -> Counts:
        """What the jobs of this run sum up to."""
        if self._uncounted:
            self._count()
        return self._totals

    @property
    def succeeded(self) -> int:
        """Jobs of this run that succeeded."""
        return self.totals.succeeded

    @property
    def failed(self) -> int:
        """Jobs of this run that failed, rejected lines included."""
        return self.totals.failed

    @property
    def unpriced(self) -> bool:
        """Whether an answer's cost isn't known."""
        return self.totals.unpriced > 0

    @property
    def cost(self) -> float:
        """What this run's answers cost, as far as prices are known."""
        return self.totals.cost or 0.0

    @property
    def elapsed_s(self) -> float:
        """Since the run began."""
        return self._clock() - self._start

    def snapshot(self, admission: AdmissionStatistics, pending_bytes: int = 0) -> Snapshot:
        """The state of now. `pending_bytes` waits for the disk."""
        totals, chunks_per_s = self.totals, self._chunk_rate.per_s(self.chunks)
        return Snapshot(
            total=self.total,
            resumed=self.resumed,
            succeeded=totals.succeeded,
            failed=totals.failed,
            rejected=totals.rejected,
            attempts=totals.attempts,
            retries=self.retries.total(),
            retries_by_kind=dict(self.retries),
            errors=dict(totals.errors),
            finishes=dict(totals.finishes),
            in_flight=admission.in_flight,
            waiting=admission.waiting,
            limit=admission.limit,
            chunks=self.chunks,
            **totals.tokens,
            cost=totals.cost,
            tokens_per_s=chunks_per_s * self._tokens_per_chunk() + self._whole_rate.per_s,
            chunks_per_s=chunks_per_s,
            jobs_per_s=self._job_rate.per_s,
            rpm_used=admission.rpm_used,
            rpm_allowed=admission.rpm_allowed,
            tpm_used=admission.tpm_used,
            tpm_allowed=admission.tpm_allowed,
            cooldown_s=admission.cooldown_remaining_s,
            limited_by=self._bottleneck.sample(admission.blocked_s),
            elapsed_s=self.elapsed_s,
            eta_s=self._eta_s(),
            pending_bytes=pending_bytes,
        )

    def _tokens_per_chunk(self) -> float:
        tokens, chunks = self._streamed
        return tokens / chunks if chunks else 1.0

    def _eta_s(self) -> float | None:
        """By the last minute; by the whole run when no job ended in it."""
        ran = self.succeeded + self.failed
        if self.total is None or not ran:
            return None
        per_s = self._eta_rate.per_s or ran / max(1.0, self.elapsed_s)
        return max(0, self.total - self.resumed - ran) / per_s
