"""One process of a load test: what it sends with, for all of its levels.

The parts are a run's: clients, admission, `run_job` with its attempt, its record and its journal; only who asks for
jobs is another. The engine lives as long as the test, so that connections and limits outlast a level, and tells the
caller how every request went.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio

from runner import resources, tokens
from runner.admission import Admission
from runner.attempt import Attempted
from runner.costs import COST_UNKNOWN
from runner.drain import Drain
from runner.files import OsFiles
from runner.jobs import Job
from runner.limits import MAX_CONCURRENCY
from runner.load.budget import Budget
from runner.load.free import FreeAdmission
from runner.load.ledger import Ledger
from runner.load.pacer import Pacer
from runner.load.samples import RequestSample
from runner.load.stamps import counted, moments, sample_of, text_of
from runner.metrics import RunMetrics
from runner.outcome import Completed, Outcome
from runner.records import History
from runner.redact import Redactor
from runner.reservation import Reservation
from runner.settings import Settings
from runner.target import Target
from runner.tickets import AdmissionClosed
from runner.wiring import admission_of, clients_of
from runner.worker import Bench, StopRun, run_job

LEAD_S: Final = 0.01
"""Two requests a millisecond apart would be sent as far apart as it takes to make one, half a millisecond: requests are
made before their moment, and then only sent."""


class Request(NamedTuple):
    """One request that a level asks for."""

    job: Job
    scheduled: float | None  # seconds since the level's start; None in a closed loop
    wants_text: bool = False  # the next turn needs the answer


class Answer(NamedTuple):
    """How it went."""

    sample: RequestSample
    text: str | None = None  # of an answer that was wanted; None: there is none


@dataclass(slots=True)
class _Open:
    """A request that is on its way."""

    request: Request
    level: dict[str, Any]
    """What its record says of where it belongs."""
    zero_s: float
    asked_s: float
    """When it was asked for or, where that is later, its moment; since the level's start."""
    begun_s: float | None = None
    """When its last attempt did, since the level's start."""
    answer: Answer | None = None


class _NeverDue(AdmissionClosed):
    """Raised to a request that was made ready when the test was stopped before its moment."""


