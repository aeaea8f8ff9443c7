"""The highest rate or concurrency that keeps the SLO: what to try next, and what the tries say. Pure.

`--find-max` runs one level after another. What comes next is a function of what was tried, nothing else, so that an
interrupted search goes on where it was:

1. double the value while it is kept, halve it while it isn't;
2. then try the middle between the highest kept and the lowest not kept, until they are within the resolution (5 %;
   one, of a concurrency);
3. then try the best once more; with a bad repeat it may fall, and the search goes on below it.

A value is kept if the goodput over all its repeats, as their mean, reaches the goal (0.99 of the requests offered).

Below a value so low that no request was due within its level nothing is tried: there would be even less to judge by.

A level that was bound by the client says nothing of the server: it is neither kept nor not kept. It caps the search
(no higher value is tried) and where it stands above the best in place of a value that wasn't kept, the answer is
"limited by the client". One repeat of a value that is not client-bound is enough to judge it by. A bound value below
one at which the client was sound was a hiccup of the machine: it says nothing at all, unless it was bound twice.

Noise can make a higher value look better than a lower one. The lowest value that isn't kept then counts: the best is
the highest kept value below it, and the result says that the tries don't agree. It ends after MAX_TRIES at the latest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from runner.load.verdict import Verdict
from runner.sketch import needed

GOAL: Final = 0.99
RESOLUTION: Final = 0.05
MAX_TRIES: Final = 60
"""Doubling from 1 to a million takes 20, the middle between two doublings to 5 % takes 5; the rest is for noise."""
LOWEST_PART: Final = 1 / 1_000
"""Of the first rate: below it nothing is tried."""

Limit = Literal["slo", "client", "maximum", "tries", "nothing kept"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is searched, and how."""

    start: float
    """The first value to try."""
    maximum: float = math.inf
    """No higher value is tried."""
    whole: bool = False
    """A concurrency: values are whole numbers from 1."""
    goal: float = GOAL
    resolution: float = RESOLUTION
    repeats: int = 1
    """Of every value."""
    confirmations: int = 1
    """Further repeats of the best."""
    max_tries: int = MAX_TRIES

    def __post_init__(self) -> None:
        """Refuses what can't be searched.

        Raises:
            ValueError: a part is out of its range.
        """
        sound = 0 < self.start <= self.maximum and 0 < self.goal <= 1 and 0.001 <= self.resolution < 1
        if not sound or min(self.repeats, self.max_tries) < 1 or self.confirmations < 0:
            raise ValueError(f"not a plan of a search: {self}")
        for value in (self.start, self.maximum):
            if self.whole and math.isfinite(value) and value != int(value):
                raise ValueError(f"a concurrency is a whole number, not {value:g}")

    @property
    def minimum(self) -> float:
        """No lower value is tried."""
        return 1 if self.whole else self.start * LOWEST_PART


class Try(NamedTuple):
    """One level that was run."""

    value: float
    goodput: float | None  # None: no request was due in its window
    verdict: Verdict
    requests: int = 0  # due in its window


class Found(NamedTuple):
    """What the tries say."""

    best: float | None
    limited_by: Limit | None  # None: the search has not ended
    agreed: bool  # no value was kept above one that wasn't
    reason: str


class _Point(NamedTuple):
    """A value with all its repeats."""

    value: float
    tries: int
    kept: bool | None  # None: bound by the client every time
    empty: bool = False  # no request was ever due


class _Bounds(NamedTuple):
    low: float | None  # highest value that is kept below `high`
    high: float | None  # lowest that isn't kept, or the client's cap
    by_client: bool  # `high` is the client's


def next_value(plan: Plan, tried: Sequence[Try]) -> float | None:
    """The value of the next level; None: the search has ended."""
    return _wanted(plan, tried) if len(tried) < plan.max_tries else None


def _wanted(plan: Plan, tried: Sequence[Try]) -> float | None:
    points = _points(plan, tried)
    unfinished = next((point.value for point in points if point.tries < plan.repeats), None)
    if unfinished is not None:
        return unfinished
    if not points:
        return plan.start
    low, high, _ = _bounds(plan, points)
    if low is None and points[0].empty:
        return None  # lower ones would be emptier
    candidate = _candidate(plan, low, high)
    if candidate is None and low is not None and _tries_of(points, low) < plan.repeats + plan.confirmations:
        return low
    return candidate


def _candidate(plan: Plan, low: float | None, high: float | None) -> float | None:
    """A value that wasn't tried; None when there is none left that would say more."""
    if low is None:
        assert high is not None
        return max(plan.minimum, _round(plan, high / 2)) if high > plan.minimum else None
    if high is None:
        return min(plan.maximum, low * 2) if low < plan.maximum else None
    if high - low <= max(plan.resolution * high, 1 if plan.whole else 0):
        return None
    return _round(plan, (low + high) / 2)


