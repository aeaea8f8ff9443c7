"""What a simulated server is like: its speed, its limits, its faults. Pure.

A profile travels to another process as one line of JSON, so that an API key never stands on a command line.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from runner.errors import UsageError
from runner.limits import SIMULATOR_TOKENS

DEFAULT_MODEL: Final = "synthetic-1"
DEFAULT_OUTPUT_TOKENS: Final = 40


@dataclass(frozen=True, slots=True)
class Profile:
    """Settings of one simulated server.

    Raises:
        UsageError: a value is out of range.
    """

    ttft_s: float = 0.05
    """From the request to the first content of its answer."""
    tokens_per_s: float = 100.0
    """Of one stream; inf writes as fast as the reader takes."""
    jitter: float = 0.2
    """Relative: sigma of a log-normal factor with mean 1 on TTFT and on every gap."""
    output_tokens: int | tuple[int, int] = DEFAULT_OUTPUT_TOKENS
    """Length of an answer that no maximum cuts: a range, or a mean (then between its half and one and a half of it)."""
    seed: int = 0
    rpm: float | None = None
    tpm: float | None = None
    burst_s: float = 1.0
    """How many seconds' worth of rpm and tpm may be spent at once."""
    max_concurrency: int | None = None
    """Requests at once; one above is answered 503 server_is_overloaded."""
    fault_rates: Mapping[str, float] = field(default_factory=dict)
    """Probability of each scenario, per request."""
    fault_times: int | None = None
    """Random faults hit only the first so many requests with the same content; None is no bound."""
    storm_s: float = 0.0
    """A storm of 429s begins with the first request and lasts this long…"""
    storm_period_s: float = 0.0
    """…and comes again every so many seconds; 0 is no storms."""
    model: str = DEFAULT_MODEL
    """The name in /v1/models, and the one that takes a `#SCENARIO` suffix."""
    api_key: str | None = field(default=None, repr=False)
    """When set, every other key is answered 401."""

    def __post_init__(self) -> None:
        for name in ("ttft_s", "jitter", "storm_s", "storm_period_s"):
            self._check(name, 0 <= getattr(self, name) < math.inf)
        self._check("jitter", self.jitter <= 2)
        self._check("tokens_per_s", self.tokens_per_s > 0)
        self._check("burst_s", 0 < self.burst_s <= 60)
        for name in ("rpm", "tpm", "max_concurrency"):
            value = getattr(self, name)
            self._check(name, value is None or 0 < value < math.inf)
        low, high = token_range(self.output_tokens)
        self._check("output_tokens", 1 <= low <= high <= SIMULATOR_TOKENS)
        self._check("fault_rates", all(0 <= rate <= 1 for rate in self.fault_rates.values()))
        self._check("fault_rates", sum(self.fault_rates.values()) <= 1 + 1e-9)

    def _check(self, name: str, good: bool) -> None:
        if not good:
            raise UsageError(f"simulator: {name} can't be {getattr(self, name)!r}")

    def to_json(self) -> bytes:
        """One line of JSON that `from_json` reads. Infinity, which JSON lacks, goes as the string it is."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return orjson.dumps(values | {"tokens_per_s": str(self.tokens_per_s), "fault_rates": dict(self.fault_rates)})

    @classmethod
    def from_json(cls, line: bytes) -> Profile:
        """The profile that `to_json` wrote.

        Raises:
            UsageError: it is no such line.
        """
        try:
            values: dict[str, Any] = orjson.loads(line)
            tokens = values["output_tokens"]
            values["output_tokens"] = tuple(tokens) if isinstance(tokens, list) else tokens
            return cls(**values | {"tokens_per_s": float(values["tokens_per_s"])})
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(f"simulator: unreadable profile: {error}") from error


def token_range(output_tokens: int | tuple[int, int]) -> tuple[int, int]:
    """Shortest and longest natural answer."""
    if isinstance(output_tokens, tuple):
        return output_tokens
    return max(1, output_tokens // 2), max(1, output_tokens + output_tokens // 2)


def mean_tokens(output_tokens: int | tuple[int, int]) -> int:
    """What an answer without a maximum is charged for."""
    return output_tokens if isinstance(output_tokens, int) else sum(output_tokens) // 2


FLAKY: Final[Mapping[str, float]] = {
    "http_408": 0.01,
    "http_429": 0.02,
    "http_500": 0.02,
    "http_502": 0.01,
    "http_503": 0.01,
    "http_529": 0.01,
    "reset_before_headers": 0.01,
    "reset_mid_stream": 0.015,
    "fin_mid_stream": 0.015,
    "cut_chunk": 0.01,
    "half_event": 0.01,
    "no_finish": 0.01,
    "in_stream_error": 0.015,
    "in_stream_rate_limit": 0.005,
    "bad_json": 0.005,
    "html_200": 0.005,
    "split_bytes": 0.005,
    "coalesced": 0.005,
    "finish_without_done": 0.01,
}
"""One request in five. A stall isn't among them: it would cost a client its whole timeout."""

PRESETS: Final[Mapping[str, Profile]] = {
    "default": Profile(),
    "storm": Profile(storm_s=1.5, storm_period_s=6.0),
    "flaky": Profile(fault_rates=FLAKY, fault_times=2),
}
"""Servers to rehearse with. `flaky` spares the third request with the same content, so each of its faults passes."""


def preset(name: str) -> Profile:
    """The preset of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in PRESETS:
        raise UsageError(f"simulator: no preset is called {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]
