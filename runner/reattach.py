"""A job whose answer goes on at the server when the connection breaks: it is re-attached to, and not paid twice.

Steps: the first request is a POST, unless an earlier run began a response for the same job; what fails without the
response failing (`background`) is followed by a GET, which goes on behind the last event and feeds the same
accumulator. So the text in deltas.jsonl goes on too, under the attempt with which it began, without a void. What isn't
streamed is asked for again and again until it is finished, through the same limits, without a slot in between.

A GET takes a slot and a request of the limits, and no tokens; it goes to the endpoint that has the response. Every
POST and every GET that follows a failure or a restart is an attempt; what asks a healthy response whether it is
finished is counted apart, as `polls` in the record: the requests that the server saw are attempts + polls.

Accepted: a response is lost, and paid for again, when the process is killed before its id is in deltas.jsonl
(DELTA_FLUSH_S after it came), and without deltas when the run ends. Nothing is ever cancelled at the server.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any, Final

import anyio

from runner import accumulate
from runner.attempt import Attempted, Continuation
from runner.background import Known, Stored, Text, Verdict, id_of, verdict_on
from runner.deltas import Delta, DeltaKind, Texts
from runner.earlier import EarlierDeltas, marks
from runner.faults import Fault, FaultKind
from runner.jobs import Job
from runner.outcome import Completed, Failed, Outcome, Usage
from runner.retries import BACKOFF_BASE_S, AttemptFailed
from runner.tickets import AllDisabled, Need, Ticket
from runner.worker import Bench, JobRun

POLL_FIRST_S: Final = 2.0
"""How long a response that isn't streamed is left alone at first; half as long again each time…"""
POLL_MOST_S: Final = 30.0
"""…up to this: of an answer that takes minutes, it is known soon enough."""
_NOTHING: Final = Usage(0, 0)


