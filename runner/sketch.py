"""A mergeable percentile sketch: counts in logarithmic buckets, 1 % relative error, bounded memory. Pure.

Source: Masson, Rim, Lee: DDSketch (VLDB 2019). A value x falls into bucket ⌈log_γ x⌉ with γ = (1+α)/(1−α), so that the
bucket's middle is within α of x.
"""

from __future__ import annotations

import math
from typing import Any, Final

RELATIVE_ERROR: Final = 0.01
_GAMMA: Final = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GAMMA: Final = math.log(_GAMMA)
SMALLEST_S: Final = 1e-9
"""Anything smaller counts as zero: below a clock's resolution. With MAX 1e9 this bounds a sketch to 2,072 buckets."""
LARGEST_S: Final = 1e9


class Sketch:
    """Durations in seconds."""

    __slots__ = ("_buckets", "count", "max", "min", "total", "zeros")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self.zeros = 0
        self.count = 0
        self.total = 0.0
        self.min: float | None = None
        self.max: float | None = None

    def add(self, value: float) -> None:
        """Adds one value; negative counts as zero, what is above LARGEST_S as that."""
        self.count += 1
        self.total += value
        if self.min is None or value < self.min:
            self.min = value
        if self.max is None or value > self.max:
            self.max = value
        if value < SMALLEST_S:
            self.zeros += 1
            return
        bucket = math.ceil(math.log(min(value, LARGEST_S)) / _LOG_GAMMA)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1

    def merge(self, other: Sketch) -> None:
        """Adds all that `other` has."""
        for bucket, count in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count
        self.zeros += other.zeros
        self.count += other.count
        self.total += other.total
        for bound in (other.min, other.max):
            if bound is not None:
                self.min = bound if self.min is None else min(self.min, bound)
                self.max = bound if self.max is None else max(self.max, bound)

    def quantile(self, q: float) -> float | None:
        """The value at rank q·(count − 1), within 1 %; None of an empty sketch."""
        if self.count == 0 or self.min is None or self.max is None:
            return None
        rank = q * (self.count - 1)
        seen = self.zeros
        if seen > rank:
            return max(self.min, 0.0)
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen > rank:
                middle = 2 * _GAMMA**bucket / (_GAMMA + 1)
                return min(max(middle, self.min), self.max)
        return self.max

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "count": self.count, "total": self.total, "min": self.min, "max": self.max, "zeros": self.zeros,
            "buckets": {str(bucket): count for bucket, count in self._buckets.items()},
        }  # fmt: skip

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Sketch:
        """What `to_dict` made."""
        sketch = cls()
        sketch.count, sketch.total, sketch.zeros = data["count"], data["total"], data["zeros"]
        sketch.min, sketch.max = data["min"], data["max"]
        sketch._buckets = {int(bucket): count for bucket, count in data["buckets"].items()}
        return sketch
