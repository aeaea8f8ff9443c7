"""Arrival processes: when each request should be sent, in seconds since the level's start. Pure: chance is passed in.

An arrival process is a rate over time and a spacing. The spacing puts requests on a line where one is due in each
unit: evenly, as a Poisson process, or with gaps of a gamma distribution. The rate bends that line into time: request
k is sent when the integral of the rate reaches its place. So a ramp follows its rate exactly, and no error adds up:
request k of a constant rate is due at k ÷ rate, whatever came before.

| kind | rate | spacing |
| --- | --- | --- |
| constant | flat | even: 0, 1, 2, … |
| poisson | flat | gaps Exp(1) |
| gamma | flat | gaps Gamma(shape = burstiness, mean 1): 1 is Poisson, below it bursts, above it is more even |
| ramp | linear from → to within a time, then `to` | even or Poisson |
| step | levels in order, then the last one for ever | even or Poisson |
| trace | – | times as recorded, speeded up by a factor; ends with the trace |

Burstiness is vLLM's (`vllm bench serve --burstiness`: shape b, scale 1 ÷ (rate × b)) and AIPerf's smoothness. Unlike
vLLM, times aren't stretched afterwards so that n requests take exactly n ÷ rate: that would be no Poisson process.

Iterators are endless but for a trace, and a rate that falls to nothing for ever. Several processes share one schedule
by taking each n-th of it (`share`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from runner.errors import UsageError

if TYPE_CHECKING:
    from random import Random

Spacing = Literal["even", "poisson", "gamma"]
MAX_RATE: Final = 1e6
"""Requests a second: a hundred times what one machine can send."""
MIN_BURSTINESS: Final = 0.01
"""Below it nearly all gaps are zero and the few others last for hours."""


class Rate(Protocol):
    """A rate over time."""

    def time_of(self, place: float) -> float:
        """When its integral reaches `place` (≥ 0); infinity where it never does."""


@dataclass(frozen=True, slots=True)
class Flat:
    """The same rate for ever."""

    per_s: float

    def time_of(self, place: float) -> float:
        """When its integral reaches `place`."""
        return place / self.per_s


@dataclass(frozen=True, slots=True)
class Ramp:
    """From one rate to another within a time, then that one for ever."""

    from_per_s: float
    to_per_s: float
    within_s: float

    def time_of(self, place: float) -> float:
        """When its integral reaches `place`."""
        a, b, d = self.from_per_s, self.to_per_s, self.within_s
        total = (a + b) / 2 * d
        if place > total:
            return d + (place - total) / b if b else math.inf
        # a·t + (b − a)/(2d)·t² = place, solved in the form that loses no digits and knows a = 0 and a = b.
        root = math.sqrt(max(0.0, a * a + 2 * (b - a) / d * place))
        return 2 * place / (a + root) if place else 0.0


@dataclass(frozen=True, slots=True)
class Steps:
    """Rates in order, each for a time; the last one for ever."""

    levels: tuple[tuple[float, float], ...]
    """(rate, seconds)."""

    def time_of(self, place: float) -> float:
        """When its integral reaches `place`."""
        start = 0.0
        for per_s, seconds in self.levels[:-1]:
            if place < per_s * seconds:
                return start + place / per_s
            place -= per_s * seconds
            start += seconds
        last = self.levels[-1][0]
        return start + place / last if last else math.inf


class Arrivals(Protocol):
    """What the engine sends by."""

    def times(self, rng: Random) -> Iterator[float]:
        """Intended send times, never decreasing."""

    def describe(self) -> dict[str, Any]:
        """`arrival` of load.json: the kind and its parameters."""


@dataclass(frozen=True, slots=True)
class Process:
    """A rate over time and a spacing."""

    rate: Rate
    spacing: Spacing = "even"
    burstiness: float = 1.0

    def times(self, rng: Random) -> Iterator[float]:
        """Intended send times, never decreasing."""
        for place in self._places(rng):
            when = self.rate.time_of(place)
            if when == math.inf:
                return
            yield when

    def _places(self, rng: Random) -> Iterator[float]:
        if self.spacing == "even":
            yield from map(float, count())
        place, shape = 0.0, self.burstiness
        while True:
            place += rng.expovariate(1.0) if self.spacing == "poisson" else rng.gammavariate(shape, 1 / shape)
            yield place

    @property
    def length_s(self) -> float | None:
        """How long a ramp or steps say that they last; None: the rate never changes."""
        match self.rate:
            case Ramp(_, _, within_s):
                return within_s
            case Steps(levels):
                return math.fsum(seconds for _, seconds in levels)
        return None

    def describe(self) -> dict[str, Any]:
        """`arrival` of load.json."""
        match self.rate:
            case Flat(per_s):
                kind = "constant" if self.spacing == "even" else self.spacing
                burstiness = {"burstiness": self.burstiness} if kind == "gamma" else {}
                return {"kind": kind, "rate": per_s, **burstiness}
            case Ramp(a, b, within_s):
                return {"kind": "ramp", "from": a, "to": b, "within_s": within_s, "spacing": self.spacing}
            case Steps(levels):
                return {"kind": "step", "levels": [list(level) for level in levels], "spacing": self.spacing}
        raise TypeError(self.rate)


@dataclass(frozen=True, slots=True)
class Replay:
    """The send times of a trace. `speed` 2 is twice as fast."""

    times_s: Sequence[float]
    speed: float = 1.0

    def times(self, rng: Random) -> Iterator[float]:
        """The recorded times; nothing is left to chance."""
        del rng
        return (when / self.speed for when in self.times_s)

    def describe(self) -> dict[str, Any]:
        """`arrival` of load.json."""
        return {"kind": "trace", "requests": len(self.times_s), "speed": self.speed}


def share(times: Iterator[float], index: int, of: int) -> Iterator[tuple[int, float]]:
    """What process `index` of so many sends of a common schedule: (request number, time)."""
    return islice(enumerate(times), index, None, of)


# ── As users write them ──────────────────────────────────────────────────────────────────────────────────────────

_NUMBER: Final = r"(\d+(?:\.\d+)?)"
_RAMP: Final = re.compile(rf"{_NUMBER}\.\.{_NUMBER}/{_NUMBER}s?")
_STEP: Final = re.compile(rf"{_NUMBER}x{_NUMBER}s?")


def parse_arrivals(text: str, *, rate: float) -> Process:
    """`constant`, `poisson`, `gamma:0.5`, `ramp:1..50/60s` or `step:10x30s,20x30s`.

    A ramp and steps take `,poisson` at their end and have rates of their own; the others take `rate`.

    Raises:
        UsageError: it is none of these, or a number is out of range.
    """
    kind, _, rest = text.strip().partition(":")
    if kind in ("constant", "poisson") and not rest:
        return Process(Flat(_per_s(rate)), "even" if kind == "constant" else "poisson")
    if kind == "gamma":
        return Process(Flat(_per_s(rate)), "gamma", _burstiness(rest))
    body = rest.removesuffix(",poisson")
    spacing: Spacing = "even" if body == rest else "poisson"
    if kind == "ramp" and (found := _RAMP.fullmatch(body)):
        a, b, within_s = map(float, found.groups())
        return Process(_ramp(a, b, within_s), spacing)
    if kind == "step" and all(steps := [_STEP.fullmatch(part) for part in body.split(",")]):
        levels = tuple((float(step[1]), float(step[2])) for step in steps if step)
        return Process(_steps(levels), spacing)
    raise UsageError(
        f"an arrival process is constant, poisson, gamma:0.5, ramp:1..50/60s or step:10x30s,20x30s, not {text[:80]!r}"
    )


def _per_s(rate: float) -> float:
    if not 0 < rate <= MAX_RATE:
        raise UsageError(f"a rate is above 0 and at most {MAX_RATE:g} a second, not {rate:g}")
    return rate


def _burstiness(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not MIN_BURSTINESS <= found < math.inf:
        raise UsageError(f"gamma takes a burstiness of {MIN_BURSTINESS} or more, as in gamma:0.5, not {text[:80]!r}")
    return found


def _ramp(a: float, b: float, within_s: float) -> Ramp:
    _per_s(max(a, b))
    if not within_s > 0:
        raise UsageError("a ramp takes longer than no time")
    return Ramp(a, b, within_s)


def _steps(levels: tuple[tuple[float, float], ...]) -> Steps:
    _per_s(max(per_s for per_s, _ in levels))
    if not all(seconds > 0 for _, seconds in levels):
        raise UsageError("a step takes longer than no time")
    return Steps(levels)
