"""The way out of a run: asked once, everybody finishes what is in flight; asked twice, everybody stops.

A drain closes admission (jobs that wait for their turn, or for a backoff to pass, are given up without a record; the
next run does them), lets attempts in flight end within the grace period, and then cancels them.
"""

from __future__ import annotations

from typing import NamedTuple

import anyio

from runner.admission import Admission
from runner.tickets import AdmissionClosed


class Reason(NamedTuple):
    """Why a run ended before its last job."""

    exit_code: int
    text: str


class Drain:
    """The one switch that ends a run early. `scope` surrounds the work; `expire` runs beside it."""

    def __init__(self, admission: Admission, grace_s: float) -> None:
        self._admission = admission
        self._grace_s = grace_s
        self._asked = anyio.Event()
        self.asked = False
        """Whether no further job may begin. Asked for each, and an event's own answer takes three calls."""
        self.reason: Reason | None = None
        self.scope = anyio.CancelScope()

    async def wait(self) -> None:
        """Returns when the drain has begun."""
        await self._asked.wait()

    def ask(self, exit_code: int, text: str) -> None:
        """Begins the drain. The first reason stands."""
        if self.reason is None:
            self.reason = Reason(exit_code, text)
            self.asked = True
            self._asked.set()
            self._admission.close()

    def note(self, exit_code: int, text: str) -> None:
        """The run goes on, but won't end as complete."""
        if self.reason is None:
            self.reason = Reason(exit_code, text)

    def cut(self) -> None:
        """Cancels what is in flight."""
        self.scope.cancel()

    async def expire(self) -> None:
        """Cuts when the grace period after `ask` is over. Runs for as long as the run does."""
        await self._asked.wait()
        await anyio.sleep(self._grace_s)
        self.cut()

    async def sleep(self, seconds: float) -> None:
        """Sleeps a backoff.

        Raises:
            AdmissionClosed: the run drains.
        """
        with anyio.move_on_after(seconds):
            await self._asked.wait()
            raise AdmissionClosed
