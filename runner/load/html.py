"""A load test → report.html: one file, no network, nothing in it but what load.json says. Pure.

The head's content security policy allows the one style sheet and the one script of this package, by their hashes, and
nothing else; without script the report is whole, only unsorted and with slower tooltips. Every text passes `markup`.

Accepted: all charts are in the file at once; a level's timeline is folded away, not loaded later.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import resources
from itertools import zip_longest
from typing import Any, Final, NamedTuple

from runner.load import panels
from runner.load.chart import figure
from runner.load.definitions import METRICS, TERMS
from runner.load.figures import NONE, duration, ms, plain, share
from runner.load.markup import Markup, element, join
from runner.load.results import Level, LoadResult
from runner.load.table import notes

POLICY: Final = "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'"
OPEN_LEVELS: Final = 1
"""So many levels begin unfolded."""


class Cell(NamedTuple):
    """What a table shows and what it sorts by; `by` None stays at the end."""

    shown: str
    by: float | str | None = None
    name: str | None = "n"


def report(result: LoadResult) -> str:
    """The whole page."""
    body = join(
        (
            *_head(result),
            *_cards(result),
            *_levels_table(result),
            *_load_charts(result),
            *_distributions(result),
            *_search(result),
            *_level_details(result),
            *_definitions(),
            *_environment(result),
        )
    )
    return page(f"Load test {result.name}", body)


def page(title: str, body: Markup) -> str:
    """A page of this look: style, script, and the policy that lets nothing else in."""
    style, script = _resource("report.css"), _resource("report.js")
    policy = f"{POLICY}; style-src {_hash(style)}; script-src {_hash(script)}"
    head = element(
        "head",
        None,
        element("meta", {"charset": "utf-8"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("title", None, title),
        element("link", {"rel": "icon", "href": "data:,"}),
        element("style", None, style),
    )
    made = element("body", None, element("main", None, body), element("script", None, script))
    return f"<!doctype html>\n{element('html', {'lang': 'en'}, head, made)}\n"


@cache
def _resource(name: str) -> Markup:
    return Markup(resources.files("runner.load").joinpath(name).read_text("utf-8"))


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


# ── Tables ───────────────────────────────────────────────────────────────────────────────────────────────────────


def table(heads: Iterable[str], rows: Iterable[tuple[str | None, list[Cell]]], *, sortable: bool = True) -> Markup:
    """A table in a box that scrolls by itself. A row is its class and its cells; the first cell is its heading."""
    rows = list(rows)
    names = [cell.name for cell in rows[0][1][1:]] if rows else []
    first, *others = heads
    top = [element("th", {"scope": "col"}, first)]
    top += [
        element("th", {"scope": "col", "class": name and "n"}, head)
        for head, name in zip_longest(others, names[: len(others)])
    ]
    body = [
        element("tr", {"class": name}, *(_cell(cell, heading=not i) for i, cell in enumerate(cells)))
        for name, cells in rows
    ]
    whole = element(
        "table",
        {"class": "sortable" if sortable else None},
        element("thead", None, element("tr", None, *top)),
        element("tbody", None, *body),
    )
    return element("div", {"class": "scroll"}, whole)


def _cell(cell: Cell, *, heading: bool) -> Markup:
    by = f"{cell.by!r}" if isinstance(cell.by, int | float) else cell.by
    if heading:
        return element("th", {"scope": "row", "data-v": by}, cell.shown)
    return element("td", {"class": cell.name, "data-v": by}, cell.shown)


def facts(rows: Iterable[tuple[str, str]]) -> Markup:
    """Names and texts."""
    made = [element("tr", None, element("th", {"scope": "row"}, n), element("td", None, t)) for n, t in rows]
    return element("div", {"class": "scroll"}, element("table", {"class": "facts"}, element("tbody", None, *made)))


def _levels_table(result: LoadResult) -> Iterator[Markup]:
    is_open = any(level.kind == "open" for level in result.levels)
    dropped = any(level.requests.dropped for level in result.levels)
    yield element("h2", None, "Levels")
    heads = [
        *("Level", "Offered /s", "Sent /s", "OK", "Failed", "429"),
        *(("Dropped",) if dropped else ()),
        *("Output tok/s", "Goodput"),
        *("TTFT p50 ms", "p95", "p99"),
        *(("from schedule p99",) if is_open else ()),
        *("ICL p50 ms", "p99", "TPOT p50 ms", "tok/s per user", "E2E p50 s", "p95", "p99"),
        *(("from schedule p99",) if is_open else ()),
        "Client",
    ]
    rows = ((_row_class(level), _level_cells(level, is_open, dropped)) for level in result.levels)
    yield table(heads, rows)
    yield element(
        "p",
        {"class": "note"},
        f"{NONE}: not measured, or more than the number of requests can support. Latencies are of successful requests, "
        "in the window. A click on a heading sorts.",
    )


def _row_class(level: Level) -> str | None:
    return "bound" if level.client_bound else None


def _level_cells(level: Level, is_open: bool, dropped: bool) -> list[Cell]:
    rates, requests = level.rates, level.requests
    ttft, icl, e2e = level.metric("ttft"), level.metric("icl"), level.metric("e2e")
    late, late_e2e = level.metric("ttft_from_schedule").p99, level.metric("e2e_from_schedule").p99
    return [
        Cell(_title(level), level.value),
        *(Cell(plain(v), v) for v in (rates.offered_per_s, rates.achieved_per_s)),
        *(Cell(f"{v:,}", v) for v in (requests.succeeded, requests.failed, level.throttled)),
        *([Cell(f"{requests.dropped:,}", requests.dropped)] if dropped else []),
        Cell(plain(rates.output_tokens_per_s), rates.output_tokens_per_s),
        Cell(share(level.goodput), level.goodput),
        *(Cell(ms(v), v) for v in (ttft.p50, ttft.p95, ttft.p99)),
        *([Cell(ms(late), late)] if is_open else []),
        *(Cell(ms(v), v) for v in (icl.p50, icl.p99, level.metric("tpot").p50)),
        Cell(plain(v := level.metric("output_tokens_per_s_per_user").p50), v),
        *(Cell(plain(v), v) for v in (e2e.p50, e2e.p95, e2e.p99)),
        *([Cell(plain(late_e2e), late_e2e)] if is_open else []),
        Cell(level.client.verdict, level.client.verdict, f"n {level.client.verdict}"),
    ]


def _title(level: Level) -> str:
    return level.label + (f" #{level.repeat + 1}" if level.repeat else "") + ("" if level.complete else " (cut short)")


# ── Sections ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _head(result: LoadResult) -> Iterator[Markup]:
    yield element("h1", None, f"Load test {result.name}")
    parts = (result.model or "no model named", result.endpoint, result.started, result.workload.describe)
    yield element("p", {"class": "sub"}, " · ".join(part for part in parts if part))
    if result.synthetic:
        yield element("p", {"class": "warn"}, "Made with the built-in simulator: these figures describe no real model.")
    lines = [element("p", None, note) for note in notes(result) if not note.startswith(NONE)]
    if lines:
        yield element("div", {"class": "warn"}, *lines)


def _cards(result: LoadResult) -> Iterator[Markup]:
    cards = list(_card_texts(result))
    if cards:
        made = (element("li", None, element("b", None, big), element("span", None, small)) for big, small in cards)
        yield element("ul", {"class": "cards"}, *made)


def _card_texts(result: LoadResult) -> Iterator[tuple[str, str]]:
    """What one looks for first; levels bound by the client don't count."""
    sound = [level for level in result.levels if not level.client_bound]
    fast = [(v, level) for level in sound if (v := level.rates.output_tokens_per_s) is not None]
    if fast:
        most, level = max(fast, key=lambda found: found[0])
        yield f"{plain(most)} tok/s", f"most output tokens a second, at {_title(level)}"
    low = [(v, level) for level in sound if (v := level.metric("ttft").p50) is not None]
    if low:
        least, level = min(low, key=lambda found: found[0])
        yield duration(least), f"lowest TTFT p50, at {_title(level)}"
    if result.search is not None and result.search.best is not None:
        labels = {level.value: level.label for level in result.levels}
        best = result.search.best
        yield labels.get(best, plain(best)), "highest load found that keeps the SLO"
    elif good := [level for level in sound if level.goodput is not None and level.goodput >= 0.99]:
        yield max(good, key=lambda level: level.value).label, "highest level with goodput of at least 99 %"
    sent = sum(level.requests.sent for level in result.levels)
    failed = sum(level.requests.failed + level.throttled for level in result.levels)
    yield f"{sent:,}", f"requests sent, {failed:,} of them failed or refused with 429"


