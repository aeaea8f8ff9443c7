"""One level in the report: its facts, every metric with its percentiles, its charts. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from runner.load import panels
from runner.load.chart import figure
from runner.load.definitions import METRICS, Metric
from runner.load.figures import NONE, duration, in_unit, plain, share
from runner.load.markup import Markup, element
from runner.load.page import Cell, facts, table
from runner.load.results import STATISTICS, Level

_RATES: Final = {
    "offered_per_s": "offered",
    "achieved_per_s": "sent",
    "succeeded_per_s": "succeeded",
    "goodput_per_s": "within the SLO",
    "input_tokens_per_s": "input tokens",
    "output_tokens_per_s": "output tokens",
    "total_tokens_per_s": "tokens in all",
    "chunks_per_s": "chunks",
}
_HEADS: Final = {"stddev": "std dev", "p99_9": "p99.9"}


def details(level: Level) -> Iterator[Markup]:
    """What is folded away under the level's name."""
    yield facts(_facts(level))
    # A wait for limits that nobody set is no news.
    rows = [(None, _cells(level, metric)) for metric in METRICS if level.metric(metric.key).max]
    if rows:
        yield table(("Metric", *(_HEADS.get(name, name) for name in STATISTICS)), rows, sortable=False)
    charts = [
        *panels.timeline(level),
        *(panels.histogram(level, name) for name in ("ttft", "icl") if level.histograms.get(name)),
    ]
    yield element("div", {"class": "charts"}, *(figure(chart) for chart in charts))


def _cells(level: Level, metric: Metric) -> list[Cell]:
    found = level.metric(metric.key)
    figures = [getattr(found, name) for name in STATISTICS[1:]]
    return [Cell(metric.label), Cell(f"{found.n:,}"), *(Cell(in_unit(value, metric.unit)) for value in figures)]


def _facts(level: Level) -> Iterator[tuple[str, str]]:
    requests, client = level.requests, level.client
    yield (
        "Requests",
        f"{requests.offered:,} offered, {requests.admitted:,} admitted, {requests.sent:,} sent, "
        f"{requests.succeeded:,} succeeded, {requests.failed:,} failed, {level.throttled:,} refused with 429, "
        f"{requests.dropped:,} dropped, {requests.in_flight_at_end:,} in flight at the end"
        + (f", {requests.waiting_at_end:,} waiting for limits then" if requests.waiting_at_end else ""),
    )
    rates = [(name, getattr(level.rates, key)) for key, name in _RATES.items()]
    yield "A second", ", ".join(f"{plain(value)} {name}" for name, value in rates if value is not None) or NONE
    if level.errors:
        yield "Errors", ", ".join(f"{kind} {n:,}" for kind, n in sorted(level.errors.items()))
    if level.throttled_attempts > level.throttled:
        yield "429s", f"{level.throttled_attempts:,} attempts, of which {level.throttled:,} ended their request"
    if level.backed_off:
        yield "Backed off", f"{level.backed_off:,} times, {duration(level.backed_off_s)} of all streams together"
    if level.without_usage:
        yield "Without usage", f"{level.without_usage:,} requests: their tokens are the tokenizer's, or unknown"
    if level.unjudged:
        yield "Unjudged", f"{level.unjudged:,} requests lack what the SLO is about"
    start, end = level.window_s
    yield "Window", f"{plain(start)} to {plain(end)} s of {plain(level.duration_s)} s; {requests.in_window:,} requests"
    yield (
        "Client",
        f"{client.verdict}: loop lag p99 {duration(client.lag_p99_s)}, largest {duration(client.lag_max_s)}; schedule "
        f"delay p99 {duration(client.schedule_delay_p99_s)}, largest {duration(client.schedule_delay_max_s)}; "
        f"CPU {share(client.cpu_share)}; chunks read together {share(client.coalesced_share)}"
        + "".join(f"; {reason}" for reason in client.reasons),
    )
    waits = level.metric("limiter_wait")
    if waits.max:
        yield "Limiter wait", f"p50 {duration(waits.p50)}, p99 {duration(waits.p99)}, largest {duration(waits.max)}"
    failing = level.metrics_with_failures.get("ttft")
    if failing is not None and failing.n and level.requests.failed + level.throttled:
        yield "TTFT, failures as ∞", f"p50 {duration(failing.p50)}, p99 {duration(failing.p99)}"
    for name, gauge in sorted((level.server_metrics or {}).items()):
        yield name, f"mean {plain(gauge.mean)}, largest {plain(gauge.max)}, last {plain(gauge.last)}"
