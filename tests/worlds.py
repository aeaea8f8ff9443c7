"""Servers that refuse for reasons of every kind, and loads on them, in virtual time.

A world is a real admission with real retries, and a server that counts what it serves and refuses. What admission finds
out about the server is seen by that count alone.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import anyio

from runner.admission import Admission
from runner.concurrency import AdaptiveConcurrency, FixedConcurrency
from runner.faults import Fault, FaultKind
from runner.outcome import Usage
from runner.ratelimits import UNKNOWN, Allowance, RateLimits
from runner.retries import AttemptFailed, retrying
from runner.settings import ModelLimits
from runner.testing.virtual_time import run_virtual
from runner.tickets import Need, Ticket

LIMITED: Final = Fault(FaultKind.RATE_LIMITED, "429", status=429, retry_after_s=1.0)
OVERLOADED: Final = Fault(FaultKind.OVERLOADED, "529", status=529)
UNAVAILABLE: Final = Fault(FaultKind.SERVER_ERROR, "503", status=503)
KINDS: Final = {"429": replace(LIMITED, retry_after_s=None), "529": OVERLOADED, "503": UNAVAILABLE}

NEVER: Final = 1e12
"""A limit that nobody reaches."""


def about(seconds: float, jitter: float = 0.5) -> tuple[float, float]:
    """From so much less to so much more."""
    return (1 - jitter) * seconds, (1 + jitter) * seconds


@dataclass
class Server:
    """Refuses above a rate, above so many at once, by chance, or for a while.

    It charges the tokens that are asked for, gives nothing back, and saves up one second's worth of what it allows.
    """

    rpm: float = NEVER
    tpm: float = NEVER
    headers: bool = False
    minute_style: bool = True
    """Whether `remaining` counts down from the limit of a minute, as the API's does, or from what it has saved up."""
    refusal: Fault = LIMITED
    at_once: float = math.inf
    chance: float = 0.0
    storm: tuple[float, float] = (0.0, 0.0)
    """Everything is refused from then till then."""
    first: bool = False
    """Whether the first attempt of every job is refused."""
    saves_s: float = 1.0
    seed: int = 1
    serving: int = 0
    most: int = 0
    good: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._at = 0.0
        self._level = [self.saves_s / 60 * self.rpm, self.saves_s / 60 * self.tpm]

    def limit(self, rpm: float) -> None:
        """Allows so many from now on."""
        self.rpm = rpm
        self._level[0] = min(self._level[0], self.saves_s / 60 * rpm)

    def take(self, tokens: int = 0, attempt: int = 0) -> bool:
        """Whether it serves this request."""
        now = asyncio.get_running_loop().time()
        ok = (
            self._rng.random() >= self.chance
            and self.serving < self.at_once
            and self.has_room(now, tokens)
            and not self.storm[0] <= now < self.storm[1]
            and not (self.first and attempt == 0)
        )
        if ok:
            self.charge(now, tokens)
        (self.good if ok else self.refused).append(now)
        return ok

    def has_room(self, now: float, tokens: int) -> bool:
        """Whether its limits allow this request."""
        for i, per_minute in enumerate((self.rpm, self.tpm)):
            saved = self.saves_s / 60 * per_minute
            self._level[i] = min(saved, self._level[i] + (now - self._at) * per_minute / 60)
        self._at = now
        return self._level[0] >= 1 and self._level[1] >= min(tokens, self.saves_s / 60 * self.tpm)

    def charge(self, now: float, tokens: int) -> None:
        """Counts what it serves."""
        self._level[0] -= 1
        self._level[1] -= tokens

    def says(self) -> RateLimits:
        """The headers of its answers."""
        if not self.headers:
            return UNKNOWN
        return RateLimits(self._says_of(self._level[0], self.rpm), self._says_of(self._level[1], self.tpm))

    def _says_of(self, level: float, per_minute: float) -> Allowance:
        rate = per_minute / 60
        missing = self.saves_s * rate - level
        left = per_minute - missing if self.minute_style else level
        return Allowance(per_minute, max(0.0, float(int(left))), missing / rate)

    def between(self, start: float, end: float) -> int:
        """Requests served then."""
        return sum(start <= at < end for at in self.good)

    def refused_between(self, start: float, end: float) -> int:
        """Requests refused then."""
        return sum(start <= at < end for at in self.refused)

    def used(self, start: float, end: float) -> float:
        """The part of the allowance that was used then, of a limit of requests that didn't change meanwhile."""
        return self.between(start, end) / (self.rpm / 60 * (end - start))

    @property
    def refusals(self) -> float:
        """The part of the requests that were refused."""
        return len(self.refused) / max(1, len(self.refused) + len(self.good))


