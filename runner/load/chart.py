"""Charts as static SVG: lines, steps, bars and distributions over linear or logarithmic axes. Pure.

A chart needs no script: every point carries its text as a `<title>`. Colours are classes (`c0`…`c7`), so that one style
sheet serves light and dark. Ticks stand at 1, 2 or 5 times a power of ten, or where the caller says, and a tick label
that would touch its neighbour is left out.

Accepted: text is measured by its number of characters; nothing here knows fonts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Final, Literal, NamedTuple

from runner.load.figures import number_tick
from runner.load.markup import Markup, element, join

WIDTH: Final = 460
HEIGHT: Final = 270
COLOURS: Final = 8
"""Further series begin again, dashed."""
TICKS: Final = 6
"""About so many on an axis."""
LOG_FROM: Final = 20
"""An axis whose values span more than this ratio is easier to read in logarithms."""
_CHARACTER: Final = 7.8
_RIGHT, _TOP, _BOTTOM = 14.0, 30.0, 42.0


class Point(NamedTuple):
    """`y` None is a gap in the line."""

    x: float
    y: float | None
    note: str = ""
    """What is shown when one points at it; empty: nothing."""
    doubtful: bool = False
    """Drawn hollow: it is there, but don't build on it."""
    label: str = ""
    """Written beside it, where there is room."""


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one name. Of `bars`, point i covers from the x before it to its own; the first is the left edge."""

    name: str
    points: tuple[Point, ...]
    kind: Literal["line", "curve", "step", "bars", "dots"] = "line"
    """A line has dots at its points, a curve none; a step holds its value until the next point."""
    colour: int = 0
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """What is measured along it and how a tick is written."""

    label: str
    write: Callable[[float], str] = number_tick
    log: bool = False
    ticks: tuple[float, ...] = ()
    """Where ticks are wanted; empty: at round numbers."""
    top: float | None = None
    """Where it ends; None: at the largest value."""


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart.

    `limits` are horizontal lines with a name, such as an SLO; `bands` texts over stretches of x, shown when one points
    at them; `shaded` stretches of x that don't count.
    """

    title: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    limits: tuple[tuple[float, str], ...] = ()
    bands: tuple[tuple[float, float, str], ...] = ()
    shaded: tuple[tuple[float, float], ...] = ()
    height: int = HEIGHT


class Scale(NamedTuple):
    """Values → pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    def __call__(self, value: float) -> float:
        """The pixel of a value; outside the range it is held at the edge."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return self.start + (self.end - self.start) * ((at - low) / (high - low) if high > low else 0.5)


def wants_log(values: Sequence[float | None]) -> bool:
    """Whether positive values span so much that logarithms read better."""
    known = [value for value in values if value is not None and 0 < value < math.inf]
    return bool(known) and max(known) > LOG_FROM * min(known)


def figure(chart: Chart) -> Markup:
    """The chart with its title and legend; a sentence in its place where it has no point."""
    head = element("figcaption", None, chart.title)
    if not any(point.y is not None for series in chart.series for point in series.points):
        return element("figure", None, head, element("p", {"class": "none"}, "No data."))
    return element("figure", None, head, svg(chart), legend(chart))


def legend(chart: Chart) -> Markup:
    """Names of the series, of a single one too (is it p50 or p99?), and what a hollow point means."""
    shown = [series for series in chart.series if series.name and any(p.y is not None for p in series.points)]
    items = [element("li", None, _swatch(series), series.name) for series in shown]
    if any(point.doubtful for series in shown for point in series.points):
        ring = element("circle", {"class": "doubtful", "cx": 11, "cy": 6, "r": 4})
        items.append(element("li", None, _small(ring), "client-bound: measures the client"))
    return element("ul", {"class": "legend"}, *items) if items else Markup()


def _small(inside: Markup) -> Markup:
    return element("svg", {"class": "swatch", "viewBox": "0 0 22 12", "aria-hidden": "true"}, inside)


def _swatch(series: Series) -> Markup:
    if series.kind == "bars":
        return _small(element("rect", {"class": f"bar {_colour(series)}", "x": 3, "y": 1, "width": 16, "height": 10}))
    return _small(element("path", {"class": _stroke(series), "d": "M1 6H21"}))


