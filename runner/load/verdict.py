"""Whether a level measured the server or its own client. Pure.

Signs of a client that can't keep up: its loop wakes late (how late a 10 ms sleep is, 99th percentile), it sends late
(send lag, 99th percentile; waits for limits are no lag), it has no CPU left, it reads many chunks in one wake-up.
Each sign has two thresholds; the worst sign decides.

Thresholds are starting values from measurements on a small machine, where TTFT and ITL were true to 2 ms below the
first and off by tens of milliseconds above the second. Chunks read together are at most suspect: a server may well
send them together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

Verdict = Literal["ok", "suspect", "client-bound"]
_Shown = Callable[[float], str]
_ORDER: Final[tuple[Verdict, ...]] = ("ok", "suspect", "client-bound")


class Limits(NamedTuple):
    """Up to `ok` a sign is fine, up to `suspect` it is that, beyond it is client-bound."""

    ok: float
    suspect: float


LAG_S: Final = Limits(0.010, 0.030)
CPU_SHARE: Final = Limits(0.50, 0.75)
COALESCED_SHARE: Final = Limits(0.25, 1.0)


_LAG: Final = ("the event loop's worst wake-ups were {} late", "the event loop woke {} late at p99")
_DELAY: Final = ("the worst sends were {} late", "requests were sent {} late at p99")
"""Without and with enough values for a percentile."""


@dataclass(frozen=True, slots=True)
class ClientSigns:
    """What was seen of the client during a level; None was not measured."""

    lag_p99_s: float | None
    schedule_delay_p99_s: float | None = None
    """None in a closed loop, too."""
    cpu_share: float | None = None
    """Of one core, of the busiest process."""
    coalesced_share: float | None = None
    lag_is_p99: bool = True
    """False: too few measurements for a percentile, so that it is one of the worst."""
    delay_is_p99: bool = True


class Judged(NamedTuple):
    """The verdict, and why, in words."""

    verdict: Verdict
    reasons: tuple[str, ...]


def judge(signs: ClientSigns) -> Judged:
    """The verdict on a level's client."""
    checks = (
        (signs.lag_p99_s, LAG_S, _s, _LAG[signs.lag_is_p99]),
        (signs.schedule_delay_p99_s, LAG_S, _s, _DELAY[signs.delay_is_p99]),
        (signs.cpu_share, CPU_SHARE, _percent, "a process used {} of a core"),
        (signs.coalesced_share, COALESCED_SHARE, _percent, "{} of the chunks were read together with another"),
    )
    found: list[tuple[Verdict, str]] = [
        _sign(value, limits, shown, text) for value, limits, shown, text in checks if value is not None
    ]
    for value, name in ((signs.lag_p99_s, "the event loop's lag"), (signs.cpu_share, "CPU use")):
        if value is None:
            found.append(("suspect", f"{name} was not measured"))
    # The worst first.
    found.sort(key=lambda item: -_ORDER.index(item[0]))
    return Judged(found[0][0], tuple(text for verdict, text in found if verdict != "ok"))


def _sign(value: float, limits: Limits, shown: _Shown, text: str) -> tuple[Verdict, str]:
    # So that NaN, of which nothing is known, is the worst.
    verdict: Verdict = "ok" if value <= limits.ok else "suspect" if value <= limits.suspect else "client-bound"
    bound = limits.ok if verdict == "suspect" else limits.suspect
    return verdict, f"{text.format(shown(value))} (more than {shown(bound)})"


def _s(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _percent(share: float) -> str:
    return f"{share:.0%}"