def _round(plan: Plan, value: float) -> float:
    """To a number that a person can read: four digits, whole for a concurrency."""
    return float(max(1, int(value))) if plan.whole else float(f"{value:.4g}")


def _points(plan: Plan, tried: Iterable[Try]) -> list[_Point]:
    """The values in order."""
    by_value: dict[float, list[Try]] = {}
    for one in tried:
        by_value.setdefault(one.value, []).append(one)
    return [_point(plan, value, by_value[value]) for value in sorted(by_value)]


def _point(plan: Plan, value: float, tries: Sequence[Try]) -> _Point:
    return _Point(value, len(tries), _kept(plan, tries), all(one.goodput is None for one in tries))


def _kept(plan: Plan, tries: Iterable[Try]) -> bool | None:
    # A level in which nothing was due kept nothing.
    goodputs = [one.goodput or 0.0 for one in tries if one.verdict != "client-bound"]
    return math.fsum(goodputs) / len(goodputs) >= plan.goal if goodputs else None


def _bounds(plan: Plan, points: Sequence[_Point]) -> _Bounds:
    missed = next((point.value for point in points if point.kept is False), None)
    low = max(
        (point.value for point in points if point.kept and (missed is None or point.value < missed)), default=None
    )
    # Below a value that was measured with a sound client, a bound one was a hiccup, unless it was bound once more.
    sound = max((point.value for point in points if point.kept is not None), default=0.0)
    caps = (point for point in points if point.kept is None and (low is None or point.value > low))
    cap = next((point.value for point in caps if point.value > sound or point.tries > plan.repeats), None)
    if cap is not None and (missed is None or cap < missed):
        return _Bounds(low, cap, by_client=True)
    return _Bounds(low, missed, by_client=False)


def _tries_of(points: Iterable[_Point], value: float) -> int:
    return sum(point.tries for point in points if point.value == value)


# ── The result ───────────────────────────────────────────────────────────────────────────────────────────────────


def outcome(plan: Plan, tried: Sequence[Try]) -> Found:
    """What the tries say, whether or not the search has ended."""
    points = _points(plan, tried)
    low, high, by_client = _bounds(plan, points)
    missed = next((point.value for point in points if point.kept is False), math.inf)
    agreed = not any(point.kept and point.value > missed for point in points)
    limited_by = _limit(plan, tried, low, high, by_client)
    return Found(low, limited_by, agreed, _reason(plan, tried, low, high, limited_by, agreed))


def _limit(plan: Plan, tried: Sequence[Try], low: float | None, high: float | None, by_client: bool) -> Limit | None:
    if _wanted(plan, tried) is not None:
        return "tries" if len(tried) >= plan.max_tries else None
    if by_client:
        return "client"
    if low is None:
        return "nothing kept"
    return "slo" if high is not None else "maximum"


def _reason(
    plan: Plan, tried: Sequence[Try], low: float | None, high: float | None, limited_by: Limit | None, agreed: bool
) -> str:
    """In words."""
    goal = f"{plan.goal:.4g} of the requests"
    best = f"{_shown(low)} kept the SLO for {goal}" if low is not None else f"nothing tried kept the SLO for {goal}"
    why = {
        None: "the search has not ended",
        "slo": f"{_shown(high)} did not",
        "client": f"limited by the client: at {_shown(high)} it could not keep up, and what lies above is unknown",
        "maximum": "no higher value was to be tried",
        "tries": f"the search ended after {len(tried)} levels, before the resolution was reached",
        "nothing kept": f"{_shown(high)} was the lowest",
    }[limited_by]
    parts = [best, why]
    if low is None and any(point.empty for point in _points(plan, tried)[:1]):
        parts.append("no request was due at it: longer levels may tell more")
    if not agreed:
        parts.append("a higher value was kept too: the tries don't agree, more repeats or longer levels may help")
    requests = sum(one.requests for one in tried if one.value == low and one.verdict != "client-bound")
    if low is not None and plan.goal < 1 and requests < needed(plan.goal):
        parts.append(f"it was measured on {requests} requests, and {plan.goal:.4g} takes {needed(plan.goal)} to tell")
    return "; ".join(parts)


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def report(plan: Plan, tried: Sequence[Try], slo: dict[str, float]) -> dict[str, Any]:
    """`search` of load.json."""
    kept = {point.value: point.kept for point in _points(plan, tried)}
    found = outcome(plan, tried)
    return {
        "slo": slo,
        "goal": plan.goal,
        "best": found.best,
        "limited_by": found.limited_by,
        "agreed": found.agreed,
        "reason": found.reason,
        "tried": [
            {
                "value": one.value,
                "goodput": one.goodput,
                "kept": one.verdict != "client-bound" and kept[one.value] is True,
                "verdict": one.verdict,
            }
            for one in tried
        ],
    }
