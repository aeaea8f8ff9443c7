"""How far a figure of a load test may be off by chance alone. Pure.

Within one run: a mean by its standard error, a share by its Wilson interval, a percentile by the order statistics of
its histogram (ranks n·q ± z·√(n·q·(1 − q))); all 95 %. Over repeats: Welch's t-test at 99 %. Gaps between chunks count
as many as there were requests, since those of one answer aren't independent. Nor are requests that wait in one queue:
they count as many as `dependence` leaves, or every third TTFT of two equal runs would look changed at half load.

Accepted: in a run of fewer than 2 × BATCHES steps (seconds) with a TTFT, requests are taken as independent; a
histogram's bins make a percentile's interval a little too wide.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import cached_property
from typing import Final, NamedTuple

from runner.load.quantiles import student_t
from runner.load.results import Level
from runner.sketch import RELATIVE_ERROR, Z_95

MIN_REQUESTS: Final = 20
"""Fewer values than this say nothing about noise."""
BATCHES: Final = 10
"""Stretches of a run that are held against each other: each is to be longer than what a queue remembers."""
_MEDIANS: Final = math.pi / 2
"""Variance of a median over that of a mean, of many values in a bell."""
# fmt: off
_T_995: Final = (
    63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169, 3.106, 3.055, 3.012, 2.977, 2.947,
    2.921, 2.898, 2.878, 2.861, 2.845, 2.831, 2.819, 2.807, 2.797, 2.787, 2.779, 2.771, 2.763, 2.756, 2.750,
)
# fmt: on
"""Student's t, 99.5 %, for 1 to 30 degrees of freedom; beyond 30 the last is used, which errs to caution."""


class Range(NamedTuple):
    """An interval round a figure."""

    low: float
    high: float


def welch(a: Sequence[float], b: Sequence[float]) -> bool:
    """Welch's t-test at 99 %; the degrees of freedom (Welch and Satterthwaite) are rounded down."""
    parts = [statistics.variance(values) / len(values) for values in (a, b)]
    error = math.sqrt(sum(parts))
    apart = abs(statistics.fmean(a) - statistics.fmean(b))
    if error == 0:
        return apart > 0
    freedom = sum(parts) ** 2 / sum(p * p / (len(v) - 1) for p, v in zip(parts, (a, b), strict=True))
    return apart > _T_995[min(max(int(freedom), 1), len(_T_995)) - 1] * error


class Noise:
    """How far the figures of one level may be off."""

    def __init__(self, level: Level) -> None:
        self.level = level

    @cached_property
    def dependence(self) -> float:
        """See the function; every figure of the level needs it."""
        return dependence(self.level)

    def mean(self, name: str) -> Range | None:
        """The mean ± 1.96 standard errors."""
        found, n = self.level.metric(name), self._independent(name)
        if found.mean is None or found.stddev is None or n < MIN_REQUESTS:
            return None
        half = Z_95 * found.stddev / math.sqrt(n)
        return Range(found.mean - half, found.mean + half)

    def quantile(self, name: str, q: float) -> Range | None:
        """Between which two order statistics the quantile lies, by the edges of the histogram's bins, widened by 1 %.

        None where the upper rank is beyond the last value: n is too small to bound it.
        """
        bins = self.level.histograms.get(name, ())
        total, n = sum(count for _, count in bins), self._independent(name)
        half = Z_95 * math.sqrt(n * q * (1 - q))
        if not total or n < MIN_REQUESTS or n * q + half > n - 1 or n * q - half < 0:
            return None
        low, high = ((n * q + side * half) / n for side in (-1, 1))
        before, at_least, seen = 0.0, None, 0
        for upper, count in bins:
            seen += count
            if at_least is None and seen > low * total:
                at_least = before
            if seen >= high * total:
                return Range((at_least or 0.0) * (1 - RELATIVE_ERROR), upper * (1 + RELATIVE_ERROR))
            before = upper
        return None

    def share(self, part: float, n: int) -> Range | None:
        """Wilson's interval of a share of n requests."""
        return share_range(part, n / self.dependence)

    def _independent(self, name: str) -> float:
        n = self.level.metric(name).n
        return (min(n, self.level.requests.succeeded) if name == "icl" else n) / self.dependence


def dependence(level: Level) -> float:
    """How many requests say as much as one that is independent of all others; 1 where that can't be seen.

    The method of batch means: the variance of the mean TTFT as its BATCHES stretches show it, each by its steps'
    medians, over what it would be if all requests were independent. What is beyond the scatter of a median counts, and
    Student's t for how badly that few stretches tell it.
    """
    ttft, (start, end) = level.metric("ttft"), level.window_s
    steps = [tick.ttft_p50 for tick in level.timeline if start <= tick.t < end and tick.ttft_p50 is not None]
    size = len(steps) // BATCHES
    if size < 2 or not ttft.stddev:
        return 1.0
    means = [statistics.fmean(steps[size * k : size * (k + 1)]) for k in range(BATCHES)]
    ratio = statistics.variance(means) / BATCHES / (ttft.stddev**2 / ttft.n)
    return 1.0 + max(0.0, ratio - _MEDIANS) * (student_t(BATCHES - 1) / Z_95) ** 2


def share_range(part: float, n: float) -> Range | None:
    """Wilson's interval of a share of n."""
    if n < MIN_REQUESTS:
        return None
    z2 = Z_95 * Z_95
    middle = (part + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 / (1 + z2 / n) * math.sqrt(part * (1 - part) / n + z2 / (4 * n * n))
    return Range(middle - half, middle + half)
