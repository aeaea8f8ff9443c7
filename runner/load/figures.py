"""How a figure is written for people: three significant digits, thousands apart, a dash where there is none. Pure."""

from __future__ import annotations

import math
from typing import Final

from runner.load.definitions import Unit

NONE: Final = "–"
"""Not measured, or more than the number of values can support."""


def plain(value: float | None) -> str:
    """`0.0123`, `1.23`, `12.3`, `1,234`: three significant digits, whole from 100 on; ∞ as it is."""
    if value is None:
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    size = abs(value)
    if size >= 99.95 or value == round(value):
        return f"{value:,.0f}"
    decimals = 2 - math.floor(math.log10(size)) if size >= 1e-6 else 9
    return f"{value:.{min(decimals, 9)}f}"


def ms(seconds: float | None) -> str:
    """Seconds as milliseconds, without the unit."""
    return plain(None if seconds is None else 1000 * seconds)


def duration(seconds: float | None) -> str:
    """With the unit that suits it: `310 µs`, `41.2 ms`, `1.24 s`, `12 min`, `∞`."""
    if seconds is None:
        return NONE
    size = abs(seconds)
    if math.isinf(size):
        return plain(seconds)
    if size and size < 0.001:
        return f"{plain(1e6 * seconds)} µs"
    if size < 1:
        return f"{plain(1000 * seconds)} ms"
    return f"{plain(seconds)} s" if size < 600 else f"{plain(seconds / 60)} min"


def share(value: float | None) -> str:
    """A share as per cent; 100 % only where it is all, 0 % only where it is none."""
    if value is None:
        return NONE
    if 0 < value < 0.0005:
        return "<0.1 %"
    if 0.9995 <= value < 1:
        return ">99.9 %"
    return f"{100 * value:.0f} %" if value in (0, 1) else f"{100 * value:.1f} %"


def in_unit(value: float | None, unit: Unit) -> str:
    """A metric's figure with its unit."""
    if value is None:
        return NONE
    return duration(value) if unit == "s" else f"{plain(value)} {unit}"


def number_tick(value: float) -> str:
    """A round number on an axis: no more digits than it has."""
    return f"{value:,.10g}" if abs(value) >= 1e-9 else "0"


def duration_tick(seconds: float) -> str:
    """A round duration on an axis: `0`, `250 ms`, `2.5 s`."""
    for unit, factor in (("µs", 1e6), ("ms", 1e3)):
        if abs(seconds) * factor < 999.5 and (unit == "ms" or abs(seconds) < 0.0009995):
            return f"{number_tick(round(seconds * factor, 6))} {unit}" if seconds else "0"
    return f"{number_tick(round(seconds, 6))} s"


def share_tick(value: float) -> str:
    """A round share on an axis."""
    return f"{number_tick(round(100 * value, 6))} %"
