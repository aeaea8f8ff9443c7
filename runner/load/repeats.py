"""A level over its repeats, for table and report: means with their 95 % intervals. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from runner.load.figures import NONE, ms, plain, share
from runner.load.results import Interval, LoadResult, SummaryLevel


class _Column(NamedTuple):
    head: str
    of: Callable[[SummaryLevel], Interval | None]
    write: Callable[[float | None], str]
    unit: str = ""


_COLUMNS: Final = (
    _Column("answers\n/s", lambda level: level.rates.get("succeeded_per_s"), plain),
    _Column("output\ntok/s", lambda level: level.rates.get("output_tokens_per_s"), plain),
    _Column("goodput\n", lambda level: level.rates.get("goodput"), share),
    _Column("TTFT\np50", lambda level: level.metrics.get("ttft_p50"), ms, "ms"),
    _Column("TTFT\np99", lambda level: level.metrics.get("ttft_p99"), ms, "ms"),
    _Column("ICL\np50", lambda level: level.metrics.get("icl_p50"), ms, "ms"),
    _Column("E2E\np50", lambda level: level.metrics.get("e2e_p50"), plain, "s"),
)


def heads_of(result: LoadResult, *, units: bool = False) -> list[str]:
    """The figures' names, of two lines; the level's own column is not among them."""
    return ["n\n", *(f"{each.head} {each.unit if units else ''}".rstrip(" ") for each in _shown(result))]


def rows_of(result: LoadResult) -> Iterator[list[str]]:
    """The level's label, how many repeats it had, then `mean ± half of the interval`."""
    bound = {(level.kind, level.value) for level in result.levels if level.client_bound}
    for level in result.summary_levels:
        label = level.label + " (client-bound)" * ((level.kind, level.value) in bound)
        yield [label, str(level.repeats), *(_cell(column, level) for column in _shown(result))]


def _shown(result: LoadResult) -> list[_Column]:
    """Those that any level has."""
    return [each for each in _COLUMNS if any(each.of(level) is not None for level in result.summary_levels)]


def _cell(column: _Column, level: SummaryLevel) -> str:
    found = column.of(level)
    if found is None or found.mean is None or found.high is None:
        return NONE
    half = found.high - found.mean
    if half < 1e-6 * abs(found.mean):
        half = 0.0  # the last digits of a float are no spread
    return f"{column.write(found.mean)} ± {column.write(float(f'{half:.2g}'))}"
