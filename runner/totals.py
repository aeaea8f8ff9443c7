"""What final records sum up to: counts, tokens, cost, percentiles. Pure.

One source for the live view, the summary and the records. A record is counted by itself (`Finished.of_record`, which
takes any field of the wrong type for unknown), or with many others of exactly our shape (`Totals.add_all`), which comes
to the same. Memory is bounded, whatever the number of jobs and whatever names a server invents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from runner.limits import MAX_COUNTED_NAMES
from runner.sketch import Sketch

if TYPE_CHECKING:
    from runner.written import How, Written

WAITS: Final = ("queue_s", "limiter_wait_s")
TIMES: Final = ("ttft_s", "duration_s", *WAITS)
GAPS: Final = {"icl_p50_s": "p50", "icl_p99_s": "p99", "icl_max_s": "max"}
"""What the members of `icl` are called here."""
_ICL: Final = tuple(GAPS.values())
TOKENS: Final = ("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens")


class Finished(NamedTuple):
    """What one final record adds to the counts. Times in seconds; None is unknown, never zero."""

    ok: bool
    error_code: str | None = None
    finish: str | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost: float | None = None
    ttft_s: float | None = None
    duration_s: float | None = None
    queue_s: float | None = None
    limiter_wait_s: float | None = None
    icl_p50_s: float | None = None  # the answer's median gap between content chunks
    icl_p99_s: float | None = None
    icl_max_s: float | None = None
    chunks: int = 0
    attempts: int = 0
    retries: tuple[str, ...] = ()  # reasons of the attempts before the last

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Finished:
        """Reads a record of results.jsonl; a field of the wrong type is unknown.

        Raises:
            ValueError: it isn't one: `error` or `runner` is missing or no object.
        """
        error, runner = record.get("error", ""), record.get("runner")
        if not isinstance(runner, dict) or not (error is None or isinstance(error, dict)):
            raise ValueError("not a record of a run")
        code, finish, retries = (error or {}).get("code"), runner.get("finish"), runner.get("retries")
        chunks, attempts = _counts(runner, ("chunks", "attempts"))
        total, cached, output, reasoning = _counts(runner.get("usage"), TOKENS)
        cost, ttft_s, duration_s, queue_s, limiter_wait_s = _numbers(runner, ("cost", *TIMES))
        p50_s, p99_s, max_s = _numbers(runner.get("icl"), _ICL)
        return cls(
            ok=error is None,
            error_code=None if error is None else code if isinstance(code, str) else "unknown",
            finish=finish if isinstance(finish, str) else None,
            input_tokens=total,
            cached_tokens=cached,
            output_tokens=output,
            reasoning_tokens=reasoning,
            cost=cost,
            ttft_s=ttft_s,
            duration_s=duration_s,
            queue_s=queue_s,
            limiter_wait_s=limiter_wait_s,
            icl_p50_s=p50_s,
            icl_p99_s=p99_s,
            icl_max_s=max_s,
            chunks=chunks or 0,
            attempts=attempts or 0,
            retries=tuple(_reasons(retries)) if retries else (),
        )


def _numbers(found: Any, names: Sequence[str]) -> list[float | None]:
    if not isinstance(found, dict):
        return [None] * len(names)
    values = map(found.get, names)
    return [float(value) if type(value) is float or type(value) is int else None for value in values]


def _counts(found: Any, names: Sequence[str]) -> list[int | None]:
    if not isinstance(found, dict):
        return [None] * len(names)
    return [value if type(value) is int and value >= 0 else None for value in map(found.get, names)]


def _reasons(retries: Any) -> list[str]:
    found = retries if isinstance(retries, list) else []
    return [str(retry["reason"]) for retry in found if isinstance(retry, dict) and "reason" in retry]


_NO_USAGE: Final = (None, "stop_after")
"""Finishes: of no answer, and of one whose end, where the usage stands, nobody waited for."""
_GET: Final = {name: attrgetter(name) for name in (*TOKENS, *TIMES, *GAPS)}


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


class Totals:
    """What finished jobs sum up to. Latencies of answers are those of jobs that succeeded, waits those of all sent."""

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
        self.times = {name: Sketch() for name in (*TIMES, *GAPS)}

    def add(self, *jobs: Finished) -> None:
        """Counts finished jobs: of many together each costs a sixth of what one alone does."""
        good = [job for job in jobs if job.ok]
        self.succeeded += len(good)
        self.failed += len(jobs) - len(good)
        self.rejected += sum([job.attempts == 0 for job in jobs if not job.ok])
        self.errors.note_all([job.error_code for job in jobs if job.error_code is not None])
        self.retries.note_all([reason for job in jobs for reason in job.retries])
        self._add_alike(jobs, jobs)
        for name, sketch in self.times.items():
            values = map(_GET[name], jobs if name in WAITS else good)
            sketch.add_all([value for value in values if value is not None])

    def add_all(self, records: Sequence[Written]) -> None:
        """Counts the jobs of many records: the same as `add` of each, but for float rounding."""
        every = [record.runner for record in records]
        good = [record.runner for record in records if record.error is None]
        errors = [record.error.code for record in records if record.error is not None]
        self.succeeded += len(good)
        self.failed += len(errors)
        if errors:
            self.rejected += sum(not record.runner.attempts for record in records if record.error is not None)
            self.errors.note_all(errors)
        self.retries.note_all([retry.reason for how in every for retry in how.retries])
        self._add_alike(every, [how.usage for how in every if how.usage is not None])
        self._add_all_times(every, good)

    def _add_alike(self, jobs: Sequence[Finished | How], usages: Sequence[object]) -> None:
        """What both kinds of job have under one name; `usages` have the tokens."""
        self.attempts += sum([job.attempts for job in jobs])
        self.chunks += sum([job.chunks for job in jobs])
        self.finishes.note_all([job.finish for job in jobs if job.finish is not None])
        for name in TOKENS:
            self.tokens[name] += sum(filter(None, map(_GET[name], usages)))
        self.unpriced += sum([job.finish not in _NO_USAGE for job in jobs if job.cost is None])
        costs = [job.cost for job in jobs if job.cost is not None]
        if costs:
            self.cost = sum(costs, self.cost or 0.0)

    def _add_all_times(self, every: Sequence[How], good: Sequence[How]) -> None:
        gaps = [how.icl for how in good if how.icl is not None]
        for name, sketch in self.times.items():
            owners: Sequence[object] = gaps if name in GAPS else every if name in WAITS else good
            values = map(attrgetter(GAPS.get(name, name)), owners)
            sketch.add_all([value for value in values if value is not None])
