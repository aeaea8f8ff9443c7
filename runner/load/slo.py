"""Service level objectives: what one request must keep, and the share of requests that do. Pure.

As users write them: `ttft=500ms,itl=50ms,e2e=10s`; a limit is kept by what is at or below it. Names are those of
`definitions` that are seconds; `icl=50ms` asks it of 99 in 100 of the request's gaps (of all where there are fewer),
`itl` of the request's mean gap per token, as AIPerf and GuideLLM have it.

Goodput is requests that keep every objective ÷ requests offered: what failed, was throttled, dropped or cut off keeps
none. Neither does what can't be judged (a TPOT without usage); how many these were is counted, since a goodput of 0
for want of usage says nothing of the server. An answer of one token or chunk has no gaps, hence keeps every limit on
them, as in vLLM's goodput.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from runner.errors import UsageError
from runner.load.definitions import METRICS
from runner.load.quantiles import at_rank
from runner.load.samples import RequestSample
from runner.sketch import Sketch

Judgement = Literal["kept", "missed", "unknown"]
NAMES: Final = tuple(metric.key for metric in METRICS if metric.unit == "s")
ALIASES: Final = {"e2el": "e2e", "latency": "e2e"}
"""e2el is vLLM's name."""
GAPS_KEPT: Final = 0.99
"""The part of a request's gaps that must be within an `icl` limit: one hiccup in a long answer is no failure."""
_UNITS_S: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
_LIMIT: Final = re.compile(r"([a-z0-9_]+)\s*=\s*(\d+(?:\.\d+)?)\s*(us|ms|s|m)")
_OF_GAPS: Final = frozenset({"tpot", "itl", "icl"})


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits in seconds by metric."""

    limits: Mapping[str, float]

    def judge(self, sample: RequestSample) -> Judgement:
        """Whether one request keeps all of them. One that is missed outweighs one that is unknown."""
        if sample.ending != "succeeded":
            return "missed"
        found = {_judge(sample, name, limit) for name, limit in self.limits.items()}
        return "missed" if "missed" in found else "unknown" if "unknown" in found else "kept"

    def describe(self) -> str:
        """For a person: `ttft ≤ 500 ms, itl ≤ 50 ms`."""
        return ", ".join(f"{name} ≤ {_shown(limit)}" for name, limit in self.limits.items())


def _judge(sample: RequestSample, name: str, limit: float) -> Judgement:
    if name in _OF_GAPS and _is_one_piece(sample):
        return "kept"
    value = _high_gap(sample.gaps) if name == "icl" else sample.value(name)
    if value is None:
        return "unknown"
    return "kept" if value <= limit else "missed"


def _is_one_piece(sample: RequestSample) -> bool:
    # Several chunks have gaps, whatever a server says of their tokens.
    return sample.chunks == 1 or (not sample.chunks and sample.output_tokens == 1)


def _high_gap(gaps: Sketch) -> float | None:
    """The gap that 99 in 100 are at or below."""
    return at_rank(gaps, math.ceil(GAPS_KEPT * gaps.count) - 1)


def parse_slo(text: str) -> Slo:
    """Objectives as a user writes them.

    Raises:
        UsageError: a name is unknown or doubled, or a limit has no unit.
    """
    limits: dict[str, float] = {}
    for part in text.split(","):
        found = _LIMIT.fullmatch(part.strip().lower())
        if not found:
            raise UsageError(
                f"an SLO is a list like ttft=500ms,itl=50ms,e2e=10s; this part isn't: {part.strip()[:80]!r}"
            )
        name = ALIASES.get(found[1], found[1])
        if name not in NAMES:
            raise UsageError(f"an SLO is on one of {', '.join(NAMES)}, not on {found[1][:80]!r}")
        if name in limits:
            raise UsageError(f"the SLO names {name} twice")
        limits[name] = float(found[2]) * _UNITS_S[found[3]]
    return Slo(limits)


def _shown(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"
