"""One level, as every process that sends it must know it. Pure; travels between processes as JSON.

A level ends sending after its time, after so many requests, or with its trace, whichever comes first. What counts lies
between warm-up and cool-down; with neither everything counts, the last answers included. Those are waited for, for
`drain_s` at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import Any, Final, Literal

from runner.load.arrivals import Arrivals, Process, Replay, parse_arrivals, share
from runner.load.level import LevelStatistics, Window
from runner.load.slo import Slo

MIN_GAP_S: Final = 0.001
"""Behind the last request of a trace whose requests are all due at once."""


@dataclass(frozen=True, slots=True)
class LevelSpec:
    """One concurrency or rate, to be run once."""

    kind: Literal["closed", "open"]
    value: float
    """Streams at once, or requests a second."""
    label: str
    repeat: int = 0
    run: int = 0
    """Which start of the test sends it: 1 after the first resume. An interrupted level is run again from its start, and
    its records must not be taken for those of the earlier try."""
    first: int = 0
    """Number of its first request, counted over the whole test."""
    requests: int | None = None
    """Send so many: conversations, where there are several turns."""
    duration_s: float | None = None
    """Send for so long."""
    warmup_s: float = 0.0
    cooldown_s: float = 0.0
    arrivals: str = ""
    """Open: the process as a user writes it; "trace" for the times of the test's trace."""
    seed: int = 0
    drain_s: float | None = None
    """How long the last answers are waited for; None: as long as they may take by themselves."""
    max_in_flight: int = 0
    """Open: what is due beyond it is dropped, and counted."""
    ends_s: float | None = None
    """Open: when the first request would be due that isn't sent any more. What is answered later is waited for, and
    adds to no rate: it would make a server look slower that was asked for nothing by then."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return asdict(self)

    @property
    def window(self) -> Window:
        """What counts of it."""
        ends_s = math.inf if self.ends_s is None else self.ends_s
        return Window(
            self.warmup_s, min(ends_s, math.inf if self.duration_s is None else self.duration_s - self.cooldown_s)
        )

    @property
    def least_s(self) -> float:
        """How long it lasts if nothing cuts it short and its answers are in before.

        A time in which nothing is due any more, or in which all streams hold back, is a part of it.
        """
        if self.kind == "closed":
            return 0.0 if self.requests is not None or self.duration_s is None else self.duration_s
        return min((each for each in (self.duration_s, self.ends_s) if each is not None), default=0.0)

    def statistics(self, slo: Slo | None) -> LevelStatistics:
        """Empty ones."""
        return LevelStatistics(self.window, slo)

    # ── One process's share ──────────────────────────────────────────────────────────────────────────────────────

    def lanes(self, index: int, of: int) -> int:
        """How many of the streams of a closed loop are one process's."""
        return len(range(index, int(self.value), of))

    def room(self, index: int, of: int) -> int:
        """How many of the requests in flight in an open loop may be one process's."""
        return len(range(index, self.max_in_flight, of))

    def schedule(self, trace: Replay | None, index: int, of: int) -> Iterator[tuple[int, float]]:
        """The requests of an open loop that one process sends: (number in the level, seconds since its start)."""
        for number, when in share(self.process(trace).times(self._rng()), index, of):
            if self.is_over(number, when):
                return
            yield number, when

    def is_over(self, number: int, when_s: float) -> bool:
        """Whether this request is no longer a part of the level."""
        too_late = self.duration_s is not None and when_s >= self.duration_s
        return too_late or (self.requests is not None and number >= self.requests)

    def dated(self, trace: Replay | None) -> LevelSpec:
        """The same with its end, where it is an open loop of so many requests."""
        if self.kind == "closed" or (self.requests is None and self.arrivals != "trace"):
            return self
        last_s, mean_gap_s = 0.0, 0.0
        for number, when in enumerate(self.process(trace).times(self._rng())):
            if self.is_over(number, when):
                return replace(self, ends_s=when)
            last_s, mean_gap_s = when, when / max(1, number)
        # A trace has no request behind its last one.
        return replace(self, ends_s=last_s + max(mean_gap_s, MIN_GAP_S))

    def _rng(self) -> Random:
        return Random(f"{self.seed} {self.value} {self.repeat}")

    def process(self, trace: Replay | None) -> Arrivals:
        """By which requests arrive in an open loop."""
        if self.arrivals == "trace":
            assert trace is not None
            return trace
        return parse_arrivals(self.arrivals, rate=self.value)


def describe_arrival(spec: LevelSpec, trace: Replay | None, *, several: bool) -> dict[str, Any]:
    """`arrival` of load.json; the rate is left out where levels have rates of their own."""
    if spec.kind == "closed":
        return {"kind": "closed"}
    process = spec.process(trace)
    said = process.describe()
    if several and isinstance(process, Process):
        said.pop("rate", None)
    return said
