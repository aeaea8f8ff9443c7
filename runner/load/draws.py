"""Distributions of lengths and pauses, drawn without state. Pure.

A draw is the distribution's inverse at one uniform number, and the uniform numbers of request k come from a hash of
the seed and k: the k-th request is the same whichever process makes it and in whatever order.

As users write them: `512`, `uniform:100..500`, `normal:512,100` (mean, deviation), `lognormal:400,0.8` (median, σ of
the logarithm), `exponential:2` (mean). Values below zero become zero; the three without an end are cut at CUT of
their mass, so that one request in a million doesn't hold up a test.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import shake_128
from statistics import NormalDist
from typing import Final, Protocol

from runner.errors import UsageError

CUT: Final = 0.9999
"""The share of the mass that is drawn from: as if the rest were not there."""
_STANDARD: Final = NormalDist()


def noise(size: int, *key: object) -> bytes:
    """So many bytes by chance, the same for the same key; more of them begin with the same ones."""
    return shake_128("\0".join(map(str, key)).encode()).digest(size)


def uniforms(n: int, *key: object) -> list[float]:
    """So many uniform numbers, above 0 and below 1."""
    data = noise(8 * n, *key)
    return [(int.from_bytes(data[8 * i : 8 * i + 8], "big") + 0.5) / 2**64 for i in range(n)]


class Draw(Protocol):
    """A distribution."""

    def at(self, u: float, k: int) -> float:
        """Its value for request k, whose uniform number is u; at least 0."""

    def describe(self) -> str:
        """As a user writes it."""


@dataclass(frozen=True, slots=True)
class Constant:
    """Always the same."""

    value: float

    def at(self, u: float, k: int) -> float:
        """The value."""
        del u, k
        return self.value

    def describe(self) -> str:
        """As a user writes it."""
        return f"{self.value:g}"


@dataclass(frozen=True, slots=True)
class Uniform:
    """Between two values."""

    low: float
    high: float

    def at(self, u: float, k: int) -> float:
        """Its value at u."""
        del k
        return self.low + u * (self.high - self.low)

    def describe(self) -> str:
        """As a user writes it."""
        return f"uniform:{self.low:g}..{self.high:g}"


@dataclass(frozen=True, slots=True)
class Normal:
    """A bell, cut off below zero."""

    mean: float
    deviation: float

    def at(self, u: float, k: int) -> float:
        """Its value at u."""
        del k
        return max(0.0, self.mean + self.deviation * _STANDARD.inv_cdf(u * CUT))

    def describe(self) -> str:
        """As a user writes it."""
        return f"normal:{self.mean:g},{self.deviation:g}"


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Lengths of real prompts are about like this: many short ones, a few very long."""

    median: float
    sigma: float

    def at(self, u: float, k: int) -> float:
        """Its value at u."""
        del k
        return self.median * math.exp(self.sigma * _STANDARD.inv_cdf(u * CUT))

    def describe(self) -> str:
        """As a user writes it."""
        return f"lognormal:{self.median:g},{self.sigma:g}"


@dataclass(frozen=True, slots=True)
class Exponential:
    """Pauses of people who think on their own."""

    mean: float

    def at(self, u: float, k: int) -> float:
        """Its value at u."""
        del k
        return -self.mean * math.log1p(-u * CUT)

    def describe(self) -> str:
        """As a user writes it."""
        return f"exponential:{self.mean:g}"


@dataclass(frozen=True, slots=True)
class Recorded:
    """The values of a file, in order and again from the start: lengths of one trace keep together."""

    values: Sequence[float]
    name: str

    def at(self, u: float, k: int) -> float:
        """The value of request k."""
        del u
        return self.values[k % len(self.values)]

    def describe(self) -> str:
        """Where they are from."""
        return f"file:{self.name}"


_NUMBER: Final = r"(\d+(?:\.\d+)?)"
_FORMS: Final = (
    (re.compile(_NUMBER), Constant),
    (re.compile(rf"uniform:{_NUMBER}\.\.{_NUMBER}"), Uniform),
    (re.compile(rf"normal:{_NUMBER},{_NUMBER}"), Normal),
    (re.compile(rf"lognormal:{_NUMBER},{_NUMBER}"), LogNormal),
    (re.compile(rf"exponential:{_NUMBER}"), Exponential),
)
MAX_SIGMA: Final = 5.0
"""With more, one value in a hundred is a hundred thousand times the median."""


def parse_draw(text: str, *, maximum: float) -> Draw:
    """A distribution as a user writes it; `maximum` bounds what its numbers may be.

    Raises:
        UsageError: it is none, or one of its numbers is out of range.
    """
    text = text.strip()
    for pattern, kind in _FORMS:
        if found := pattern.fullmatch(text):
            numbers = [float(group) for group in found.groups()]
            if max(numbers) > maximum or (kind is Uniform and numbers[0] > numbers[1]):
                raise UsageError(f"{text[:80]!r}: numbers are in order and at most {maximum:g}")
            if kind is LogNormal and numbers[1] > MAX_SIGMA:
                raise UsageError(f"{text[:80]!r}: σ of a lognormal is at most {MAX_SIGMA:g}")
            return kind(*numbers)
    raise UsageError(
        "a distribution is 512, uniform:100..500, normal:512,100, lognormal:400,0.8 or exponential:2, "
        f"not {text[:80]!r}"
    )