def _colour(series: Series) -> str:
    return f"c{series.colour % COLOURS}"


def _stroke(series: Series) -> str:
    dashed = " dashed" if series.dashed or series.colour >= COLOURS else ""
    return f"line {_colour(series)}{dashed}"


def svg(chart: Chart) -> Markup:
    """The picture alone. It scales with the width that it is given."""
    y = _scale(chart.y, _values(chart, "y"), chart.height - _BOTTOM, _TOP, zero=True)
    y_ticks = _ticks(chart.y, y)
    left = 12 + _CHARACTER * max((len(chart.y.write(tick)) for tick in y_ticks), default=1)
    x = _scale(chart.x, _values(chart, "x"), left, WIDTH - _RIGHT, zero=False)
    parts = [
        *_shaded(chart, x, y),
        *_y_axis(chart, y, y_ticks, left),
        *_x_axis(chart, x),
        *_limits(chart, y, left),
        *(_drawn(series, x, y) for series in chart.series),
        *_labels(chart, x, y),
        *(_dots(series, x, y) for series in chart.series),
        *_bands(chart, x, y),
    ]
    shape = {"viewBox": f"0 0 {WIDTH} {chart.height}", "role": "img", "aria-label": chart.title, "class": "chart"}
    return element("svg", shape, *parts)


# ── Axes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _values(chart: Chart, name: Literal["x", "y"]) -> list[float]:
    points = [point for series in chart.series for point in series.points]
    found = [point.x if name == "x" else point.y for point in points]
    found += [limit for limit, _ in chart.limits] if name == "y" else []
    return [value for value in found if value is not None and math.isfinite(value)]


def _scale(axis: Axis, values: list[float], start: float, end: float, *, zero: bool) -> Scale:
    if axis.log:
        positive = [value for value in values if value > 0] or [1.0]
        low, high = min(positive), axis.top or max(positive)
        return Scale(low / 1.15, high * 1.15, start, end, log=True)
    low = min(0.0, *values) if zero else min(values, default=0.0)
    high = axis.top or max(values, default=0.0)
    if high <= low:
        low, high = (low, low + 1) if zero else (low - 1, low + 1)
    return Scale(low, high if not zero or axis.top else high * 1.05, start, end, log=False)


