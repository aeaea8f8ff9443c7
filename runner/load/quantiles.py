"""Distributions that merge, and what may be said of them: quantiles, histograms, intervals over repeats. Pure.

A `Distribution` is a sketch (quantiles within 1 %) with the exact mean and deviation beside it, and with a count of
failures, which stand at +∞ where they are asked for: a server that fails its slow requests must not look fast.

A percentile is shown only where n supports it (`sketch.needed`).

Accepted: the gaps between chunks of one answer aren't independent, so that their n is larger than what it tells; where
whole sketches were added (those gaps), the deviation is that of the buckets, which moves each value by 1 % at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from runner.sketch import LARGEST_S, RELATIVE_ERROR, Z_95, Sketch, needed

PERCENTILES: Final = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99_9": 0.999}
_GAMMA: Final = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
"""Ratio of a sketch's bucket edges: bucket i holds what is in (γ^(i−1), γ^i]."""
HISTOGRAM_BINS: Final = 80
"""More than a chart can show."""


def at_rank(sketch: Sketch, rank: int) -> float | None:
    """The value at a rank (0 is the smallest), within 1 %; None beyond the last."""
    count = sketch.count
    if not 0 <= rank < count:
        return None
    # Half a rank more, so that the sketch's own rounding down can't slip to the one before.
    return sketch.quantile(min(1.0, (rank + 0.5) / (count - 1)) if count > 1 else 1.0)


