"""A mergeable percentile sketch: counts in logarithmic buckets, 1 % relative error, bounded memory. Pure.

A value x falls into bucket ⌈log_γ x⌉ with γ = (1+α)/(1−α), so that the middle of its bucket is within α of x. Source:
Masson, Rim, Lee: DDSketch (VLDB 2019), with its logarithmic mapping and no collapsing of buckets.

Accepted: values outside [SMALLEST_S, LARGEST_S] are clamped (below counts as zero), which is what bounds the number of
buckets; `total` of merged sketches depends on the order of merging by float rounding, everything else does not.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from itertools import repeat
from operator import mul
from typing import Any, Final

RELATIVE_ERROR: Final = 0.01
"""α: a quantile is within 1 % of the value at its rank."""
SMALLEST_S: Final = 1e-9
"""Anything smaller counts as zero: it is below a clock's resolution."""
LARGEST_S: Final = 1e9
"""Anything larger counts as this: 30 years."""
_GAMMA: Final = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GAMMA: Final = math.log(_GAMMA)
_PER_LOG2: Final = 1 / math.log2(_GAMMA)
_MIDDLE: Final = 2 / (_GAMMA + 1)
"""A bucket's middle over its upper edge."""
MAX_BUCKETS: Final = 2 + math.ceil(math.log2(LARGEST_S / SMALLEST_S) * _PER_LOG2)
"""2,075: the buckets between SMALLEST_S and LARGEST_S, about 150 KB at the very worst. Gaps of one answer take 100."""

_LOOSE: Final = 64
"""So many values are put into buckets together: that takes half the time."""
_FEW: Final = 6
"""So many are put there as fast one by one."""
_log2, _ceil = math.log2, math.ceil  # a global is found faster than an attribute; log2 is twice as fast as log


Z_95: Final = 1.959964
"""The normal distribution has 95 % within so many standard deviations."""


def needed(q: float) -> int:
    """How many values the quantile q takes to be shown: so many that the largest is, with 95 % confidence, beyond it.

    By the lower Wilson bound of n out of n, n ÷ (n + z²) ≥ q: 4 for p50, 35 for p90, 73 for p95, 381 for p99, 3,838 for
    p99.9. MLPerf's rule (the percentile's rank within 1 - q, 99 % confidence) asks for about 660 for p99.
    """
    return math.ceil(Z_95**2 * q / (1 - q))


class Sketch:
    """A distribution of durations in seconds."""

    __slots__ = ("_buckets", "_loose", "_max", "_min", "_total", "_zeros")

    def __init__(self) -> None:
        self._loose: list[float] = []  # values that are in no bucket yet
        self._buckets: dict[int, int] = {}
        self._zeros = 0
        self._min = math.inf
        self._max = -math.inf
        self._total = 0.0

    def add(self, value_s: float) -> None:
        """Adds one value. Negative and NaN count as zero, what is above LARGEST_S counts as that."""
        self._loose.append(value_s)
        if len(self._loose) >= _LOOSE:
            self._settle()

    def add_all(self, values_s: Iterable[float]) -> None:
        """Adds many values."""
        self._loose += values_s
        if len(self._loose) >= _LOOSE:
            self._settle()

    def _settle(self) -> None:
        """Puts into buckets what is in none."""
        loose = self._loose
        if not loose:
            return
        self._loose = []
        lowest, highest, total = min(loose), max(loose), sum(loose)
        if not (lowest >= SMALLEST_S and highest <= LARGEST_S and total == total):  # NaN hides from min and max
            loose = self._without_odd(loose)
            lowest, highest, total = min(loose, default=math.inf), max(loose, default=-math.inf), sum(loose)
        buckets = self._buckets
        if len(loose) < _FEW:
            for value_s in loose:
                bucket = _ceil(_log2(value_s) * _PER_LOG2)
                buckets[bucket] = buckets.get(bucket, 0) + 1
        else:
            for bucket, count in Counter(map(_ceil, map(mul, map(_log2, loose), repeat(_PER_LOG2)))).items():
                buckets[bucket] = buckets.get(bucket, 0) + count
        self._total += total
        self._min = min(self._min, lowest)
        self._max = max(self._max, highest)

    def _without_odd(self, values_s: list[float]) -> list[float]:
        """The values clamped, less those that count as zero, which are counted here."""
        kept = [value_s for value_s in values_s if value_s >= SMALLEST_S]
        if kept and max(kept) > LARGEST_S:
            kept = [min(value_s, LARGEST_S) for value_s in kept]
        if len(kept) < len(values_s):
            zeros = [value_s if 0 < value_s < SMALLEST_S else 0.0 for value_s in values_s if not value_s >= SMALLEST_S]
            self._zeros += len(zeros)
            self._total += sum(zeros)
            self._min = min(self._min, *zeros)
            self._max = max(self._max, *zeros)
        return kept

    def merge(self, other: Sketch) -> None:
        """Adds all that `other` has: the same as if each of its values had been added here."""
        other._settle()
        buckets = self._buckets
        # A copy, so that a sketch may be merged with itself.
        for bucket, count in list(other._buckets.items()):
            buckets[bucket] = buckets.get(bucket, 0) + count
        self._zeros += other._zeros
        self._total += other._total
        self._min = min(self._min, other._min)
        self._max = max(self._max, other._max)

    @property
    def count(self) -> int:
        """How many values it has seen. Summed up when asked: it is asked once a job, values come with every chunk."""
        return len(self._loose) + self._zeros + sum(self._buckets.values())

    @property
    def total(self) -> float:
        """Sum of the values, in seconds, as far as they were not clamped."""
        self._settle()
        return self._total

    @property
    def min(self) -> float | None:
        """The smallest value, exactly; None of an empty sketch."""
        self._settle()
        return None if self._min > self._max else self._min

    @property
    def max(self) -> float | None:
        """The largest value, exactly; None of an empty sketch."""
        self._settle()
        return None if self._min > self._max else self._max

    def quantile(self, q: float) -> float | None:
        """The value at rank ⌊q·(count − 1)⌋ of the sorted values, within 1 %; None of an empty sketch.

        0 and 1 give minimum and maximum, exactly.

        Raises:
            ValueError: q is not within [0, 1].
        """
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile is between 0 and 1, not {q}")
        self._settle()
        if self._min > self._max:
            return None
        if q in (0, 1):
            return self._max if q else self._min
        return min(max(self._at_rank(math.floor(q * (self.count - 1))), self._min), self._max)

    def _at_rank(self, rank: int) -> float:
        seen = self._zeros
        if seen > rank:
            return 0.0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen > rank:
                return math.exp(bucket * _LOG_GAMMA) * _MIDDLE
        return self._max

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form: `{"zeros", "total", "min", "max", "buckets": {"<index>": count}}`."""
        self._settle()
        return {
            "zeros": self._zeros,
            "total": self._total,
            "min": self.min,
            "max": self.max,
            "buckets": {str(bucket): count for bucket, count in self._buckets.items()},
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Sketch:
        """What `to_dict` made.

        Raises:
            ValueError: it isn't that; TypeError and KeyError where a part is of another type or missing.
        """
        sketch = cls()
        sketch._buckets = {int(bucket): int(count) for bucket, count in data["buckets"].items()}
        sketch._zeros = int(data["zeros"])
        sketch._total = float(data["total"])
        if sketch.count:
            sketch._min, sketch._max = float(data["min"]), float(data["max"])
        if len(sketch._buckets) > MAX_BUCKETS or sketch._zeros < 0 or min(sketch._buckets.values(), default=1) < 1:
            raise ValueError("not a sketch of this kind")
        return sketch