def _grid(charts: Iterable[Any]) -> Markup:
    return element("div", {"class": "charts"}, *(figure(chart) for chart in charts))


def _load_charts(result: LoadResult) -> Iterator[Markup]:
    found = panels.kinds(result)
    for kind in found:
        suffix = "" if len(found) < 2 else (" (closed loop)" if kind == "closed" else " (open loop)")
        yield element("h2", None, f"Against load{suffix}")
        yield _grid(panels.against_load(result, kind))
        yield element("h2", None, f"Against throughput{suffix}")
        yield _grid(panels.against_throughput(result, kind))


def _distributions(result: LoadResult) -> Iterator[Markup]:
    if result.levels:
        yield element("h2", None, "Distributions")
        yield _grid(panels.distributions(result))


def _search(result: LoadResult) -> Iterator[Markup]:
    if result.search is None:
        return
    yield element("h2", None, "Search for the highest load that keeps the SLO")
    rows = [
        (
            "bound" if tried.verdict == "client-bound" else None,
            [
                Cell(plain(tried.value), tried.value),
                Cell(share(tried.goodput), tried.goodput),
                Cell("yes" if tried.kept else "no", "yes" if tried.kept else "no"),
                Cell(tried.verdict, tried.verdict, f"n {tried.verdict}"),
            ],
        )
        for tried in result.search.tried
    ]
    yield table(("Tried", "Goodput", "Kept the SLO", "Client"), rows)


