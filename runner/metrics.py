"""Counters of a run, fed by the workers and read by the live view. Pure but for the clock it is given.

What a finished job counts is read from its own record: one source for the live view, the summary and the file.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

WINDOW_S: Final = 10
"""Rates are over the last 10 seconds, in one-second bins."""


class Snapshot(NamedTuple):
    """What a live view shows. Counts are jobs unless they say otherwise."""

    total: int | None  # lines of the input; None for standard input
    resumed: int  # had their record before this run
    succeeded: int  # in this run
    failed: int  # in this run, rejected lines included
    retries: int  # attempts that failed and were followed, or not, by another
    in_flight: int
    waiting: int
    limit: int  # concurrency as of now
    output_tokens: int
    cost: float
    tokens_per_s: float  # output, over the last 10 s; by chunks until an answer's usage is known
    jobs_per_s: float
    rpm_used: float
    rpm_allowed: float | None
    tpm_used: float
    tpm_allowed: float | None
    cooldown_s: float  # remaining
    elapsed_s: float
    eta_s: float | None
    pending_bytes: int  # waiting for the disk


class _Rate:
    """Events a second over the last WINDOW_S."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._start = clock()
        self._bins: deque[list[float]] = deque()

    def add(self, amount: float) -> None:
        second = int(self._clock())
        if self._bins and self._bins[-1][0] == second:
            self._bins[-1][1] += amount
        else:
            self._bins.append([second, amount])
            while self._bins[0][0] <= second - WINDOW_S:
                self._bins.popleft()

    @property
    def per_s(self) -> float:
        now = self._clock()
        total = sum(amount for second, amount in self._bins if second > now - WINDOW_S)
        return total / max(1.0, min(float(WINDOW_S), now - self._start))


class RunMetrics:
    """The counters."""

    def __init__(self, clock: Callable[[], float], *, total: int | None) -> None:
        self._clock = clock
        self._start = clock()
        self.total = total
        self.resumed = 0
        self.succeeded = 0
        self.failed = 0
        self.cost = 0.0
        self.output_tokens = 0
        self.chunks = 0
        self.retries: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self._chunk_rate = _Rate(clock)
        self._job_rate = _Rate(clock)

    def skipped(self) -> None:
        """A job had its record already."""
        self.resumed += 1

    def delta(self) -> None:
        """A chunk with content arrived."""
        self.chunks += 1
        self._chunk_rate.add(1)

    def attempt_failed(self, kind: str) -> None:
        """An attempt met a fault of this kind."""
        self.retries[kind] += 1

    def record(self, record: dict[str, Any]) -> None:
        """A job's final record is written."""
        error = record["error"]
        if error is None:
            self.succeeded += 1
        else:
            self.failed += 1
            self.errors[error["code"]] += 1
        runner = record["runner"]
        self.cost += runner.get("cost") or 0.0
        self.output_tokens += (runner.get("usage") or {}).get("output_tokens", 0)
        self._job_rate.add(1)

    @property
    def done(self) -> int:
        """Jobs that have their record, of this run and earlier ones."""
        return self.resumed + self.succeeded + self.failed

    @property
    def elapsed_s(self) -> float:
        """Since the run began."""
        return self._clock() - self._start

    def snapshot(self, admission: Any, pending_bytes: int) -> Snapshot:
        """The state of now; `admission` is its `AdmissionStatistics`."""
        jobs_per_s = self._job_rate.per_s
        left = None if self.total is None else max(0, self.total - self.done)
        return Snapshot(
            total=self.total,
            resumed=self.resumed,
            succeeded=self.succeeded,
            failed=self.failed,
            retries=self.retries.total(),
            in_flight=admission.in_flight,
            waiting=admission.waiting,
            limit=admission.limit,
            output_tokens=self.output_tokens,
            cost=self.cost,
            tokens_per_s=self._chunk_rate.per_s,
            jobs_per_s=jobs_per_s,
            rpm_used=admission.rpm_used,
            rpm_allowed=admission.rpm_allowed,
            tpm_used=admission.tpm_used,
            tpm_allowed=admission.tpm_allowed,
            cooldown_s=admission.cooldown_remaining_s,
            elapsed_s=self.elapsed_s,
            eta_s=None if left is None or jobs_per_s <= 0 else left / jobs_per_s,
            pending_bytes=pending_bytes,
        )