class Engine:
    """See the module. `redactor` knows the keys of the targets; `spent` is what earlier starts did."""

    def __init__(
        self, settings: Settings, targets: Sequence[Target], folder: Path, redactor: Redactor, *, spent: float = 0.0
    ) -> None:
        self._admission = _door(settings, targets)
        self._clients = clients_of(targets, settings)
        self._ledger = Ledger(OsFiles(), folder, deltas=settings.deltas, streams=MAX_CONCURRENCY)
        self._open: dict[str, _Open] = {}
        self.early = 0
        """Requests that are ready and wait for their moment."""
        self._budget = Budget(settings.max_cost, spent)
        self.pacer = Pacer()
        self.metrics = RunMetrics(time.monotonic, total=None)
        self.drain = Drain(self._admission, settings.grace)
        self._bench = Bench(
            settings=settings,
            clients=self._clients,
            admission=self._admission,
            journal=self._ledger,
            metrics=self.metrics,
            redactor=redactor,
            reservation=Reservation(settings.reserve_output_tokens),
            rng=random.Random(settings.seed),
            sleep=self.drain.sleep,
            account=self._account,
            moment=self._moment,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Its services, and at the end everything closed."""
        try:
            async with self._ledger.opened(), anyio.create_task_group() as services:
                services.start_soon(self._admission.run)
                with resources.quiet_collector():
                    yield
                services.cancel_scope.cancel()
        finally:
            self.pacer.close()
            with anyio.CancelScope(shield=True):
                for client in self._clients.values():
                    await client.aclose()

    @property
    def grace_s(self) -> float:
        """How long requests on their way may go on after a stop."""
        return self._bench.settings.grace

    @property
    def waiting(self) -> int:
        """How many requests wait for the user's own limits."""
        return self._admission.statistics().waiting

    @property
    def is_stopped(self) -> bool:
        """Whether the test is to send nothing more."""
        return self.drain.asked

    @property
    def lead_s(self) -> float:
        """How long before its moment a request is to be handed to `send`."""
        return LEAD_S

    def clock(self) -> float:
        """The clock of all stamps."""
        return time.monotonic()

    async def stopped(self) -> None:
        """Returns when the test is to send nothing more."""
        await self.drain.wait()

    async def send(self, request: Request, level: dict[str, Any], zero_s: float) -> Answer | None:
        """Sends one request, where it has a moment not before that, and reads its answer.

        `zero_s` is when its level began, on the monotonic clock.

        Never raises for what became of it. One that still waited for limits when the test was stopped counts as
        waiting; one that is cancelled is in flight. None: the test was stopped before its moment, so that it was never
        due.
        """
        name = request.job.id
        began = max(time.monotonic() - zero_s, request.scheduled or 0.0)
        on_its_way = self._open[name] = _Open(request, level, zero_s, began)
        kind = None
        try:
            await run_job(self._bench, request.job)
        except _NeverDue:
            return None
        except AdmissionClosed:
            waits = RequestSample(scheduled=request.scheduled, asked=began, waiting=True)
            return Answer(waits) if self.clock() - zero_s >= began else None
        except StopRun as stop:
            kind = stop.fault.kind.value
            self.drain.ask(4, f"{kind}: {self._bench.redactor.redact(stop.fault.message)}")
        finally:
            del self._open[name]
        self._check_cost()
        if on_its_way.answer is None:
            # No account came: it met what stops the test, or a defect of ours.
            now = time.monotonic() - zero_s
            if now < began:  # stopped before its moment, too
                return None
            sent = began if on_its_way.begun_s is None else on_its_way.begun_s
            return Answer(RequestSample(request.scheduled, sent, sent, end=now, fault=kind or "internal"))
        return on_its_way.answer

    async def _moment(self, job: Job) -> None:
        """Waits for a request's moment; a repeated attempt's has passed.

        Raises:
            _NeverDue: the test was stopped meanwhile.
        """
        found = self._open[job.id]
        due_s = found.zero_s + (found.request.scheduled or 0.0)
        if self.clock() < due_s:
            self.early += 1
            try:
                await self.pacer.until(due_s)
            finally:
                self.early -= 1
            if self.drain.asked:
                raise _NeverDue
        found.begun_s = self.clock() - found.zero_s

    def _account(self, record: dict[str, Any], history: History, attempted: Attempted | None, outcome: Outcome) -> None:
        """Every request that has its record."""
        found = self._open[record["id"]]
        sample = sample_of(
            history,
            attempted,
            outcome,
            ok=record["error"] is None,
            zero_s=found.zero_s,
            scheduled=found.request.scheduled,
            by_tokenizer=counted(outcome, _count),
        )
        if sample.due is None:  # never sent: without a time it would leave goodput by the back door
            sample = replace(sample, asked=found.asked_s)
        wanted = found.request.wants_text and isinstance(outcome, Completed) and sample.ok
        found.answer = Answer(sample, text_of(outcome.body) if wanted and isinstance(outcome, Completed) else None)
        record["runner"]["limiter_wait_s"] = round(sample.limiter_wait_s, 6)
        record["runner"]["load"] = {**found.level, **moments(sample)}

    def _check_cost(self) -> None:
        if self._budget.limit is not None and self.metrics.unpriced:
            self.drain.ask(4, COST_UNKNOWN)
        elif (overdrawn := self._budget.overdrawn(self.metrics.cost)) is not None:
            self.drain.ask(4, overdrawn)


def has_limits(settings: Settings) -> bool:
    """Whether the user gave any that are to be kept."""
    of_endpoints = any(each.rpm or each.tpm or each.limits or each.concurrency for each in settings.endpoints)
    return bool(settings.rpm or settings.tpm or settings.limits or of_endpoints)


def _door(settings: Settings, targets: Sequence[Target]) -> Admission:
    """A load test's concurrency is its levels'; limits are kept where the user gave some."""
    settings = settings.model_copy(update={"concurrency": MAX_CONCURRENCY})
    return admission_of(settings, targets, Admission if has_limits(settings) else FreeAdmission)


def _count(job: Job) -> int:
    counted_tokens = tokens.estimate(job, default_output_tokens=0)[0].input_tokens - tokens.PRIMING_TOKENS
    return max(0, counted_tokens)
