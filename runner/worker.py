"""One job through its attempts, to its one final record.

Steps: estimate its tokens; then, under tenacity, admission → encode the body → attempt → settle, with the backoff
outside the concurrency slot; then the record, acknowledged by the journal before the job counts as finished.

A job has no record when the run was told to stop before it ended, or when it met a fault that stops the run (no quota,
bad key): the next run of the same command does it.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from runner import ratelimits, records, tokens
from runner.admission import Admission
from runner.attempt import Attempted, Continuation, run_attempt
from runner.background import is_background
from runner.client import Client
from runner.costs import cost_of
from runner.deadlines import Deadlines
from runner.delta_lines import DeltaLines
from runner.deltas import Delta, Texts
from runner.earlier import EarlierDeltas
from runner.endpoints import Endpoint
from runner.errors import OutputError
from runner.faults import Fault, FaultKind
from runner.jobs import Job
from runner.journal import Journal
from runner.limits import CHUNKS_AT_ONCE
from runner.metrics import RunMetrics
from runner.outcome import Completed, Failed, Outcome, Usage
from runner.primers import Primers
from runner.progress import Echo
from runner.records import History, Retry
from runner.redact import Redactor
from runner.reservation import Reservation
from runner.retries import AttemptFailed, retrying
from runner.settings import Settings
from runner.tickets import AdmissionClosed, AllDisabled, Need, NeverFits, NotServed, Ticket
from runner.transport import ResponseBody
from runner.wire import choices_of, encode_body

log = logging.getLogger(__name__)


class StopRun(Exception):
    """Raised when a job met a fault that no other job could escape; the run drains.

    `only`: it holds for the jobs of one model; what other endpoints serve goes on.
    """

    def __init__(self, fault: Fault, *, only: str | None = None) -> None:
        super().__init__(fault.message)
        self.fault = fault
        self.only = only


Account = Callable[[dict[str, Any], History, Attempted | None, Outcome], None]


@dataclass(slots=True)
class Bench:
    """What every worker shares: the parts of one run."""

    settings: Settings
    clients: Mapping[str, Client]
    """By the endpoint's name."""
    admission: Admission
    journal: Journal
    metrics: RunMetrics
    redactor: Redactor
    reservation: Reservation
    rng: random.Random
    sleep: Callable[[float], Awaitable[None]]
    """Sleeps a backoff; raises when the run drains."""
    notify: Callable[[str], None] = lambda text: None
    """Tells the user something at once."""
    primers: Primers | None = None
    """Where jobs wait for the one that primes the cache; None: nobody does."""
    echo: Echo | None = None
    account: Account | None = None
    """A load test's own look at every job that has ended; it may add to the record."""
    moment: Callable[[Job], Awaitable[None]] | None = None
    """A load test's: returns when a job's request is to be sent; it has been made by then."""
    resumed: EarlierDeltas | bool | None = False
    """The deltas of an earlier run, or whether there are some: a job's first attempt then voids what it left."""
    deadlines: Deadlines = field(init=False)

    def __post_init__(self) -> None:
        given = self.settings
        self.deadlines = Deadlines(given.first_token_timeout, given.idle_timeout, given.total_timeout)


def run_job(bench: Bench, job: Job) -> Coroutine[Any, Any, None]:
    """Runs one job to its final record.

    Raises:
        StopRun: no other job could succeed either; this one has no record.
        AdmissionClosed: the run drains; this job has no record.
        OutputError: the record could not be written.
    """
    if is_background(job):
        from runner.reattach import BackgroundRun  # made of what is below

        return BackgroundRun(bench, job).run()
    return JobRun(bench, job).run()


