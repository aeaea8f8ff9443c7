"""What was measured → the `LoadResult` that load.json holds. Pure but for the host's name and the clock's date."""

from __future__ import annotations

import platform
import socket
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any, Final

from runner import __version__
from runner.load import search
from runner.load.crew import Measured
from runner.load.quantiles import interval, over_repeats
from runner.load.results import Calibration, Level, LoadResult, SummaryLevel
from runner.load.search import Try
from runner.load.spec import LevelSpec

_VERSIONS: Final = ("openai", "httpx2", "aiohttp", "anyio", "uvloop", "orjson")


def level_of(
    spec: LevelSpec, measured: Measured, started_s: float, server_metrics: Mapping[str, Any] | None = None
) -> Level:
    """One level of load.json. `started_s`: since the test's start."""
    lasted_s = max(measured.duration_s, spec.least_s) if measured.complete else measured.duration_s
    return Level.model_validate(
        {
            "label": spec.label,
            "kind": spec.kind,
            "value": spec.value,
            "repeat": spec.repeat,
            "run": spec.run,
            "started_s": started_s,
            "complete": measured.complete,
            "server_metrics": server_metrics,
            **measured.statistics.report(lasted_s),
        }
    )


def try_of(level: Level) -> Try:
    """A level as a search sees it."""
    return Try(level.value, level.goodput, level.client.verdict, level.requests.in_window)


def result_of(
    facts: Mapping[str, Any],
    levels: Sequence[Level],
    *,
    calibration: Calibration | None,
    plan: search.Plan | None,
    ended: str | None,
    complete: bool,
) -> LoadResult:
    """All of load.json. `facts` is what is known before anything is measured."""
    found = None
    if plan is not None and levels:
        tried = [try_of(level) for level in levels if level.complete]
        found = search.report(plan, tried, facts["slo"]) if tried else None
    return LoadResult.model_validate(
        {
            "schema": 1,
            "runner": __version__,
            "ended": ended,
            "complete": complete,
            "calibration": calibration,
            "levels": tuple(levels),
            "summary_levels": tuple(_over_repeats(levels)),
            "search": found,
            **facts,
        }
    )


def _over_repeats(levels: Sequence[Level]) -> list[SummaryLevel]:
    groups: dict[tuple[str, float], list[Level]] = {}
    for level in levels:
        if level.complete:
            groups.setdefault((level.kind, level.value), []).append(level)
    return [_summary(repeats) for repeats in groups.values() if len(repeats) > 1]


def _summary(repeats: Sequence[Level]) -> SummaryLevel:
    first = repeats[0]
    metrics = [{name: found.model_dump() for name, found in level.metrics.items()} for level in repeats]
    rates = [{**level.rates.model_dump(), "goodput": level.goodput} for level in repeats]
    found = {name: interval([each[name] for each in rates]) for name in rates[0]}
    return SummaryLevel.model_validate(
        {
            "label": first.label,
            "kind": first.kind,
            "value": first.value,
            "repeats": len(repeats),
            "metrics": {name: each._asdict() for name, each in over_repeats(metrics).items()},
            "rates": {name: each._asdict() for name, each in found.items() if each is not None},
        }
    )


def host() -> dict[str, Any]:
    """The machine that measured."""
    return {"name": socket.gethostname(), "platform": platform.platform()}


def versions() -> dict[str, str]:
    """What did the measuring."""
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
