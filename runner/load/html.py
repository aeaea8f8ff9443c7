"""A load test → report.html: one file, no network, nothing in it but what load.json says. Pure.

Without script the report is whole, only unsorted and with slower tooltips.

Accepted: all charts are in the file at once; a level's timeline is folded away, not loaded later.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from typing import Any, Final

from runner.load import panels
from runner.load.chart import figure
from runner.load.definitions import METRICS, TERMS
from runner.load.details import details
from runner.load.figures import NONE, duration, ms, plain, share
from runner.load.markup import Markup, element, join
from runner.load.page import Cell, facts, page, table
from runner.load.repeats import heads_of, rows_of
from runner.load.results import Level, LoadResult
from runner.load.table import notes

OPEN_LEVELS: Final = 1
"""So many levels begin unfolded."""


def report(result: LoadResult) -> str:
    """The whole page."""
    body = join(
        (
            *_head(result),
            *_cards(result),
            *_levels_table(result),
            *_repeats(result),
            *_load_charts(result),
            *_distributions(result),
            *_search(result),
            *_level_details(result),
            *_definitions(),
            *_environment(result),
        )
    )
    return page(f"Load test {result.name}", body)


# ── Tables ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _levels_table(result: LoadResult) -> Iterator[Markup]:
    is_open = any(level.kind == "open" for level in result.levels)
    dropped = any(level.requests.dropped for level in result.levels)
    yield element("h2", None, "Levels")
    heads = [
        *("Level", "Client", "Offered /s", "Sent /s", "OK /s", "OK", "Failed", "429"),
        *(("Dropped",) if dropped else ()),
        *("Output tok/s", "Goodput"),
        *("TTFT ms p50", "TTFT p95", "TTFT p99"),
        *(("TTFT p99 from schedule",) if is_open else ()),
        *("ICL ms p50", "ICL p99", "TPOT ms p50", "tok/s per user", "E2E s p50", "E2E p99"),
        *(("E2E p99 from schedule",) if is_open else ()),
    ]
    rows = ((_row_class(level), _level_cells(level, is_open, dropped)) for level in result.levels)
    yield table(heads, rows)
    yield element(
        "p",
        {"class": "note"},
        f"{NONE}: not measured, or more than the number of requests can support. OK, failed and 429 are of the whole "
        "level, rates of its window, latencies of the successful requests in it. A click on a heading sorts.",
    )


def _repeats(result: LoadResult) -> Iterator[Markup]:
    if result.summary_levels:
        yield element("h2", None, "Over repeats")
        rows = ((None, [Cell(text) for text in row]) for row in rows_of(result))
        yield table(
            ("Level", *(head.replace("\n", " ") for head in heads_of(result, units=True))), rows, sortable=False
        )
        yield element(
            "p",
            {"class": "note"},
            "Mean of n repeats ± half of its 95 % interval (Student's t; of percentiles the sketch's 1 % more).",
        )


def _row_class(level: Level) -> str | None:
    return "bound" if level.client_bound else None


def _level_cells(level: Level, is_open: bool, dropped: bool) -> list[Cell]:
    rates, requests = level.rates, level.requests
    ttft, icl, e2e = level.metric("ttft"), level.metric("icl"), level.metric("e2e")
    late, late_e2e = level.metric("ttft_from_schedule").p99, level.metric("e2e_from_schedule").p99
    return [
        Cell(_title(level), level.value),
        Cell(level.client.verdict, level.client.verdict, f"n {level.client.verdict}"),
        *(Cell(plain(v), v) for v in (rates.offered_per_s, rates.achieved_per_s, rates.succeeded_per_s)),
        *(Cell(f"{v:,}", v) for v in (requests.succeeded, requests.failed, level.throttled)),
        *([Cell(f"{requests.dropped:,}", requests.dropped)] if dropped else []),
        Cell(plain(rates.output_tokens_per_s), rates.output_tokens_per_s),
        Cell(share(level.goodput), level.goodput),
        *(Cell(ms(v), v) for v in (ttft.p50, ttft.p95, ttft.p99)),
        *([Cell(ms(late), late)] if is_open else []),
        *(Cell(ms(v), v) for v in (icl.p50, icl.p99, level.metric("tpot").p50)),
        Cell(plain(v := level.metric("output_tokens_per_s_per_user").p50), v),
        *(Cell(plain(v), v) for v in (e2e.p50, e2e.p99)),
        *([Cell(plain(late_e2e), late_e2e)] if is_open else []),
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
    fast = [(v, level) for level in sound if (v := level.rates.output_tokens_per_s)]
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
        if len({level.value for level in result.levels if level.kind == kind}) < 2:
            continue  # one dot is no chart: what it would show stands in the table and below
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
    yield element("p", None, result.search.reason)
    rows = [
        (
            "bound" if tried.verdict == "client-bound" else None,
            [
                Cell(f"{tried.value:g}", tried.value),
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
        summary = element("summary", None, f"{_title(level)}, {level.client.verdict}")
        yield element("details", {"open": ""} if i < OPEN_LEVELS else None, summary, *details(level))


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
        yield "Calibration", f"{made.describe}; {plain(made.cpu_us_per_chunk)} µs CPU a chunk"
    yield "Runner", result.runner
    yield "Versions", _flat(result.versions)
    yield "Host", _flat(result.host)
    yield "Settings", _flat(result.settings)


def _flat(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {NONE if value is None else value}" for key, value in values.items()) or NONE
