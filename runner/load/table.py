"""A load test → the tables that the terminal shows at its end. Pure: what is returned, a console prints.

Two tables, so that 80 columns do: where the requests went, and how long they took. In an open loop every level has a
second row, the latencies from the time at which the request should have been sent: with a slow server those are what a
user would have waited, and they stand beside the others, not behind an option.

Accepted: a long label is cut; load.json and the report have it whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final, Literal, NamedTuple

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from runner.escape import for_line
from runner.load.definitions import BY_KEY, TERMS
from runner.load.figures import NONE, ms, plain, share
from runner.load.repeats import heads_of, rows_of
from runner.load.results import Level, LoadResult, Quantiles, Verdict

Statistic = Literal["mean", "p50", "p90", "p95", "p99"]

NARROW: Final = 80
WIDE: Final = 120
"""From so many columns on the tables have what other clients print, too: means, more percentiles, rates of tokens."""
STYLES: Final = {"ok": "green", "suspect": "yellow", "client-bound": "bold red"}
LABEL_COLUMNS: Final = 20
"""A longer label goes on in the next line, and there it is cut: the figures are what the table is for."""
LIMITED_S: Final = 0.001
"""To pass a gate that is open takes some microseconds, and is no wait."""
MAX_TOLD: Final = 8
"""Levels in a note; their own rows and the report's panels have the rest."""
MAX_REASONED: Final = 4
"""The same where each takes a line and more; the table marks them all."""
LABEL_CHARACTERS: Final = 36


class _Note(NamedTuple):
    """What is said of every level that it applies to, in one line for all of them."""

    head: str
    of: Callable[[Level], str | None]  # None: nothing to say of this level
    most: int = MAX_TOLD


def render(result: LoadResult, columns: int = NARROW) -> RenderableType:
    """Both tables and the notes under them, for a terminal of so many columns."""
    parts: list[RenderableType] = [_heading(result), _requests(result, columns), _latencies(result, columns)]
    if result.summary_levels:
        parts.append(_repeats(result))
    lines = [*_told(result, _SEND_LAG), *notes(result)]
    return Group(*parts, *(Text(line, style="dim") for line in lines))


def notes(result: LoadResult) -> Iterator[str]:
    """What a reader must know before believing the tables, one line each."""
    if not result.complete:
        yield "Interrupted: the levels above are what was measured until then."
    for note in _NOTES:
        yield from _told(result, note)
    if any(level.client_bound for level in result.levels):
        yield "A client-bound level measures this client, not the server. Use more --workers or another machine."
    if any(_unsupported(level) for level in result.levels):
        yield f"{NONE}  {dict(TERMS)[NONE]}"


def _told(result: LoadResult, note: _Note) -> Iterator[str]:
    told = [f"{_label(level)} {text}" for level in result.levels if (text := note.of(level)) is not None]
    if len(told) > note.most:
        told[note.most - 1 :] = [f"and {len(told) - note.most + 1} more levels"]
    if told:
        yield f"{note.head}: {'; '.join(told)}"


def _errors(level: Level) -> str | None:
    return ", ".join(f"{for_line(kind)} {n:,}" for kind, n in sorted(level.errors.items())) or None


def _pauses(level: Level) -> str | None:
    return f"{level.backed_off:,} times, {plain(level.backed_off_s)} s" if level.backed_off else None


def _reasons(verdict: Verdict) -> Callable[[Level], str | None]:
    def reasons(level: Level) -> str | None:
        said = ", ".join(for_line(reason) for reason in level.client.reasons) or "no reason given"
        return f"({said})" if level.client.verdict == verdict else None

    return reasons


def _send_lag(level: Level) -> str | None:
    lag = level.metric("send_lag")
    return f"{ms(lag.p50)} / {ms(lag.p99)} / {ms(lag.max)}" if lag.n else None


def _some(pick: Callable[[Level], int]) -> Callable[[Level], str | None]:
    """A count, where there is any."""
    return lambda level: f"{n:,}" if (n := pick(level)) else None


_SEND_LAG: Final = _Note("Sent late by p50 / p99 / at most, in ms", _send_lag)
"""How late this client was in open loops, waits for limits left out."""
_NOTES: Final = (
    _Note(
        "Requests of which none counts, since none was due between --warmup and --cooldown",
        _some(lambda level: 0 if level.requests.in_window else level.requests.offered),
    ),
    _Note("Failed, each with its message in results.jsonl", _errors),
    _Note("Streams held back after requests that had failed at once, so that more was never offered", _pauses),
    _Note(
        "No answer when --drain had passed or the level was cut, counted as having kept no objective",
        _some(lambda level: level.requests.in_flight_at_end),
    ),
    _Note(
        "Passed the limits, but were not sent",
        _some(lambda level: max(0, level.requests.admitted - level.requests.sent)),
    ),
    _Note(
        "Never sent, since they waited for the limits (--rpm, --tpm) when the test was stopped",
        _some(lambda level: level.requests.waiting_at_end),
    ),
    _Note(
        "Answers of which the server named no tokens (tokens/s are a tokenizer's estimate, what is per token is "
        "unknown)",
        _some(lambda level: level.without_usage),
    ),
    _Note(
        "Requests that lack what the SLO is about, counted as not having kept it",
        _some(lambda level: level.unjudged or 0),
    ),
    _Note("Suspect", _reasons("suspect"), MAX_REASONED),
    _Note("Client-bound", _reasons("client-bound"), MAX_REASONED),
)


