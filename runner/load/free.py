"""The door of a load test without limits: nobody waits, whatever the server says.

A run keeps limits that it learns from headers, cools down after a 429 and begins slowly. A load generator must do none
of it: what it was told to offer is offered, and a 429 is an answer like any other. Where the user gives limits (--rpm,
--tpm, a configuration's) the run's own admission stands here instead.
"""

from __future__ import annotations

import time
from itertools import count

from runner.admission import Admission
from runner.endpoints import Endpoint
from runner.faults import Fault
from runner.outcome import Usage
from runner.ratelimits import RateLimits
from runner.tickets import AdmissionClosed, Need, Ticket


class FreeAdmission(Admission):
    """Lets everybody through at once; with several endpoints by turns."""

    _turn = count()

    async def run(self) -> None:
        """There is nothing to do but to end."""
        await self._ended.wait()

    async def acquire(
        self,
        model: str | None,
        need: Need,
        *,
        key: str | None = None,
        avoid: Endpoint | None = None,
        only: str | None = None,
        again: Ticket | None = None,
    ) -> Ticket:
        """See `Admission`; NeverFits isn't raised."""
        del key, avoid, again
        if self._closed:
            raise AdmissionClosed
        lanes = self._serving(model, only)
        lane = lanes[next(self._turn) % len(lanes)]
        return Ticket(need, lane, lane.endpoint, 0.0, time.monotonic(), 0, 0)

    def answered(self, ticket: Ticket, said: RateLimits) -> None:
        """Nothing is learnt."""

    def throttled(self, ticket: Ticket, said: RateLimits, wait_s: float | None, *, ramp: bool = False) -> None:
        """Nobody slows down."""

    def received(self, ticket: Ticket, chunks: int = 1) -> None:
        """Nothing adapts."""
        ticket.accepted = True

    def concluded(self, ticket: Ticket, fault: Fault | None) -> None:
        """No endpoint is given up for its failures."""

    def settle(self, ticket: Ticket, used: Usage | None) -> None:
        """Nothing was reserved."""

    def release(self, ticket: Ticket) -> None:
        """No slot was taken."""