def _level_details(result: LoadResult) -> Iterator[Markup]:
    yield element("h2", None, "Level by level")
    for i, level in enumerate(result.levels):
        charts = [
            *panels.timeline(level),
            *(panels.histogram(level, name) for name in ("ttft", "icl") if level.histograms.get(name)),
        ]
        summary = element("summary", None, f"{_title(level)}, {level.client.verdict}")
        opened = {"open": ""} if i < OPEN_LEVELS else None
        yield element("details", opened, summary, facts(_level_facts(level)), _grid(charts))


def _level_facts(level: Level) -> Iterator[tuple[str, str]]:
    requests, client = level.requests, level.client
    yield (
        "Requests",
        f"{requests.offered:,} offered, {requests.admitted:,} admitted, {requests.sent:,} sent, "
        f"{requests.succeeded:,} succeeded, {requests.failed:,} failed, {level.throttled:,} refused with 429, "
        f"{requests.dropped:,} dropped, {requests.in_flight_at_end:,} in flight at the end",
    )
    if level.errors:
        yield "Errors", ", ".join(f"{kind} {n:,}" for kind, n in sorted(level.errors.items()))
    if level.throttled_attempts > level.throttled:
        yield "429s", f"{level.throttled_attempts:,} attempts, of which {level.throttled:,} ended their request"
    if level.without_usage:
        yield "Without usage", f"{level.without_usage:,} requests: their tokens are the tokenizer's, or unknown"
    if level.unjudged:
        yield "Unjudged", f"{level.unjudged:,} requests lack what the SLO is about"
    start, end = level.window_s
    yield "Window", f"{plain(start)} to {plain(end)} s of {plain(level.duration_s)} s; {requests.in_window:,} requests"
    yield (
        "Client",
        f"{client.verdict}: loop lag p99 {duration(client.lag_p99_s)}, largest {duration(client.lag_max_s)}; schedule "
        f"delay p99 {duration(client.schedule_delay_p99_s)}; CPU {share(client.cpu_share)}; chunks read together "
        f"{share(client.coalesced_share)}" + "".join(f"; {reason}" for reason in client.reasons),
    )
    waits = level.metric("limiter_wait")
    if waits.max:
        yield "Limiter wait", f"p50 {duration(waits.p50)}, p99 {duration(waits.p99)}, largest {duration(waits.max)}"
    failing = level.metrics_with_failures.get("ttft")
    if failing is not None and failing.n and level.requests.failed + level.throttled:
        p99 = plain(failing.p99) if failing.p99 in (None, float("inf")) else duration(failing.p99)
        yield "TTFT, failures as ∞", f"p50 {duration(failing.p50)}, p99 {p99}"
    for name, gauge in sorted((level.server_metrics or {}).items()):
        yield name, f"mean {plain(gauge.mean)}, largest {plain(gauge.max)}, last {plain(gauge.last)}"


def _definitions() -> Iterator[Markup]:
    yield element("h2", None, "Definitions")
    rows = [
        (
            None,
            [
                Cell(metric.label),
                Cell(metric.meaning, None, None),
                *(
                    Cell(name or NONE, None, None)
                    for name in (metric.vllm, metric.aiperf, metric.guidellm, metric.inference_perf)
                ),
            ],
        )
        for metric in METRICS
    ]
    heads = ("Metric", "Meaning", "vLLM bench", "AIPerf", "GuideLLM", "inference-perf")
    yield element(
        "details",
        None,
        element("summary", None, "Metrics, and their names elsewhere"),
        table(heads, rows, sortable=False),
    )
    yield element("details", None, element("summary", None, "Other words"), facts(TERMS))


def _environment(result: LoadResult) -> Iterator[Markup]:
    yield element("h2", None, "Environment")
    if result.argv:
        yield element("pre", None, element("code", None, f"python -m runner {shlex.join(result.argv)}"))
    yield facts(_environment_facts(result))


def _environment_facts(result: LoadResult) -> Iterator[tuple[str, str]]:
    yield "Started, ended", f"{result.started} to {result.ended or NONE}"
    yield "Arrivals", _flat(result.arrival.model_dump())
    yield "Workload", _flat(result.workload.model_dump())
    yield "SLO", ", ".join(f"{name} ≤ {duration(limit)}" for name, limit in (result.slo or {}).items()) or NONE
    yield "Seed", str(result.seed)
    if result.calibration is not None:
        made = result.calibration
        yield (
            "Calibration",
            f"{made.describe}: up to {plain(made.max_chunks_per_s)} chunks/s and {plain(made.max_requests_per_s)} "
            f"requests/s, lag p99 {duration(made.lag_p99_s)}, {plain(made.cpu_us_per_chunk)} µs CPU a chunk",
        )
    yield "Runner", result.runner
    yield "Versions", _flat(result.versions)
    yield "Host", _flat(result.host)
    yield "Settings", _flat(result.settings)


def _flat(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {NONE if value is None else value}" for key, value in values.items()) or NONE
