"""The x-ratelimit headers of an answer → what the server says of its limits. Pure.

Source: the API's guide to rate limits, section on headers: `x-ratelimit-{limit,remaining,reset}-{requests,tokens}` and
`…-project-tokens`, resets as Go durations ("20ms", "6m0s", "1h2m") until the bucket is full again. Servers that imitate
it write plain seconds too, and fill in what they don't know with -1, 0 or nothing: what makes no sense is unknown,
never zero. So is a limit so low that no service has it: believed, it would stop a run, or refuse every job of it.

An answer may name two limits of tokens, the organisation's and the project's. Both hold, so both are kept, each whole:
a limit and the reset of another make no window.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from runner.limits import MAX_HEADER_LIMIT, MAX_RESET_S

_UNITS_S: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
_PART: Final = re.compile(r"(\d+\.?\d*|\.\d+)(h|ms|m|us|µs|μs|ns|s)")
_WHOLE: Final = re.compile(rf"(?:{_PART.pattern})+")
_SHORTEST: Final = len("x-ratelimit-limit-tokens")

LONGEST_MINUTE_S: Final = 600.0
"""A window that looks longer than this is no minute, however coarsely the reset was rounded."""
ROUNDED_S: Final = 1.0
"""A reset of whole seconds may have been rounded up by as much: of a request that comes back in 20 ms it says 1 s."""
SECOND_S: Final = 2.0
"""A window that looks shorter than this is a second, where more than half of it is left. The bucket of a second that
keeps a limit of a minute looks the same when it is empty, but never has so much left."""
LEAST_REQUESTS: Final = 1.0
"""A lower limit of requests is unknown. One a minute is what the smallest deployments of slow models have."""
LEAST_TOKENS: Final = 1_000.0
"""A lower limit of tokens is unknown. A thousand a minute is the smallest deployment that Azure sells, and a usual job;
if a server means less, its 429s will say so."""


class Allowance(NamedTuple):
    """One limit, as the server sees it. None is unknown."""

    limit: float | None = None  # per minute
    remaining: float | None = None  # as of this answer, its own request already taken off
    reset_s: float | None = None  # until it is full again

    @property
    def per_minute(self) -> float | None:
        """The limit, unless what its reset says makes it one of hours or days, or of a second.

        The API shows RPD in the same header. limit − remaining comes back in `reset_s`, hence the whole limit in the
        window that this makes.
        """
        if self.limit is None or self.remaining is None or self.reset_s is None or self.remaining >= self.limit:
            return self.limit
        reset_s = self.reset_s if self.reset_s % 1 else max(0.0, self.reset_s - ROUNDED_S)
        window_s = reset_s * self.limit / (self.limit - self.remaining)
        if 0 < window_s < SECOND_S and self.remaining > self.limit / 2:
            return 60 * self.limit
        return self.limit if window_s <= LONGEST_MINUTE_S else None


class RateLimits(NamedTuple):
    """What one answer says."""

    requests: Allowance = Allowance()
    tokens: Allowance = Allowance()  # the lower one, where two are named
    more_tokens: Allowance = Allowance()  # …and the other: a higher limit, but there may be less left of it


UNKNOWN: Final = RateLimits()


def of_raw(headers: Iterable[tuple[bytes, bytes]]) -> RateLimits:
    """The same from the raw headers of an answer; most have none of these, and then it costs next to nothing."""
    found = {
        name.lower().decode("latin-1"): value
        for name, value in headers
        if len(name) >= _SHORTEST and name[:12].lower() == b"x-ratelimit-"
    }
    return read({name: value.decode("latin-1") for name, value in found.items()}) if found else UNKNOWN


def read(headers: Mapping[str, str]) -> RateLimits:
    """Reads the headers of an answer."""
    tokens = (_allowance(headers, kind, LEAST_TOKENS) for kind in ("tokens", "project-tokens"))
    return RateLimits(_allowance(headers, "requests", LEAST_REQUESTS), *sorted(tokens, key=_tightness))


def go_duration(text: str | None) -> float | None:
    """`6m0s` → 360.0, `20ms` → 0.02, `1.5` → 1.5 (plain seconds); None for anything else.

    Source: time.ParseDuration of Go, without its signs.
    """
    if text is None:
        return None
    text = text.strip().lower()
    if _WHOLE.fullmatch(text):
        seconds = sum(float(number) * _UNITS_S[unit] for number, unit in _PART.findall(text))
    else:
        seconds = _number(text)
    return seconds if 0 <= seconds <= MAX_RESET_S else None


def _allowance(headers: Mapping[str, str], what: str, least: float) -> Allowance:
    limit = _number(headers.get(f"x-ratelimit-limit-{what}"))
    remaining = _number(headers.get(f"x-ratelimit-remaining-{what}"))
    return Allowance(
        limit if least <= limit <= MAX_HEADER_LIMIT else None,
        remaining if 0 <= remaining <= MAX_HEADER_LIMIT else None,
        go_duration(headers.get(f"x-ratelimit-reset-{what}")),
    )


def _tightness(one: Allowance) -> tuple[float, float]:
    """The lower limit of a minute comes first; of equal or unknown ones that of which less remains."""
    limit, remaining = one.per_minute, one.remaining
    return math.inf if limit is None else limit, math.inf if remaining is None else remaining


def _number(text: str | None) -> float:
    """NaN for what isn't a number: it fails every comparison."""
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan
