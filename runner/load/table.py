"""A load test → the tables that the terminal shows at its end. Pure: what is returned, a console prints.

Two tables, so that 80 columns do: where the requests went, and how long they took. In an open loop every level has a
second row, the latencies from the time at which the request should have been sent: with a slow server those are what a
user would have waited, and they stand beside the others, not behind an option.

Accepted: a long label is cut; load.json and the report have it whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from runner.escape import for_line
from runner.load.definitions import TERMS
from runner.load.figures import NONE, ms, plain, share
from runner.load.repeats import heads_of, rows_of
from runner.load.results import Level, LoadResult, Quantiles

STYLES: Final = {"ok": "green", "suspect": "yellow", "client-bound": "bold red"}
LABEL_COLUMNS: Final = 20
"""A longer label goes on in the next line, and there it is cut: the figures are what the table is for."""
LIMITED_S: Final = 0.001
"""To pass a gate that is open takes some microseconds, and is no wait."""
MAX_TOLD: Final = 8
"""Notes of one sort; the levels' own rows and the report's panels have the rest."""
LABEL_CHARACTERS: Final = 36


def render(result: LoadResult) -> RenderableType:
    """Both tables and the notes under them."""
    parts: list[RenderableType] = [_heading(result), _requests(result), _latencies(result)]
    if result.summary_levels:
        parts.append(_repeats(result))
    if late := list(_first([*_send_lags(result)])):
        parts.append(Text("Sent late by p50 / p99 / at most, in ms: " + "; ".join(late), style="dim"))
    return Group(*parts, *(Text(note, style="dim") for note in notes(result)))


def notes(result: LoadResult) -> Iterator[str]:
    """What a reader must know before believing the tables, one line each."""
    if not result.complete:
        yield "Interrupted: the levels above are what was measured until then."
    for kind in (_failures, _pauses, _unanswered, _unsent, _uncounted, _verdicts):
        yield from _first(list(kind(result)))
    if any(level.client_bound for level in result.levels):
        yield "A client-bound level measures this client, not the server. Use more --workers or another machine."
    if any(_unsupported(level) for level in result.levels):
        yield f"{NONE}  {dict(TERMS)[NONE]}"


def _failures(result: LoadResult) -> Iterator[str]:
    for level in result.levels:
        if level.errors:
            kinds = ", ".join(f"{for_line(kind)} {n:,}" for kind, n in sorted(level.errors.items()))
            yield f"failed at {_label(level)}: {kinds}"


def _pauses(result: LoadResult) -> Iterator[str]:
    for level in result.levels:
        if level.backed_off:
            yield (
                f"backed off at {_label(level)}: {level.backed_off:,} times, {plain(level.backed_off_s)} s of all "
                "streams together, after requests that had failed at once: more was never offered"
            )


def _unanswered(result: LoadResult) -> Iterator[str]:
    for level in result.levels:
        if left := level.requests.in_flight_at_end:
            when = "when --drain had passed" if level.complete else "when it was cut"
            yield f"no answer at {_label(level)}: {left:,} in flight {when}, counted as having kept no objective"


def _unsent(result: LoadResult) -> Iterator[str]:
    for level in result.levels:
        if left := level.requests.waiting_at_end:
            yield f"never sent at {_label(level)}: {left:,} waited for the limits (--rpm, --tpm) when it was stopped"


def _uncounted(result: LoadResult) -> Iterator[str]:
    for level in result.levels:
        if level.without_usage:
            yield (
                f"no usage at {_label(level)}: of {level.without_usage:,} answers the server named no tokens; those in "
                "tokens/s are a tokenizer's estimate, what is per token is unknown"
            )


def _verdicts(result: LoadResult) -> Iterator[str]:
    for level in result.levels:
        if level.client.verdict != "ok":
            reasons = "; ".join(for_line(reason) for reason in level.client.reasons) or "no reason given"
            yield f"{level.client.verdict}: {_label(level)}: {reasons}"


def _first(lines: Sequence[str]) -> Sequence[str]:
    """So many that the tables stay in sight."""
    if len(lines) <= MAX_TOLD:
        return lines
    return [*lines[: MAX_TOLD - 1], f"… and the same sort of note on {len(lines) - MAX_TOLD + 1} more levels"]


def _heading(result: LoadResult) -> Text:
    slo = ", ".join(f"{for_line(name)} ≤ {ms(limit)} ms" for name, limit in (result.slo or {}).items())
    parts = [for_line(result.name), for_line(result.model or "no model named"), for_line(result.endpoint)]
    heading = Text(" · ".join(part for part in parts if part), style="bold")
    if slo:
        heading.append(f" · SLO {slo}", style="not bold")
    return heading


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD)
    table.pad_edge, table.collapse_padding = False, True
    table.add_column("level", max_width=LABEL_COLUMNS)
    return table


def _add_figures(table: Table, *names: str) -> None:
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)


def _requests(result: LoadResult) -> Table:
    table = _table("Requests and throughput")
    goodput = ["goodput"] if any(level.goodput is not None for level in result.levels) else []
    dropped = ["dropped"] if any(level.requests.dropped for level in result.levels) else []
    _add_figures(table, "offered\n/s", "sent\n/s", "ok", "failed", "429", *dropped, "output\ntok/s", *goodput)
    table.add_column("client")
    for level in result.levels:
        requests, rates = level.requests, level.rates
        cells = [plain(rates.offered_per_s), plain(rates.achieved_per_s), f"{requests.succeeded:,}"]
        cells += [f"{requests.failed:,}", f"{level.throttled:,}"]
        cells += [f"{requests.dropped:,}"] * len(dropped)
        cells += [plain(rates.output_tokens_per_s)] + [share(level.goodput)] * len(goodput)
        table.add_row(_label(level), *cells, _verdict(level), style=_row_style(level))
    return table


def _latencies(result: LoadResult) -> Table:
    table = _table("Latency in ms, successful requests (E2E in s)")
    limited = any((level.metric("limiter_wait").max or 0.0) > LIMITED_S for level in result.levels)
    _add_figures(table, *["limits\np50"] * limited, "TTFT\np50", "\np95", "\np99", "ICL\np50", "\np99")
    _add_figures(table, "TPOT\np50", "E2E\np50", "\np99")
    for level in result.levels:
        ttft, icl, tpot, e2e = (level.metric(name) for name in ("ttft", "icl", "tpot", "e2e"))
        cells = [ms(level.metric("limiter_wait").p50)] * limited
        cells += [*_ttft(ttft), ms(icl.p50), ms(icl.p99), ms(tpot.p50), plain(e2e.p50), plain(e2e.p99)]
        table.add_row(_label(level), *cells, style=_row_style(level))
        if level.kind == "open":
            ttft, e2e = level.metric("ttft_from_schedule"), level.metric("e2e_from_schedule")
            cells = [""] * limited + [*_ttft(ttft), "", "", "", plain(e2e.p50), plain(e2e.p99)]
            table.add_row(Text("  from schedule"), *cells, style=_row_style(level))
    return table


def _send_lags(result: LoadResult) -> Iterator[str]:
    """How late this client was in open loops, waits for limits left out."""
    for level in result.levels:
        lag = level.metric("send_lag")
        if lag.n:
            yield f"{_label(level)} {ms(lag.p50)} / {ms(lag.p99)} / {ms(lag.max)}"


def _repeats(result: LoadResult) -> Table:
    table = _table("Over n repeats, ± half a 95 % interval; ms, E2E in s")
    _add_figures(table, *heads_of(result))
    for label, *cells in rows_of(result):
        # On two lines, since 80 columns hold no more.
        table.add_row(Text(_short(label)), *(cell.replace(" ± ", "\n± ") for cell in cells))
    return table


def _ttft(ttft: Quantiles) -> list[str]:
    return [ms(ttft.p50), ms(ttft.p95), ms(ttft.p99)]


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