def round_ticks(low: float, high: float) -> list[float]:
    """Round numbers within a range, about TICKS of them."""
    step = 10.0 ** math.floor(math.log10((high - low) / TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= TICKS)
    first = math.ceil(low / step - 1e-9)
    return [(first + i) * step for i in range(math.floor(high / step + 1e-9) - first + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten; only powers of ten where that is enough; none closer than is readable."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        found = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
        if len(found) <= TICKS + 1:
            break
    return found[:: 1 + len(found) // (TICKS + 2)]


def _ticks(axis: Axis, scale: Scale) -> list[float]:
    if axis.ticks:
        return [tick for tick in axis.ticks if scale.low <= tick <= scale.high]
    return log_ticks(scale.low, scale.high) if scale.log else round_ticks(scale.low, scale.high)


def _y_axis(chart: Chart, y: Scale, ticks: list[float], left: float) -> Iterator[Markup]:
    for tick in ticks:
        at = y(tick)
        yield element("path", {"class": "grid", "d": f"M{left:.1f} {at:.1f}H{WIDTH - _RIGHT:.1f}"})
        yield _text(chart.y.write(tick), left - 6, at + 4, "end")
    yield _text(chart.y.label, 2, 12, "start", "name")


def _x_axis(chart: Chart, x: Scale) -> Iterator[Markup]:
    base = chart.height - _BOTTOM
    free = -math.inf
    for tick in _ticks(chart.x, x):
        label, at = chart.x.write(tick), x(tick)
        half = _CHARACTER * len(label) / 2
        yield element("path", {"class": "tick", "d": f"M{at:.1f} {base:.1f}v4"})
        if at - half > free:
            shown_at = min(at, WIDTH - half)
            yield _text(label, shown_at, base + 18, "middle")
            free = at + half + 6
    yield element("path", {"class": "axis", "d": f"M{x.start:.1f} {base:.1f}H{x.end:.1f}"})
    yield _text(chart.x.label, (x.start + x.end) / 2, chart.height - 5, "middle", "name")


def _limits(chart: Chart, y: Scale, left: float) -> Iterator[Markup]:
    for value, name in chart.limits:
        at = y(value)
        yield element("path", {"class": "limit", "d": f"M{left:.1f} {at:.1f}H{WIDTH - _RIGHT:.1f}"})
        yield _text(name, left + 4, at - 4 if at > _TOP + 14 else at + 14, "start", "limit-name")


def _bands(chart: Chart, x: Scale, y: Scale) -> Iterator[Markup]:
    for start, end, note in chart.bands:
        yield element("rect", {"class": "hit", **_stretch(start, end, x, y)}, element("title", None, note))


def _shaded(chart: Chart, x: Scale, y: Scale) -> Iterator[Markup]:
    for start, end in chart.shaded:
        if start < end:
            yield element("rect", {"class": "shaded", **_stretch(start, end, x, y)})


def _stretch(start: float, end: float, x: Scale, y: Scale) -> dict[str, str | float | None]:
    left, right = x(start), x(end)
    return {"x": left, "y": y.end, "width": max(right - left, 1.0), "height": y.start - y.end}


def _labels(chart: Chart, x: Scale, y: Scale) -> Iterator[Markup]:
    """Labels of points, each left out where it would touch one that stands already, or another point."""
    points = [point for series in chart.series for point in series.points if point.y is not None]
    taken = [(x(point.x) - 3, x(point.x) + 3, y(point.y or 0.0)) for point in points]
    for point in points:
        at, base, width = x(point.x), y(point.y or 0.0) - 7, _CHARACTER * len(point.label)
        left = at - width - 5 if at + width > WIDTH - _RIGHT else at + 5
        if point.label and all(
            left > to or left + width < start or abs(base - 4 - row) > 9 for start, to, row in taken
        ):
            yield _text(point.label, left, base, "start", "label")
            taken.append((left, left + width, base - 4))


def _text(value: str, x: float, y: float, anchor: str, name: str | None = None) -> Markup:
    return element("text", {"x": float(x), "y": float(y), "text-anchor": anchor, "class": name}, value)


# ── Series ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _drawn(series: Series, x: Scale, y: Scale) -> Markup:
    if series.kind == "dots":
        return Markup()
    if series.kind == "bars":
        return join(_bar(series, before, point, x, y) for before, point in pairwise(series.points) if point.y)
    path = "".join(_path(list(points), series, x, y) for known, points in _runs(series.points) if known)
    return element("path", {"class": _stroke(series), "d": path})


def _runs(points: Sequence[Point]) -> Iterator[tuple[bool, Iterator[Point]]]:
    """Stretches of known and of unknown values."""
    return groupby(points, key=lambda point: point.y is not None)


def _path(points: list[Point], series: Series, x: Scale, y: Scale) -> str:
    places = [(x(point.x), y(point.y or 0.0)) for point in points]
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
    for at_x, at_y in places[1:]:
        path += f"H{at_x:.1f}V{at_y:.1f}" if series.kind == "step" else f"L{at_x:.1f} {at_y:.1f}"
    return path


def _bar(series: Series, before: Point, point: Point, x: Scale, y: Scale) -> Markup:
    left, right, top = x(before.x), x(point.x), y(point.y or 0.0)
    place = {"x": left + 0.5, "y": top, "width": max(right - left - 1, 0.8), "height": max(y(y.low) - top, 0.0)}
    title = (element("title", None, point.note),) if point.note else ()
    return element("rect", {"class": f"bar {_colour(series)}", **place}, *title)


def _dots(series: Series, x: Scale, y: Scale) -> Markup:
    if series.kind not in ("line", "dots"):
        return Markup()
    return join(_dot(series, point, x(point.x), y(point.y)) for point in series.points if point.y is not None)


def _dot(series: Series, point: Point, x: float, y: float) -> Markup:
    name = f"dot {_colour(series)}" + (" doubtful" if point.doubtful else "")
    size = 2.2 if series.kind == "dots" else 3.6
    dot = element("circle", {"class": name, "cx": x, "cy": y, "r": size + point.doubtful})
    if not point.note:
        return dot
    hit = element("circle", {"class": "hit", "cx": x, "cy": y, "r": 9}, element("title", None, point.note))
    return join((dot, hit))
