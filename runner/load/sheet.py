"""load.csv: a load test as rows for spreadsheets. Pure.

One row a level (LEVEL_COLUMNS, then `<metric>_<statistic>` for every metric): numbers are plain, an empty cell is
unknown, and text that could be taken for a formula is disarmed with a leading quote.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from typing import Final

from runner.escape import for_line
from runner.load.definitions import METRICS
from runner.load.results import STATISTICS, Level, LoadResult, Rates, Requests

_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_RATES: Final = tuple(Rates.model_fields)
_COUNTS: Final = tuple(Requests.model_fields)
LEVEL_COLUMNS: Final = (
    *("name", "model", "label", "kind", "value", "repeat", "run", "complete"),
    *("verdict", "reasons", "started_s", "duration_s", "window_from_s", "window_to_s"),
    *_COUNTS,
    *("throttled", "throttled_attempts", "backed_off", "backed_off_s", "without_usage", "unjudged", "errors"),
    *_RATES,
    *("steady_output_tokens_per_s", "steady_requests_per_s", "goodput"),
    *("lag_p99_s", "lag_max_s", "schedule_delay_p99_s", "schedule_delay_max_s", "cpu_share", "coalesced_share"),
)
"""The first columns of load.csv: which test and level, the verdict on the client and why, when (seconds since the
test's start; the window since the level's), how many requests went where, 429s, pauses after failures that took no
time, errors as `kind=n; …`, rates a second of the window, the steady stretch, goodput as a share, and how the client
kept up."""


def metric_columns() -> list[str]:
    """The other columns: `ttft_p99_s` is seconds, `output_tokens_p50` tokens, `ttft_n` how many values."""
    seconds = {metric.key: "_s" if metric.unit == "s" else "" for metric in METRICS}
    return [
        f"{key}_{statistic}" + ("" if statistic == "n" else suffix)
        for key, suffix in seconds.items()
        for statistic in STATISTICS
    ]


def to_csv(result: LoadResult) -> bytes:
    """load.csv: a header and one row a level, UTF-8, RFC 4180."""
    lines = _Lines()
    writer = csv.writer(lines, lineterminator="\r\n")
    writer.writerow([*LEVEL_COLUMNS, *metric_columns()])
    for level in result.levels:
        named = _named_cells(result, level)
        writer.writerow([_cell(named[name]) for name in LEVEL_COLUMNS] + [_cell(v) for v in _metric_cells(level)])
    return "".join(lines).encode()


class _Lines(list[str]):
    """What csv can write to."""

    def write(self, line: str) -> None:
        self.append(line)


def _named_cells(result: LoadResult, level: Level) -> Mapping[str, object]:
    steady, client = level.steady, level.client
    same = (
        *("label", "kind", "value", "repeat", "run", "complete", "started_s", "duration_s", "goodput"),
        *("throttled", "throttled_attempts", "backed_off", "backed_off_s", "without_usage", "unjudged"),
    )
    return {
        "name": result.name,
        "model": result.model,
        **{name: getattr(level, name) for name in same},
        "verdict": client.verdict,
        "reasons": "; ".join(client.reasons),
        "window_from_s": level.window_s[0],
        "window_to_s": level.window_s[1],
        **level.requests.model_dump(),
        "errors": "; ".join(f"{kind}={n}" for kind, n in sorted(level.errors.items())),
        **level.rates.model_dump(),
        "steady_output_tokens_per_s": steady and steady.output_tokens_per_s,
        "steady_requests_per_s": steady and steady.requests_per_s,
        **client.model_dump(exclude={"verdict", "reasons"}),
    }


def _metric_cells(level: Level) -> Iterator[object]:
    for metric in METRICS:
        found = level.metric(metric.key)
        for statistic in STATISTICS:
            yield getattr(found, statistic)


def _cell(value: object) -> str:
    """A number as it is; text so that no spreadsheet runs it (OWASP, CSV injection)."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    text = str(value)
    return f"'{for_line(text)}" if text.startswith(_FORMULA) else for_line(text)
