"""Who sends a level: this process, or several that share its schedule (`processes`). What a test sees of them."""

from __future__ import annotations

import signal
import time
from typing import Final, NamedTuple, Protocol

from runner.drain import Reason
from runner.load.engine import Engine
from runner.load.level import LevelStatistics
from runner.load.sender import WHOLE, Part, Sender, Workload
from runner.load.slo import Slo
from runner.load.spec import LevelSpec

HEAD_START_S: Final = 0.05
"""From asking for a level to its start: for what has to be made ready."""


class Live(NamedTuple):
    """A level on its way, for the live view and for the bounds that hold for all processes."""

    t_s: float = 0.0
    in_flight: int = 0
    waiting: int = 0  # for the user's own limits
    sent: int = 0
    succeeded: int = 0
    failed: int = 0
    throttled: int = 0
    dropped: int = 0
    chunks: int = 0
    ttft_p50_s: float | None = None
    lag_max_s: float = 0.0
    cost: float = 0.0

    def joined(self, other: Live) -> Live:
        """With what another process sees. A median of medians it is not: the higher one is shown."""
        ttfts = [each for each in (self.ttft_p50_s, other.ttft_p50_s) if each is not None]
        sums = {name: getattr(self, name) + getattr(other, name) for name in _SUMMED}
        return Live(
            t_s=max(self.t_s, other.t_s),
            ttft_p50_s=max(ttfts, default=None),
            lag_max_s=max(self.lag_max_s, other.lag_max_s),
            **sums,
        )


_SUMMED: Final = ("in_flight", "waiting", "sent", "succeeded", "failed", "throttled", "dropped", "chunks", "cost")


class Measured(NamedTuple):
    """A level that was run."""

    statistics: LevelStatistics
    duration_s: float
    complete: bool
    numbers: int
    """How many numbers of requests it used up; with several processes some may have been left out."""


class Crew(Protocol):
    """One process or several."""

    async def run(self, spec: LevelSpec) -> Measured:
        """Runs a level."""

    def stop(self) -> None:
        """Sends nothing more, of this level or a later one."""

    def cut(self) -> None:
        """Waits for nothing more."""

    @property
    def live(self) -> Live:
        """The level as it stands."""

    @property
    def reason(self) -> Reason | None:
        """What the server or a limit stopped the test for."""


class Alone:
    """This process."""

    def __init__(self, engine: Engine, workload: Workload, slo: Slo | None, part: Part = WHOLE) -> None:
        self._engine = engine
        self._workload = workload
        self._slo = slo
        self._part = part
        self._sender: Sender | None = None
        self._stopped = False

    async def run(self, spec: LevelSpec, zero_s: float | None = None) -> Measured:
        """Runs a level; `zero_s` is its start on the monotonic clock, now if none is given."""
        zero_s = time.monotonic() + HEAD_START_S if zero_s is None else zero_s
        sender = self._sender = Sender(self._engine, self._workload, spec, self._slo, zero_s, self._part)
        if self._stopped or self._engine.drain.asked:
            sender.stop()
        await sender.run()
        return Measured(sender.statistics, max(0.0, sender.now_s), sender.complete, sender.numbers)

    def stop(self) -> None:
        """Sends nothing more."""
        self._stopped = True
        # Closes the door, too: what waits for limits is not sent any more.
        self._engine.drain.ask(128 + signal.SIGINT, "interrupted")
        if self._sender is not None:
            self._sender.stop()

    def cut(self) -> None:
        """Waits for nothing more."""
        self.stop()
        if self._sender is not None:
            self._sender.cut()

    @property
    def reason(self) -> Reason | None:
        """What the server or a limit stopped the test for."""
        return self._engine.drain.reason

    @property
    def live(self) -> Live:
        """The level as it stands."""
        sender = self._sender
        if sender is None:
            return Live()
        found = sender.statistics
        counts = found.counts
        due = max(0, sender.in_flight - self._engine.early)
        waiting = min(self._engine.waiting, due)
        return Live(
            t_s=max(0.0, sender.now_s),
            in_flight=due - waiting,
            waiting=waiting,
            sent=counts["sent"] + due - waiting,
            succeeded=counts["succeeded"],
            failed=counts["failed"],
            throttled=counts["throttled"],
            dropped=counts["dropped"],
            chunks=counts["chunks"],
            ttft_p50_s=found.metrics["ttft"].quantile(0.5),
            lag_max_s=found.lag.sketch.max or 0.0,
            cost=self._engine.metrics.cost or 0.0,
        )
