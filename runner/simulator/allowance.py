"""The server's own RPM and TPM: two token buckets that are taken from together, or not at all. Pure: the clock is lent.

A bucket holds `burst_s` seconds' worth and refills continuously. A request that is larger than the TPM bucket itself is
let in when the bucket is full and leaves a debt; one larger than the whole TPM never is. Nothing is refunded, and a
request that is refused costs nothing.

`remaining` in the headers is counted from the whole minute, as the API does it: the limit less what has not yet been
refilled. An answer that refuses says 0 for the limit that it met.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from runner.simulator.refusals import ApiError, error_object

REQUESTS: Final = "requests"
TOKENS: Final = "tokens"
_SLACK: Final = 1e-6  # a refill computed from clock readings may be this much short of what it is


class Refusal(NamedTuple):
    """Why a request is not let in."""

    kind: str
    retry_after_s: float
    """inf: it never will be."""
    limit: float
    asked: int


@dataclass(slots=True)
class Bucket:
    """One limit."""

    per_minute: float
    burst_s: float
    floor: float
    """The bucket holds at least this much: less than one request at a time would let none in."""
    level: float = 0.0
    at_s: float = 0.0

    @property
    def capacity(self) -> float:
        """What it holds when full."""
        return max(self.per_minute / 60 * self.burst_s, self.floor)

    @property
    def missing(self) -> float:
        """What it lacks to be full."""
        return self.capacity - self.level

    def refill(self, now_s: float) -> None:
        """Brings it up to date."""
        grown = self.level + (now_s - self.at_s) * self.per_minute / 60
        self.level = min(self.capacity, grown)
        self.at_s = now_s

    def wait_s(self, amount: float) -> float:
        """Seconds until `amount` may be taken: 0 is now."""
        short = min(amount, self.capacity) - self.level
        return 0.0 if short <= _SLACK else short / self.per_minute * 60


class Allowance:
    """RPM and TPM of one server."""

    def __init__(self, rpm: float | None, tpm: float | None, burst_s: float, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._burst_s = burst_s
        self._buckets: dict[str, Bucket] = {}
        self.limit(rpm, tpm)

    def limit(self, rpm: float | None, tpm: float | None) -> None:
        """Sets the limits, None for none. A new bucket is full; one that there was keeps its level, debt and all."""
        before, self._buckets, now_s = self._buckets, {}, self._clock()
        for kind, per_minute in ((REQUESTS, rpm), (TOKENS, tpm)):
            if per_minute is None:
                continue
            bucket = self._buckets[kind] = Bucket(per_minute, self._burst_s, floor=1.0, level=math.inf, at_s=now_s)
            if kind in before:
                before[kind].refill(now_s)
                bucket.level = before[kind].level
            bucket.refill(now_s)

    def take(self, tokens: int) -> Refusal | None:
        """Takes one request and its tokens, or nothing and says why."""
        now_s = self._clock()
        amounts = {REQUESTS: 1, TOKENS: tokens}
        worst: Refusal | None = None
        for kind, bucket in self._buckets.items():
            bucket.refill(now_s)
            if amounts[kind] == 0:
                continue  # what asks for nothing waits for no debt
            wait_s = math.inf if amounts[kind] > bucket.per_minute >= 1 else bucket.wait_s(amounts[kind])
            if wait_s > 0 and (worst is None or wait_s > worst.retry_after_s):
                worst = Refusal(kind, wait_s, bucket.per_minute, amounts[kind])
        if worst is None:
            for kind, bucket in self._buckets.items():
                bucket.level -= amounts[kind]
        return worst

    def headers(self, exhausted: str | None = None) -> dict[str, str]:
        """`x-ratelimit-*` of the limits there are, as of now."""
        headers: dict[str, str] = {}
        now_s = self._clock()
        for kind, bucket in self._buckets.items():
            bucket.refill(now_s)
            left = 0.0 if kind == exhausted else bucket.per_minute - bucket.missing
            headers[f"x-ratelimit-limit-{kind}"] = f"{math.floor(bucket.per_minute)}"
            headers[f"x-ratelimit-remaining-{kind}"] = f"{max(0, math.floor(left + _SLACK))}"
            headers[f"x-ratelimit-reset-{kind}"] = duration(bucket.missing / bucket.per_minute * 60)
        return headers


def duration(seconds: float) -> str:
    """Seconds as Go writes them and the API sends them: `0s`, `20ms`, `1.5s`, `6m0s`, `1h2m3s`."""
    ms = math.ceil(max(0.0, seconds) * 1_000)
    if 0 < ms < 1_000:
        return f"{ms}ms"
    minutes, rest_ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest_ms / 1_000:g}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def rate_limited(refusal: Refusal, model: str) -> ApiError:
    """The 429 that says so. A request that can never fit is told how large it is, and not to come back."""
    numbers = f"for {model} on {refusal.kind} per min: Limit {refusal.limit:g}, Requested {refusal.asked}."
    if math.isinf(refusal.retry_after_s):
        message, headers = f"Request too large {numbers}", {}
    else:
        message = f"Rate limit reached {numbers} Please try again in {duration(refusal.retry_after_s)}."
        headers = come_back(refusal.retry_after_s)
    return ApiError(429, error_object(message, refusal.kind, code="rate_limit_exceeded"), headers)


def come_back(seconds: float) -> dict[str, str]:
    """Retry-After in whole seconds, and the exact retry-after-ms; both rounded up."""
    return {"retry-after": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1_000))}