class Distribution:
    """Values of one metric: seconds, tokens or tokens a second; never negative."""

    __slots__ = ("_exact", "_running_mean", "_squares", "failures", "n", "sketch")

    def __init__(self) -> None:
        self.sketch = Sketch()
        self.n = 0
        self.failures = 0
        """Requests that have no value because they failed."""
        self._squares = 0.0  # sum of squared distances from the mean
        self._running_mean = 0.0  # of what was added: to ask the sketch takes ten times as long
        self._exact = True  # whether that is kept: not of sketches that were added

    def add(self, value: float) -> None:
        """Adds one value. Negative and NaN count as zero, as in the sketch."""
        value = min(value, LARGEST_S) if value > 0 else 0.0
        self.sketch.add(value)
        self.n += 1
        off = value - self._running_mean
        self._running_mean += off / self.n
        self._squares += off * (value - self._running_mean)  # Welford's, by Knuth (TAOCP 2, 4.2.2)

    def add_sketch(self, values: Sketch) -> None:
        """Adds all values of a sketch."""
        self._exact = False
        self.sketch.merge(values)
        self.n += values.count

    def fail(self) -> None:
        """Counts one failure."""
        self.failures += 1

    def merge(self, other: Distribution) -> None:
        """Adds all that `other` has."""
        if self.n and other.n:
            # Chan, Golub, LeVeque: Updating Formulae and a Pairwise Algorithm (1979).
            self._squares += (other._mean - self._mean) ** 2 * self.n * other.n / (self.n + other.n)
        self._squares += other._squares
        self._exact = self._exact and other._exact
        self.failures += other.failures
        self.sketch.merge(other.sketch)
        self.n += other.n
        self._running_mean = self._mean

    @property
    def _mean(self) -> float:
        return self.sketch.total / self.n if self.n else 0.0

    def quantiles(self) -> dict[str, Any]:
        """`{"n", "mean", "stddev", "min", "p50", …, "max"}`; None is what n can't support."""
        return self._summary(0)

    def quantiles_with_failures(self) -> dict[str, Any]:
        """The same with every failure at +∞, which is `math.inf` here and "inf" in load.json."""
        return self._summary(self.failures)

    def _summary(self, failures: int) -> dict[str, Any]:
        n = self.n + failures
        infinite = math.inf if failures else None
        summary: dict[str, Any] = {
            "n": n,
            "mean": infinite or (self._mean if n else None),
            "stddev": self._stddev() if not failures else None,
            "min": self.sketch.min if self.n else infinite,
            "max": infinite or self.sketch.max,
        }
        for name, q in PERCENTILES.items():
            summary[name] = self._at(q, n) if n >= needed(q) else None
        return summary

    def _at(self, q: float, n: int) -> float:
        # Nearest rank: at least q of the values are at or below it.
        found = at_rank(self.sketch, math.ceil(q * n) - 1)
        return math.inf if found is None else found

    def quantile(self, q: float) -> float | None:
        """One quantile, failures left out; None where n can't support it."""
        return self._at(q, self.n) if self.n >= needed(q) else None

    def _stddev(self) -> float | None:
        """Of the values as a sample."""
        if self.n < 2:
            return None
        squares = self._squares if self._exact else _squares_of(self.sketch)
        return math.sqrt(max(0.0, squares) / (self.n - 1))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return {
            "sketch": self.sketch.to_dict(),
            "n": self.n,
            "failures": self.failures,
            "squares": self._squares,
            "exact": self._exact,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Distribution:
        """What `to_dict` made."""
        made = cls()
        made.sketch = Sketch.from_dict(data["sketch"])
        made.n, made.failures = int(data["n"]), int(data["failures"])
        made._squares, made._exact = float(data["squares"]), bool(data["exact"])
        made._running_mean = made._mean
        return made


def _buckets(sketch: Sketch) -> tuple[int, list[tuple[int, int]]]:
    """How many zeros, and the buckets in order."""
    state = sketch.to_dict()
    return state["zeros"], sorted((int(index), count) for index, count in state["buckets"].items())


def _squares_of(sketch: Sketch) -> float:
    """Sum of squared distances from the mean of the buckets' middles: equal values have none."""
    zeros, buckets = _buckets(sketch)
    values = [(_GAMMA**index, count) for index, count in buckets] + [(0.0, zeros)]
    n = sum(count for _, count in values)
    mean = sum(value * count for value, count in values) / n
    # Edges instead of middles: a middle is the edge times 2 ÷ (γ + 1).
    return float((2 / (_GAMMA + 1)) ** 2 * sum((value - mean) ** 2 * count for value, count in values))


def histogram(sketch: Sketch, bins: int = HISTOGRAM_BINS) -> list[tuple[float, int]]:
    """`(upper edge, count)` in order, empty ones between them included; edges grow by one ratio.

    Zeros are a bin of their own with the edge 0. At most `bins` and that one.
    """
    zeros, buckets = _buckets(sketch)
    found = [(0.0, zeros)] if zeros else []
    if buckets:
        first = buckets[0][0]
        width = (buckets[-1][0] - first) // bins + 1
        counts = [0] * ((buckets[-1][0] - first) // width + 1)
        for index, count in buckets:
            counts[(index - first) // width] += count
        found += [(_GAMMA ** (first + (i + 1) * width - 1), count) for i, count in enumerate(counts)]
    return found


# ── Over repeats ─────────────────────────────────────────────────────────────────────────────────────────────────

# fmt: off
_T_975: Final = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)
# fmt: on
"""Student's t, 97.5 %, for 1 to 30 degrees of freedom."""


class Interval(NamedTuple):
    """A mean over repeats, with its 95 % interval."""

    mean: float
    low: float
    high: float


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t; beyond the table by its expansion (Abramowitz and Stegun, 26.7.5)."""
    if freedom <= len(_T_975):
        return _T_975[freedom - 1]
    z = Z_95
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def interval(values: Sequence[float | None], error: float = 0.0) -> Interval | None:
    """Mean of repeats with its 95 % t-interval; None of fewer than two, or where one is unknown or infinite.

    Repeats that were left out would have been the extreme ones, so that nothing is said without them. `error` is the
    relative one that all of them may have in common: the interval is that much wider.
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    n = len(known)
    if n < 2 or n < len(values):
        return None
    mean = math.fsum(known) / n
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (n - 1))
    half = student_t(n - 1) * deviation / math.sqrt(n) + error * abs(mean)
    return Interval(mean, mean - half, mean + half)


def over_repeats(repeats: Sequence[dict[str, dict[str, Any]]]) -> dict[str, Interval]:
    """The `metrics` of a level's repeats → `{"ttft_p50": Interval, …}`, for what every repeat can support."""
    found: dict[str, Interval] = {}
    for name, statistic in _statistics(repeats):
        # Percentiles that agree to the last digit are of one bucket of the sketch, and no nearer to the truth for that.
        error = RELATIVE_ERROR if statistic in PERCENTILES else 0.0
        made = interval([repeat.get(name, {}).get(statistic) for repeat in repeats], error)
        if made is not None:
            found[f"{name}_{statistic}"] = made
    return found


def _statistics(repeats: Sequence[dict[str, dict[str, Any]]]) -> Iterator[tuple[str, str]]:
    for name in repeats[0] if repeats else ():
        for statistic in ("mean", *PERCENTILES):
            yield name, statistic