class JobRun:
    """The state of one job between its attempts. It is also the sink of its attempts' deltas."""

    _need: Need

    def __init__(self, bench: Bench, job: Job) -> None:
        self._bench = bench
        self._job = job
        settings = bench.settings
        self._service_tier: str | None = None
        """Another than the line's, once its own had no room."""
        self._ticket: Ticket | None = None
        model = job.body.get("model", settings.model)
        self._history = History(model if isinstance(model, str) else None)
        key = job.body.get("prompt_cache_key")
        self._cache_key = key if isinstance(key, str) else None
        self._primes = False  # others wait for its answer to begin
        self._read_at = time.monotonic()
        self._last: Attempted | None = None
        self._elsewhere = False  # the last attempt failed in a way that rules out its endpoint alone
        self._uncounted = 0  # chunks with content that admission hasn't been told of
        self._lines = DeltaLines(bench.journal, job.id, keeps=settings.deltas)
        self._text_attempt = 0
        """The attempt under which its text stands in deltas.jsonl."""

    async def run(self) -> None:
        """The job's way, start to end."""
        try:
            self._prepare()
            primers, key = self._bench.primers, self._cache_key
            outcome = await (self._attempts() if primers is None or key is None else self._primed(primers, key))
        except (AdmissionClosed, OutputError):
            raise
        except Exception as error:  # a defect of ours in one job must not take the others with it
            log.exception("internal error", extra={"job": self._job.id})
            outcome = Failed(Fault(FaultKind.INTERNAL, f"{type(error).__name__}: {error}"))
        if isinstance(outcome, Failed) and outcome.fault.row.stops_run:
            raise StopRun(outcome.fault, only=self._history.model if self._bench.admission.usable else None)
        await self._finish(outcome)

    def _prepare(self) -> None:
        default = self._bench.reservation.output_tokens(self._history.model)
        self._need, _ = tokens.estimate(self._job, default_output_tokens=default)

    async def _primed(self, primers: Primers, key: str) -> Outcome:
        """Its attempts, after those of the job that primes the server's cache for it."""
        self._primes = await primers.wait(key)
        try:
            return await self._attempts()
        finally:
            if self._primes:
                primers.ended(key)

    # ── Attempts ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _attempts(self) -> Outcome:
        bench = self._bench
        try:
            return await retrying(self._attempt, bench.settings.max_attempts, rng=bench.rng, sleep=bench.sleep)
        except AttemptFailed:
            assert self._last is not None
            return self._last.outcome
        except AllDisabled as error:
            return Failed(error.fault)
        except NeverFits as error:
            return Failed(Fault(FaultKind.NEVER_FITS, str(error)))
        except NotServed as error:
            return Failed(Fault(FaultKind.NOT_SERVED, str(error)))

    async def _attempt(self) -> Completed:
        if self._last is not None:
            self._note_retry(self._last)
        outcome = (await self._request()).outcome
        if isinstance(outcome, Failed):
            raise AttemptFailed(outcome.fault, elsewhere=self._elsewhere)
        return outcome

    async def _request(self) -> Attempted:
        """One request: admitted, sent, paid."""
        bench = self._bench
        ticket = self._ticket = await self._acquire()
        endpoint, model = ticket.endpoint, self._history.model
        self._history.endpoint = endpoint.name
        used: Usage | None = None
        try:
            self._admitted(ticket)
            renamed = endpoint.name_of(model)
            content = self._content(endpoint, renamed)
            if bench.moment is not None:
                await bench.moment(self._job)
            attempted = await run_attempt(
                bench.clients[endpoint.name].serving(renamed or model),
                self._job,
                content,
                choices=choices_of(self._job),
                deadlines=bench.deadlines,
                sink=self,
                on_headers=self._headers_came,
                continuation=self._continuation(ticket),
            )
            self._concluded(ticket, attempted)
            self._last = attempted
            used = self._used(attempted)
        finally:
            bench.admission.settle(ticket, used)
            bench.admission.release(ticket)
        return attempted

    def _acquire(self) -> Awaitable[Ticket]:
        before, admission = self._ticket, self._bench.admission
        avoid = before.endpoint if before else None
        return admission.acquire(self._history.model, self._need, key=self._cache_key, avoid=avoid, again=before)

    def _admitted(self, ticket: Ticket) -> None:
        history = self._history
        history.queue_s = time.monotonic() - self._read_at
        history.admitted_s = ticket.granted_s
        history.limiter_wait_s += ticket.limiter_wait_s
        history.attempts += 1
        history.started = datetime.now(UTC)
        self._void_if_repeated()

    def _used(self, attempted: Attempted) -> Usage | None:
        """What the request cost of the limits, where the server said so."""
        return attempted.outcome.usage

    def _continuation(self, ticket: Ticket) -> Continuation | None:
        """What to ask for in the place of a POST."""
        return None

    def _content(self, endpoint: Endpoint, renamed: str | None) -> bytes:
        """The body as this endpoint is to get it."""
        settings = self._bench.settings
        return encode_body(
            self._job,
            model=settings.model,
            stream_options=endpoint.stream_options or settings.stream_options,
            renamed=renamed,
            service_tier=self._service_tier,
        )

    def _concluded(self, ticket: Ticket, attempted: Attempted) -> None:
        """What its end means for those that come after it."""
        outcome = attempted.outcome
        fault = outcome.fault if isinstance(outcome, Failed) and attempted.pending is None else None
        self._bench.admission.concluded(ticket, fault)
        if fault is not None:
            self._failed(ticket, fault)
            return
        self._uncounted += not attempted.chunks  # an answer that came as a whole counts as one
        if self._uncounted:
            self._count_chunks(ticket)
        if self._primes:
            self._answer_begins()

    def _headers_came(self, answer: ResponseBody) -> None:
        assert self._ticket is not None
        self._bench.admission.answered(self._ticket, ratelimits.of_raw(answer.headers))

    def _failed(self, ticket: Ticket, fault: Fault) -> None:
        bench = self._bench
        log.info("attempt failed", extra={"job": self._job.id, "fault": fault.kind.value, "status": fault.status})
        bench.metrics.attempt_failed(fault.kind.value)
        if fault.is_shared:  # an overload is for `concluded`
            bench.admission.throttled(ticket, fault.limits, fault.retry_after_s, ramp=fault.kind is FaultKind.SLOW_DOWN)
        tier = self._job.body.get("service_tier")
        if fault.kind is FaultKind.CAPACITY and bench.settings.flex_fallback and tier == "flex":
            self._service_tier = "default"
        self._elsewhere = fault.row.stops_run and self._disabled(ticket.endpoint, fault)

    def _disabled(self, endpoint: Endpoint, fault: Fault) -> bool:
        """Puts an endpoint out of use that no job can use; True if there is another for this one."""
        bench = self._bench
        first, message = not endpoint.disabled, bench.redactor.redact(fault.message)
        others = bench.admission.disable(endpoint, fault, self._history.model)
        if first and len(bench.clients) > 1:
            log.warning("endpoint disabled", extra={"endpoint": endpoint.name, "fault": fault.kind.value})
            bench.notify(f"endpoint {endpoint.name} is out of use: {fault.kind.value}: {message}")
        return others

    def _note_retry(self, attempted: Attempted) -> None:
        outcome = attempted.outcome
        assert isinstance(outcome, Failed)
        fault = outcome.fault
        message = self._bench.redactor.redact(fault.message)
        self._history.retries.append(
            Retry(self._history.attempts, fault.kind.value, message, fault.status, self._history.endpoint)
        )

    # ── Deltas ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _void_if_repeated(self) -> None:
        """Says in deltas.jsonl that what stands there of this job's text is void."""
        history = self._history
        before, self._text_attempt = self._text_attempt, history.attempts
        self._lines.begin(history.attempts)
        if history.retries:
            reason = history.retries[-1].reason
        elif self._bench.resumed:
            before, reason = 0, "resumed"  # an interrupted run may have left half an answer under the same number
        else:
            return
        self._lines.void(before, reason)
        if self._bench.echo is not None:
            self._bench.echo.void(self._job.id, reason)

    def delta(self, delta: Delta, t_s: float) -> None:
        """One line of deltas.jsonl; part of the attempt's sink."""
        self._lines.add(delta, t_s)
        if delta.kind.is_content:
            self._count(1)
            if self._primes:
                self._answer_begins()
        # Of several choices the first is echoed: side by side their words would make no sense.
        if self._bench.echo is not None and delta.text and not delta.payload.get("index"):
            self._bench.echo.text(self._job.id, delta.text)

    def texts(self, texts: Texts) -> None:
        """Lines of deltas.jsonl; part of the attempt's sink."""
        self._lines.add_texts(texts)
        self._count(len(texts.texts))
        if self._bench.echo is not None and not texts.first.payload.get("index"):
            self._bench.echo.text(self._job.id, "".join(texts.texts))

    def _count(self, chunks: int) -> None:
        """Counts chunks with content."""
        ticket = self._ticket
        assert ticket is not None
        self._bench.metrics.chunks += chunks
        self._uncounted += chunks
        if self._uncounted >= CHUNKS_AT_ONCE or not ticket.accepted:
            self._count_chunks(ticket)

    def _count_chunks(self, ticket: Ticket) -> None:
        self._bench.admission.received(ticket, self._uncounted)
        self._uncounted = 0

    def _answer_begins(self) -> None:
        assert self._bench.primers is not None
        assert self._cache_key is not None
        self._bench.primers.begun(self._cache_key)

    @property
    def is_live(self) -> bool:
        """Whether somebody looks on; part of the attempt's sink."""
        return self._bench.echo is not None

    @property
    def has_room(self) -> bool:
        """Whether the disk keeps up; part of the attempt's sink."""
        return self._bench.journal.has_room

    async def room(self) -> None:
        """Waits while the disk is behind; part of the attempt's sink."""
        await self._bench.journal.room()

    # ── The record ───────────────────────────────────────────────────────────────────────────────────────────────

    async def _finish(self, outcome: Outcome) -> None:
        bench = self._bench
        try:
            record = self._record(outcome)
            if bench.account is not None:
                bench.account(record, self._history, self._last, outcome)
            line = records.record_line(record)
        except Exception as error:  # as in `run`: an answer that we can't write down is this job's failure alone
            log.exception("internal error", extra={"job": self._job.id})
            fault = Fault(FaultKind.INTERNAL, f"the record can't be written: {type(error).__name__}: {error}")
            record = self._record(Failed(fault))
            line = records.record_line(record)
        await bench.journal.finish(line)
        bench.metrics.record(record)
        if bench.echo is not None:
            bench.echo.end(self._job.id)

    def _record(self, outcome: Outcome) -> dict[str, Any]:
        bench, history = self._bench, self._history
        answer: dict[str, Any] = {}
        unwanted: Fault | None = None
        if isinstance(outcome, Completed):
            answer, unwanted = outcome.body, self._unwanted(outcome.finish)
            if self._need.guessed and outcome.usage is not None:
                bench.reservation.observe(history.model, outcome.usage.output_tokens // self._need.guessed)
        model = answer.get("model") or history.model
        cost = cost_of(outcome.usage, model, bench.settings.prices, tier=answer.get("service_tier"))
        record = records.of_job(self._job, history, self._last, outcome, cost=cost, unwanted=unwanted)
        if isinstance(outcome, Failed):
            # A server may echo the key in an error. An answer is left as it is: nothing of ours is in it.
            for key in ("error", "response"):
                record[key] = bench.redactor.redact_json(record[key])
        return record

    def _unwanted(self, finish: str) -> Fault | None:
        """The fault that --fail-on makes of this finish; "incomplete" covers "incomplete:<reason>"."""
        unwanted = self._bench.settings.fail_on
        if unwanted and {finish, finish.partition(":")[0], finish.partition(":")[2]} & unwanted:
            return Fault(FaultKind.UNWANTED_FINISH, f"the answer ended with {finish}")
        return None