def _heading(result: LoadResult) -> Text:
    slo = ", ".join(f"{for_line(name)} ≤ {ms(limit)} ms" for name, limit in (result.slo or {}).items())
    parts = [for_line(result.name), for_line(result.model or "no model named"), for_line(result.endpoint)]
    heading = Text(" · ".join(part for part in parts if part), style="bold")
    if slo:
        heading.append(f" · SLO {slo}", style="not bold")
    return heading


def _table(title: str, columns: int = NARROW) -> Table:
    left = max(0, columns - (WIDE if columns >= WIDE else NARROW))
    table = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD)
    table.pad_edge, table.collapse_padding = False, True
    table.add_column("level", max_width=LABEL_COLUMNS + left)
    return table


def _add_figures(table: Table, *names: str) -> None:
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)


def _requests(result: LoadResult, columns: int) -> Table:
    wide = columns >= WIDE
    table = _table("Requests of the whole level; rates of its window", columns)
    goodput = ["goodput"] if any(level.goodput is not None for level in result.levels) else []
    dropped = ["dropped"] if any(level.requests.dropped for level in result.levels) else []
    _add_figures(table, "offered\n/s", "sent\n/s", *["ok\n/s"] * wide, "ok", "failed", "429", *dropped)
    _add_figures(table, *["input\ntok/s"] * wide, "output\ntok/s", *["tok/s\nper user"] * wide, *goodput)
    table.add_column("client")
    for level in result.levels:
        requests, rates = level.requests, level.rates
        cells = [plain(rates.offered_per_s), plain(rates.achieved_per_s), *[plain(rates.succeeded_per_s)] * wide]
        cells += [f"{requests.succeeded:,}", f"{requests.failed:,}", f"{level.throttled:,}"]
        cells += [f"{requests.dropped:,}"] * len(dropped)
        cells += [*[plain(rates.input_tokens_per_s)] * wide, plain(rates.output_tokens_per_s)]
        cells += [plain(level.metric("output_tokens_per_s_per_user").p50)] * wide
        cells += [share(level.goodput)] * len(goodput)
        table.add_row(_label(level), *cells, _verdict(level), style=_row_style(level))
    return table


_LATENCIES: Final[Mapping[str, tuple[Statistic, ...]]] = {
    "ttft": ("p50", "p95", "p99"),
    "icl": ("p50", "p99"),
    "tpot": ("p50",),
    "e2e": ("p50", "p99"),
}
"""What 80 columns hold."""
_MORE_LATENCIES: Final[Mapping[str, tuple[Statistic, ...]]] = {
    "ttft": ("mean", "p50", "p90", "p95", "p99"),
    "icl": ("mean", "p50", "p99"),
    "tpot": ("mean", "p50", "p99"),
    "e2e": ("mean", "p50", "p99"),
}
"""What WIDE columns hold."""


def _latencies(result: LoadResult, columns: int) -> Table:
    table = _table("Latency in ms, successful requests (E2E in s)", columns)
    shown = _MORE_LATENCIES if columns >= WIDE else _LATENCIES
    limited = any((level.metric("limiter_wait").max or 0.0) > LIMITED_S for level in result.levels)
    _add_figures(table, *["limits\np50"] * limited)
    for name, statistics in shown.items():
        _add_figures(table, f"{BY_KEY[name].label}\n{statistics[0]}", *(f"\n{each}" for each in statistics[1:]))
    for level in result.levels:
        waits = [ms(level.metric("limiter_wait").p50)] * limited
        cells = [cell for name in shown for cell in _cells(level, name, name, shown)]
        table.add_row(_label(level), *waits, *cells, style=_row_style(level))
        if level.kind == "open":
            late = [cell for name in shown for cell in _cells(level, f"{name}_from_schedule", name, shown)]
            table.add_row(Text("  from schedule"), *[""] * limited, *late, style=_row_style(level))
    return table


def _cells(level: Level, key: str, name: str, shown: Mapping[str, tuple[Statistic, ...]]) -> Iterator[str]:
    """The figures of one metric; empty ones where there is no such metric."""
    found = level.metric(key)
    for statistic in shown[name]:
        value = getattr(found, statistic)
        yield "" if key not in BY_KEY else plain(value) if name == "e2e" else ms(value)


def _repeats(result: LoadResult) -> Table:
    table = _table("Over n repeats, ± half a 95 % interval; ms, E2E in s")
    _add_figures(table, *heads_of(result))
    for label, *cells in rows_of(result):
        # On two lines, since 80 columns hold no more.
        table.add_row(Text(_short(label)), *(cell.replace(" ± ", "\n± ") for cell in cells))
    return table


def _label(level: Level) -> Text:
    repeat = f" #{level.repeat + 1}" if level.repeat else ""
    return Text(_short(level.label) + repeat + ("" if level.complete else " (cut)"))


def _short(label: str) -> str:
    label = for_line(label)
    return label if len(label) <= LABEL_CHARACTERS else label[: LABEL_CHARACTERS - 1] + "…"


def _verdict(level: Level) -> Text:
    return Text(level.client.verdict, style=STYLES[level.client.verdict])


def _row_style(level: Level) -> str:
    return "dim" if level.client_bound else ""


def _unsupported(level: Level) -> bool:
    return any(None in _shown(level.metric(name)) for name in ("ttft", "icl", "tpot", "e2e"))


def _shown(found: Quantiles) -> tuple[float | None, ...]:
    return found.p50, found.p95, found.p99