@dataclass
class Load:
    """So many jobs, or jobs without end, each through its attempts as a worker makes them."""

    server: Server
    jobs: float = math.inf
    workers: int = 200
    slots: int | None = None
    """Streams at once; None: adaptive."""
    rpm: float | None = None
    tpm: float | None = None
    limits: Mapping[str, ModelLimits] = field(default_factory=dict)
    tokens: int = 10
    used: int | None = None
    """…of which so many are really used; None: the server doesn't say."""
    answer_s: tuple[float, float] = (0.15, 0.45)
    way_s: tuple[float, float] = (0.0, 0.02)
    """To the server, and back from it."""
    headers_at: float = 0.0
    """The part of an answer's duration after which its status comes."""
    chunks: int = 1
    max_attempts: int = 5
    seed: int = 1
    took_s: float = 0.0
    failed: int = 0

    def run(self, seconds: float, at: Mapping[float, Callable[[], None]] | None = None) -> Load:
        """Until the jobs are done, but for so long at most; `at` says what happens meanwhile."""
        print("seeds", self.seed, self.server.seed)
        run_virtual(lambda: self._run(seconds, at or {}))
        return self

    async def _run(self, seconds: float, at: Mapping[float, Callable[[], None]]) -> None:
        clock = asyncio.get_running_loop().time
        slots = AdaptiveConcurrency() if self.slots is None else FixedConcurrency(self.slots)
        self.admission = Admission.of_one(
            rpm=self.rpm, tpm=self.tpm, concurrency=slots, clock=clock, limits=self.limits
        )
        self._rng = random.Random(self.seed)
        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.admission.run)
                for time, act in at.items():
                    asyncio.get_running_loop().call_at(time, act)
                await self.work(self.workers)
                self.admission.close()
        self.took_s = clock()

    async def work(self, workers: int) -> None:
        """So many workers, until no job is left."""
        async with anyio.create_task_group() as tasks:
            for _ in range(workers):
                tasks.start_soon(self._worker)

    async def _worker(self) -> None:
        while self.jobs > 0:
            self.jobs -= 1
            try:
                await self._job()
            except AttemptFailed:
                self.failed += 1

    async def _job(self) -> None:
        tickets: list[Ticket] = []
        await retrying(lambda: self._attempt(tickets), self.max_attempts, rng=self._rng, sleep=anyio.sleep)

    async def _attempt(self, before: list[Ticket]) -> None:
        admission, need = self.admission, Need(0, self.tokens)
        ticket = await admission.acquire("m", need, again=before[-1] if before else None)
        before.append(ticket)
        used: Usage | None = None
        try:
            await anyio.sleep(self._rng.uniform(*self.way_s))
            ok, said = self.server.take(self.tokens, len(before) - 1), self.server.says()
            if not ok:
                await self._refused(ticket, replace(self.server.refusal, limits=said))
            await self._answer(ticket, said)
            used = None if self.used is None else Usage(0, self.used)
        finally:
            admission.settle(ticket, used)
            admission.release(ticket)

    async def _refused(self, ticket: Ticket, fault: Fault) -> None:
        await anyio.sleep(self._rng.uniform(*self.way_s))
        self.admission.concluded(ticket, fault)
        if fault.is_shared:
            self.admission.throttled(ticket, fault.limits, fault.retry_after_s)
        raise AttemptFailed(fault)

    async def _answer(self, ticket: Ticket, said: RateLimits) -> None:
        server, lasts_s = self.server, self._rng.uniform(*self.answer_s)
        server.serving += 1
        server.most = max(server.most, server.serving)
        try:
            await anyio.sleep(self._rng.uniform(*self.way_s) + lasts_s * self.headers_at)
            self.admission.answered(ticket, said)
            for _ in range(self.chunks):
                self.admission.received(ticket)
                await anyio.sleep(lasts_s * (1 - self.headers_at) / self.chunks)
        finally:
            server.serving -= 1
        self.admission.concluded(ticket, None)
