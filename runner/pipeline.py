"""The task group of a run: reader → workers → journal, with drain and abort.

Memory is bounded by concurrency, never by the number of jobs: the reader hands a batch at a time to a staff of workers
that is BACKOFF_ROOM times as large as the concurrency (a job in backoff holds no slot, but it is in memory), and waits
when all of them are busy. Only where jobs of a slow model wait and those of another could go are there more, up to
MAX_WAITING_JOBS. The journal outlives the workers: it is closed, never cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import anyio
from anyio.abc import TaskGroup

from runner import records, signals
from runner.costs import COST_UNKNOWN
from runner.digests import DigestMap, id_key
from runner.drain import Drain
from runner.handover import LOW, Handover
from runner.jobs import Job, Rejected
from runner.limits import BACKOFF_ROOM, MAX_WAITING_BYTES, MAX_WAITING_JOBS
from runner.preflight import asks_something_else, changes_refused
from runner.source import JobSource
from runner.tickets import AdmissionClosed
from runner.worker import Bench, StopRun, run_job

log = logging.getLogger(__name__)

HIRE_EVERY_S: Final = 0.2
"""How long a free slot may stay empty because every worker waits for another model."""


@dataclass(slots=True)
class Pipeline:
    """One run's flow of jobs."""

    bench: Bench
    drain: Drain
    paths: Sequence[str]
    done: DigestMap
    """Ids (keys of them) that have their final record already."""
    handle_signals: bool = True
    notify: Callable[[str], None] = lambda text: None
    """Tells the user something at once."""
    _reading: anyio.CancelScope = field(default_factory=anyio.CancelScope, init=False)
    _workers: int = field(default=0, init=False)
    _jobs: Handover = field(default_factory=Handover, init=False)
    _all_taken: anyio.Event = field(default_factory=anyio.Event, init=False)
    _held_bytes: int = field(default=0, init=False)
    """Lengths of the lines of the jobs that workers have in hand."""
    _has_limits: bool = field(init=False)
    """Whether failures or money may end the run."""

    def __post_init__(self) -> None:
        settings = self.bench.settings
        self._has_limits = settings.max_failures is not None or settings.max_cost is not None

    async def run(self) -> None:
        """Runs every job that isn't done; returns when all that will be written is on disk.

        Raises:
            OutputError: the output can't be written.
            InputError: the input is damaged beyond the point where it was last checked.
        """
        bench, drain = self.bench, self.drain
        async with anyio.create_task_group() as services:
            await services.start(bench.journal.run)
            services.start_soon(bench.admission.run)
            services.start_soon(drain.expire)
            services.start_soon(self._stop_reading)
            if self.handle_signals:
                await services.start(signals.listen, self._asked_to_stop, drain.cut)
            if bench.settings.deadline is not None:
                services.start_soon(self._deadline, bench.settings.deadline)
            try:
                with drain.scope:
                    await self._work()
            finally:
                bench.journal.close()
            with anyio.CancelScope(shield=True):
                await bench.journal.wait_closed()
            services.cancel_scope.cancel()

    async def _work(self) -> None:
        async with anyio.create_task_group() as staff:
            with self._reading:
                staff.start_soon(self._hire_later, staff)
                await self._read(staff)
                await self._jobs.down_to(0)
            self._all_taken.set()
            self._jobs.close()

    async def _stop_reading(self) -> None:
        """A reader that waits for an idle pipe must not hold up a run that drains."""
        await self.drain.wait()
        self._reading.cancel()

    # ── Reader ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _read(self, staff: TaskGroup) -> None:
        left, resumes = self.bench.settings.limit, len(self.done) > 0
        async for batch in JobSource(self.paths).batches():
            jobs: list[Job] = []
            for item in batch:
                if resumes and id_key(item.id) in self.done:
                    if asks_something_else(item, self.done):
                        # Standard input alone gets here: what can be read ahead was checked before anything was sent.
                        self.drain.ask(2, str(changes_refused([item.id], self.paths)))
                        return
                    self.bench.metrics.skipped()
                    continue
                if left == 0:
                    break
                left = None if left is None else left - 1
                if isinstance(item, Rejected):
                    self._reject(item)
                    await self.bench.journal.room()
                else:
                    jobs.append(item)
            self._jobs.put(jobs)
            self._hire(staff)
            if left == 0 or self.drain.asked:
                return
            await self._jobs.down_to(LOW)

    def _reject(self, line: Rejected) -> None:
        """Has the record of a line that can't be a job written. Nobody waits for it: there may be a million of them."""
        record = records.of_rejected(line)

        def written(acknowledged: asyncio.Future[None]) -> None:
            if not acknowledged.cancelled() and acknowledged.exception() is None:
                self.bench.metrics.record(record)
                self._check_limits()

        self.bench.journal.hand_in(records.record_line(record)).add_done_callback(written)

    def _hire(self, staff: TaskGroup) -> None:
        """Starts workers for jobs that nobody takes, as far as the concurrency of now allows."""
        wanting = self._jobs.wanting
        if not wanting:
            return
        for _ in range(min(wanting, self._may_hire())):
            self._workers += 1
            staff.start_soon(self._worker)

    async def _hire_later(self, staff: TaskGroup) -> None:
        """While jobs wait for a worker the reason not to hire one may pass."""
        while True:
            with anyio.move_on_after(HIRE_EVERY_S):
                await self._all_taken.wait()
                return
            self._hire(staff)

    def _may_hire(self) -> int:
        """How many more workers the concurrency of now allows."""
        admission = self.bench.admission
        missing = BACKOFF_ROOM * admission.limit + 1 - self._workers
        if missing > 0:
            return missing
        # All of them may wait for one slow model, while the jobs of a fast one stand behind them in the file.
        more = self._workers < MAX_WAITING_JOBS and self._held_bytes < MAX_WAITING_BYTES
        return int(more and admission.room_for_others)

    # ── Workers ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def _worker(self) -> None:
        while (job := await self._jobs.take()) is not None and not self.drain.asked:
            self._held_bytes += job.size_bytes
            try:
                await run_job(self.bench, job)
            except AdmissionClosed:
                continue  # the run drains: the job stays for the next one
            except StopRun as stop:
                self._stopped(stop)
            finally:
                self._held_bytes -= job.size_bytes
            self._check_limits()

    def _stopped(self, stop: StopRun) -> None:
        text = f"{stop.fault.kind.value}: {self.bench.redactor.redact(stop.fault.message)}"
        if stop.only is None:
            self.drain.ask(4, text)
        else:
            self.drain.note(4, f"no endpoint is left for {stop.only}: {text}")

    def _check_limits(self) -> None:
        if not self._has_limits:
            return
        settings, metrics = self.bench.settings, self.bench.metrics
        if settings.max_failures is not None and metrics.failed >= settings.max_failures:
            self.drain.ask(4, f"{metrics.failed} jobs failed (--max-failures {settings.max_failures})")
        if settings.max_cost is not None and metrics.unpriced:
            self.drain.ask(4, COST_UNKNOWN)
        if settings.max_cost is not None and metrics.cost >= settings.max_cost:
            self.drain.ask(4, f"{metrics.cost:,.4f} spent (--max-cost {settings.max_cost:g})")

    # ── Reasons to stop ──────────────────────────────────────────────────────────────────────────────────────────

    def _asked_to_stop(self, number: signal.Signals) -> None:
        self.drain.ask(128 + number, number.name)
        in_flight = self.bench.admission.statistics().in_flight
        grace = self.bench.settings.grace
        self.notify(f"{number.name}: {in_flight} in flight may finish within {grace:g} s; once more to stop at once")

    async def _deadline(self, seconds: float) -> None:
        await anyio.sleep(seconds)
        self.drain.ask(4, f"--deadline {seconds:g} s is over")
