"""A recorded trace: lines of JSONL or CSV → send times and token lengths. Pure.

Forms that are known by their columns, whatever their case:

| trace | send time | input | output |
| --- | --- | --- | --- |
| Mooncake, AIPerf (JSONL) | `timestamp`, whole milliseconds | `input_length` | `output_length` |
| BurstGPT (CSV) | `Timestamp`, seconds | `Request tokens` | `Response tokens` |
| Azure LLM inference (CSV) | `TIMESTAMP`, a date and time | `ContextTokens` | `GeneratedTokens` |

The unit of a time: `timestamp_ms` and `timestamp_s` say it; a `timestamp` is milliseconds in JSONL where all of them
are whole numbers, seconds otherwise. Where that is wrong the user names the unit; dates need none.

The first send is at 0, rows are put in the order of their times. Accepted: a trace is held in memory, 24 bytes a row.
"""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from typing import Any, Final, Literal, NamedTuple

import orjson

from runner.errors import InputError

Unit = Literal["s", "ms"]
TIMES: Final = ("timestamp", "timestamp_ms", "timestamp_s")
INPUTS: Final = ("input_length", "input_tokens", "request tokens", "contexttokens")
OUTPUTS: Final = ("output_length", "output_tokens", "response tokens", "generatedtokens")
MAX_ROWS: Final = 10_000_000
"""240 MB. The largest public trace has 5.3 million rows."""
MAX_TRACE_TOKENS: Final = 10_000_000
"""A longer input or output is a broken row: no context window is within a tenth of it."""

Numbered = tuple[int, bytes]
Row = tuple[int, Mapping[str, Any]]  # line number, values by column in lower case


@dataclass(frozen=True, slots=True)
class Trace:
    """Times are seconds since the first send, in order; lengths in that order too. Empty: no column names them."""

    times_s: array[float] = field(default_factory=lambda: array("d"))
    input_tokens: array[int] = field(default_factory=lambda: array("q"))
    output_tokens: array[int] = field(default_factory=lambda: array("q"))


class _Columns(NamedTuple):
    time: str | None
    input: str | None
    output: str | None


def parse_trace(lines: Iterable[bytes], name: str, *, unit: Unit | None = None) -> Trace:
    """The trace that a file holds; `name` is the file's, for errors. Blank lines don't count.

    Raises:
        InputError: there is no row, none of the columns is known, a row lacks a value that the first one has, a value
            is no time or length, or there are more than MAX_ROWS.
    """
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    first = next(numbered, None)
    if first is None:
        raise InputError(f"{name}: the trace is empty")
    is_json = first[1].lstrip(b"\xef\xbb\xbf \t").startswith(b"{")
    whole = chain([first], numbered)
    return _collect(_json_rows(whole, name) if is_json else _csv_rows(whole, name), name, unit, is_json)


def _collect(rows: Iterator[Row], name: str, unit: Unit | None, is_json: bool) -> Trace:
    trace, columns = Trace(), None
    whole, dated = is_json, False
    for count, (number, row) in enumerate(rows):
        place = f"{name}:{number}"
        columns = columns or _columns(row, place)
        if count >= MAX_ROWS:
            raise InputError(f"{place}: a trace has at most {MAX_ROWS} rows")
        if columns.time is not None:
            value = row.get(columns.time)
            whole = whole and isinstance(value, int)
            stamp, dated = _stamp(value, place)
            trace.times_s.append(stamp)
        for key, values in ((columns.input, trace.input_tokens), (columns.output, trace.output_tokens)):
            if key is not None:
                values.append(_length(row.get(key), place))
    if columns is None:
        raise InputError(f"{name}: the trace has no row")
    told = unit or ("ms" if columns.time == "timestamp_ms" or (whole and columns.time == "timestamp") else "s")
    return _in_order(trace, 0.001 if told == "ms" and not dated else 1.0)


def _columns(row: Mapping[str, Any], place: str) -> _Columns:
    columns = _Columns(*(next((key for key in known if key in row), None) for known in (TIMES, INPUTS, OUTPUTS)))
    if not any(columns):
        raise InputError(f"{place}: none of {', '.join((*TIMES, *INPUTS, *OUTPUTS))} is there")
    return columns


def _in_order(trace: Trace, scale: float) -> Trace:
    times = trace.times_s
    if not times:
        return trace
    order = sorted(range(len(times)), key=times.__getitem__)
    start = times[order[0]]
    return Trace(
        array("d", ((times[i] - start) * scale for i in order)),
        *(array("q", (values[i] for i in order if values)) for values in (trace.input_tokens, trace.output_tokens)),
    )


# ── Rows ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _json_rows(lines: Iterable[Numbered], name: str) -> Iterator[Row]:
    for number, line in lines:
        try:
            row = orjson.loads(line.removeprefix(b"\xef\xbb\xbf"))
        except orjson.JSONDecodeError as error:
            raise InputError(f"{name}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f"{name}:{number}: an object is wanted")
        yield number, {key.strip().lower(): value for key, value in row.items()}


def _csv_rows(lines: Iterable[Numbered], name: str) -> Iterator[Row]:
    last = 0

    def text() -> Iterator[str]:
        nonlocal last
        for last, line in lines:  # noqa: B007 - errors name the line that was read last
            yield line.decode("utf-8-sig", "replace")

    reader = csv.reader(text())
    try:
        header = [column.strip().lower() for column in next(reader)]
        for values in reader:
            # A row that is too short lacks values, not columns.
            yield last, dict(zip(header, [*values, *[None] * (len(header) - len(values))], strict=False))
    except csv.Error as error:
        raise InputError(f"{name}:{last}: not CSV: {error}") from None


def _stamp(value: Any, place: str) -> tuple[float, bool]:
    """A time as it stands, and whether it was a date; a date without a zone is taken as UTC."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return _date(value, place), True
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e18:
        raise InputError(f"{place}: the row has no usable time")
    return float(value), False


def _date(value: str, place: str) -> float:
    try:
        moment = datetime.fromisoformat(value.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise InputError(f"{place}: the row's time is neither a number nor a date") from None


def _length(value: Any, place: str) -> int:
    try:
        length = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        length = math.nan
    if not 0 <= length <= MAX_TRACE_TOKENS:
        raise InputError(f"{place}: a length is a number from 0 to {MAX_TRACE_TOKENS}")
    return int(length)