class BackgroundRun(JobRun):
    """One background job through its attempts."""

    def __init__(self, bench: Bench, job: Job) -> None:
        super().__init__(bench, job)
        self._known: Known | None = None
        """The response that the next request asks for; None: it is a POST."""
        self._asked: Known | None = None
        """…and the last one asked for."""
        self._text = Text()
        self._begun_s = time.monotonic()
        """When the request was sent that began the text."""
        self._asked_after: int | None = None
        self._offset_s = 0.0
        """From then to when the last one was sent."""
        self._marked = False
        """Whether deltas.jsonl names the response of the text."""
        self._polling = False
        self._polls = 0

    # ── What an earlier run left ─────────────────────────────────────────────────────────────────────────────────

    async def _look_back(self) -> None:
        """Finds the response that an earlier run began for this job."""
        bench = self._bench
        if not isinstance(bench.resumed, EarlierDeltas):
            return
        found = await bench.resumed.of(self._job)
        if found is None or found.endpoint not in bench.clients:
            return
        self._known = Known(found.id, found.endpoint, in_one_piece=not self._job.stream)
        self._marked = not self._job.stream
        if found.stored is not None:
            self._take_up(self._known, found.attempt, found.stored)

    def _take_up(self, known: Known, attempt: int, stored: Stored) -> None:
        """Goes on with a text where deltas.jsonl ends."""
        if stored.finish not in (None, "completed"):
            self._known = None  # it ended, and its record, if it had one, was put aside: it isn't wanted
            return
        self._text, self._text_attempt, self._marked = stored.text, attempt, True
        self._lines.begin(attempt, stored.seq)
        self._begun_s = time.monotonic() - stored.text.t_s
        known.in_one_piece = stored.finish is not None
        known.answer = stored.answer
        if self._bench.echo is not None and stored.said:
            self._bench.echo.text(self._job.id, stored.said)

    # ── Attempts ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def _attempts(self) -> Outcome:
        """Attempts that brought more of the text don't use up --max-attempts: what is paid for is fetched."""
        while True:
            before = self._text.chunks
            outcome = await super()._attempts()
            known = self._known
            if known is None or known.answer is None or self._text.chunks <= before or isinstance(outcome, Completed):
                return outcome
            if self._bench.settings.max_attempts == 1 or not outcome.fault.retry:
                return outcome
            await self._bench.sleep(self._bench.rng.uniform(0.0, BACKOFF_BASE_S))

    async def _attempt(self) -> Completed:
        if self._last is None:
            await self._look_back()
        else:
            self._note_retry(self._last)
        attempted = await self._request()
        if attempted.pending is not None:
            attempted = await self._finished()
        outcome = attempted.outcome
        if isinstance(outcome, Failed):
            raise AttemptFailed(outcome.fault, elsewhere=self._elsewhere)
        return outcome

    async def _finished(self) -> Attempted:
        """Asks for the response until it is finished, or the attempt's time is over."""
        total_s = self._bench.settings.total_timeout
        pause_s, give_up_s = POLL_FIRST_S, anyio.current_time() + (float("inf") if total_s is None else total_s)
        self._polling = True
        try:
            while (attempted := self._last) is not None and attempted.pending is not None:
                if anyio.current_time() + pause_s > give_up_s:
                    attempted.outcome = Failed(Fault(FaultKind.TOTAL_TIMEOUT, f"unfinished after {total_s:g} s"))
                    break
                await self._bench.sleep(pause_s)
                pause_s = min(1.5 * pause_s, POLL_MOST_S)
                await self._request()
        finally:
            self._polling = False
        assert attempted is not None
        return attempted

    async def _acquire(self) -> Ticket:
        known, bench = self._known, self._bench
        if known is not None and len(bench.clients) == 1:
            return await bench.admission.acquire(self._history.model, Need(0, 0))
        if known is not None:
            try:
                return await bench.admission.acquire(self._history.model, Need(0, 0), only=known.endpoint)
            except AllDisabled:
                self._known = None  # nobody can ask for it any more
        return await super()._acquire()

    def _admitted(self, ticket: Ticket) -> None:
        history = self._history
        if self._polling:
            history.limiter_wait_s += ticket.limiter_wait_s
            self._polls += 1
            return
        before = history.queue_s, history.started
        super()._admitted(ticket)
        if self._known is not None and history.attempts > 1:
            history.queue_s, history.started = before  # the answer's, which began then

    def _used(self, attempted: Attempted) -> Usage | None:
        """The POST was charged for the answer."""
        return super()._used(attempted) if self._asked is None else _NOTHING

    def _continuation(self, ticket: Ticket) -> Continuation | None:
        known = self._asked = self._known
        self._asked_after = self._text.last
        if known is None:
            return None
        get = self._bench.clients[ticket.endpoint.name].get
        if self._goes_on:
            self._offset_s = time.monotonic() - self._begun_s
        if known.in_one_piece:
            return Continuation(partial(get, known.id, stream=False), None)
        answer, text = known.answer, self._text
        if answer is None:
            return Continuation(partial(get, known.id, stream=True), accumulate.for_stream(self._job.api))
        follow = partial(get, known.id, stream=True, after=text.last)
        return Continuation(follow, answer, text.chunks, text.chars)

    def _concluded(self, ticket: Ticket, attempted: Attempted) -> None:
        super()._concluded(ticket, attempted)
        if attempted.pending is not None:
            self._take_pending(attempted.pending)
            return
        attempted.duration_s += self._offset_s
        if self._text.chunks:
            attempted.chunks, attempted.ttft_s, attempted.gaps = self._text.chunks, self._text.ttft_s, self._text.gaps
        if isinstance(attempted.outcome, Failed) and self._known is not None:
            self._judge(self._known, attempted, attempted.outcome)

    def _take_pending(self, shown: dict[str, Any]) -> None:
        """An answer in one piece says that it isn't finished; its id goes into deltas.jsonl like a stream's."""
        if not self._marked:
            self.delta(Delta(DeltaKind.EMPTY, {"type": f"response.{shown['status']}", "response": shown}), 0.0)
        if self._known is not None:
            self._known.in_one_piece = True

    def _judge(self, known: Known, attempted: Attempted, outcome: Failed) -> None:
        """What becomes of the response that this request failed to get."""
        fault, answer, text = outcome.fault, attempted.answer, self._text
        stuck = text.last == self._asked_after
        verdict = verdict_on(fault, known, asked_for=self._asked is not None, stuck=stuck)
        if verdict is Verdict.KEEP:
            placed = text.ordered and text.last is not None and answer is not None and not answer.ended
            known.answer = answer if placed else None
            text.cut()
        elif verdict is Verdict.AFRESH:
            known.answer, known.garbled = None, True
        elif verdict is Verdict.UNSTREAMED:
            known.in_one_piece = True
        else:
            self._known = None
        if verdict in (Verdict.GONE, Verdict.UNSTREAMED):
            message = f"the response can't be gone on with: {fault.message}"
            mended = replace(fault, kind=FaultKind.TRUNCATED, message=message, should_retry=True)
            attempted.outcome = replace(outcome, fault=mended)

    # ── Deltas and the record ────────────────────────────────────────────────────────────────────────────────────

    @property
    def _goes_on(self) -> bool:
        """Whether the next request adds to the text that is there; what isn't streamed has none."""
        known = self._known
        return known is not None and (known.answer is not None or known.in_one_piece)

    def _void_if_repeated(self) -> None:
        if self._goes_on:
            return
        self._text, self._marked, self._offset_s = Text(), False, 0.0
        self._begun_s = time.monotonic()
        super()._void_if_repeated()

    def delta(self, delta: Delta, t_s: float) -> None:
        """See `JobRun`. The first line that names the response says for whom it was made, and where."""
        t_s += self._offset_s
        self._text.note(delta, t_s)
        name = None if self._marked else id_of(delta.payload.get("response"))
        if name is None:
            super().delta(delta, t_s)
            return
        assert self._ticket is not None
        endpoint = self._ticket.endpoint.name
        if self._known is None or self._known.id != name:
            self._known = Known(name, endpoint)
        self._marked = True
        with self._lines.marked(marks(self._job, endpoint)):
            super().delta(delta, t_s)
        self._bench.journal.hurry()

    def texts(self, texts: Texts) -> None:
        """See `JobRun`."""
        for after_ns, delta in zip(texts.after_ns, texts.deltas, strict=True):
            self.delta(delta, after_ns / 1e9)

    def _record(self, outcome: Outcome) -> dict[str, Any]:
        record = super()._record(outcome)
        if self._polls:
            record["runner"]["polls"] = self._polls
        return record
