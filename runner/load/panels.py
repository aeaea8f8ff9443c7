"""A load test → the charts of its report. Pure.

Against load: latency, throughput, requests; throughput against latency, where a server's knee shows; distributions of
a level; and what happened second by second. Repeats of a level are one point at their mean, each a small dot beside it.

Accepted: a timeline is drawn in at most MAX_STEPS steps, so that a report of many levels still opens at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from runner.load.chart import COLOURS, Axis, Chart, Point, Series, wants_log
from runner.load.definitions import BY_KEY
from runner.load.figures import NONE, duration, duration_tick, number_tick, plain, share, share_tick
from runner.load.results import Bin, Level, LoadResult, Tick

MAX_STEPS: Final = 120
MAX_BARS: Final = 40
TICKS_OF: Final[dict[Callable[..., str], Callable[[float], str]]] = {duration: duration_tick, share: share_tick}
"""How the ticks of an axis are written whose figures are written so."""
Kind = str
Pick = Callable[[Level], float | None]
Lines = Sequence[tuple[str, Sequence[float | None]]]
"""Names and values, a value a step."""


def kinds(result: LoadResult) -> list[Kind]:
    """The kinds of loop that were run, in order."""
    return list(dict.fromkeys(level.kind for level in result.levels))


def against_load(result: LoadResult, kind: Kind) -> list[Chart]:
    """What changes with the concurrency or the rate."""
    levels = [level for level in result.levels if level.kind == kind]
    is_open = kind == "open"
    charts = [
        _latency("Time to first token", levels, "ttft", is_open, result),
        _latency("End-to-end latency", levels, "e2e", is_open, result),
        _gaps(levels, result),
        _chart("Output tokens per second", levels, "tokens/s", _throughput_lines(levels)),
        _chart("Requests per second", levels, "requests/s", _request_lines(levels, is_open)),
    ]
    if any(level.requests.failed or level.throttled or level.requests.dropped for level in levels):
        charts.append(_chart("Failed and refused", levels, "of offered", _failure_lines(levels), write=share))
    return charts


def against_throughput(result: LoadResult, kind: Kind) -> list[Chart]:
    """Latency and speed for one reader over the throughput of all: the knee is where the line turns up."""
    levels = sorted((level for level in result.levels if level.kind == kind), key=lambda level: level.value)
    known = [level.metric("ttft") for level in levels if level.metric("ttft").n]
    name = "p95" if all(ttft.p95 is not None for ttft in known) else "p50"
    first = _quantile("ttft", name)
    users = [_trade_point(level, level.metric("output_tokens_per_s_per_user").p50, "tokens/s") for level in levels]
    firsts = [_trade_point(level, first(level), "s") for level in levels]
    x = Axis("output tokens/s, all requests")
    log = wants_log([point.y for point in firsts])
    return [
        Chart(
            f"TTFT {name} against throughput",
            x,
            Axis(f"TTFT {name}", duration_tick, log),
            (Series("", tuple(firsts)),),
            limits=_limit(result, "ttft"),
        ),
        Chart(
            "Speed for one reader against throughput", x, Axis("tokens/s per user, p50"), (Series("", tuple(users)),)
        ),
    ]


def distributions(result: LoadResult) -> list[Chart]:
    """How TTFT, ICL and E2E are spread, a line a level."""
    return [_cumulated(result, name) for name in ("ttft", "icl", "e2e")]


def histogram(level: Level, name: str) -> Chart:
    """One metric of one level, in bars of equal width on a logarithmic axis."""
    edges = _coarser([(upper, n) for upper, n in level.histograms.get(name, ()) if upper > 0])
    total = sum(n for _, n in edges) or 1
    points = []
    before = None
    for upper, n in edges:
        if before is None:
            points.append(Point(upper / 1.1, None))
            before = upper / 1.1
        points.append(Point(upper, n / total, f"{duration(before)} to {duration(upper)}: {n:,} ({share(n / total)})"))
        before = upper
    label = BY_KEY[name].label
    return Chart(
        f"{label}, distribution",
        Axis(label, duration_tick, wants_log([point.x for point in points])),
        Axis("share", share_tick),
        (Series("", tuple(points), "bars"),),
        height=200,
    )


def timeline(level: Level) -> list[Chart]:
    """What happened second by second: load, tokens, latency, what failed, and how late the client was."""
    steps = _steps(level)
    if not steps:
        return []
    per_s: list[tuple[str, str, Lines]] = [
        ("In flight", "requests", [("", [tick.in_flight for tick, _ in steps])]),
        ("Output tokens per second", "tokens/s", [("", [tick.output_tokens / dt for tick, dt in steps])]),
        ("Requests per second", "requests/s", _request_steps(steps)),
    ]
    charts = [_stepped(title, unit, lines, level, steps, plain) for title, unit, lines in per_s]
    for title, unit, values in (
        ("TTFT p50", "TTFT", [tick.ttft_p50 for tick, _ in steps]),
        ("Client lag, largest", "lag", [tick.lag_max_s for tick, _ in steps]),
    ):
        charts.append(_stepped(title, unit, [("", values)], level, steps, duration))
    return charts


# ── Against load ─────────────────────────────────────────────────────────────────────────────────────────────────


def _quantile(name: str, statistic: str) -> Pick:
    def pick(level: Level) -> float | None:
        found: float | None = getattr(level.metric(name), statistic)
        return found

    return pick


def _latency(title: str, levels: list[Level], name: str, is_open: bool, result: LoadResult) -> Chart:
    lines = [(statistic, _quantile(name, statistic), False) for statistic in ("p50", "p95", "p99")]
    if is_open:
        lines += [(f"{s} from schedule", _quantile(f"{name}_from_schedule", s), True) for s in ("p50", "p99")]
    return _chart(title, levels, BY_KEY[name].label, lines, write=duration, limits=_limit(result, name))


def _gaps(levels: list[Level], result: LoadResult) -> Chart:
    lines = [
        ("ICL p50", _quantile("icl", "p50"), False),
        ("ICL p99", _quantile("icl", "p99"), False),
        ("TPOT p50", _quantile("tpot", "p50"), True),
    ]
    return _chart(
        "Between chunks and per token", levels, "ICL, TPOT", lines, write=duration, limits=_limit(result, "icl")
    )


def _limit(result: LoadResult, name: str) -> tuple[tuple[float, str], ...]:
    limit = (result.slo or {}).get(name)
    return () if limit is None else ((limit, f"SLO {duration(limit)}"),)


def _throughput_lines(levels: list[Level]) -> list[tuple[str, Pick, bool]]:
    lines: list[tuple[str, Pick, bool]] = [("whole window", lambda level: level.rates.output_tokens_per_s, False)]
    if any(level.steady for level in levels):
        lines.append(("steady", lambda level: level.steady.output_tokens_per_s if level.steady else None, True))
    return lines


def _request_lines(levels: list[Level], is_open: bool) -> list[tuple[str, Pick, bool]]:
    lines: list[tuple[str, Pick, bool]] = [("succeeded", lambda level: level.rates.succeeded_per_s, False)]
    if is_open:
        lines.insert(0, ("offered", lambda level: level.rates.offered_per_s, True))
    if any(level.rates.goodput_per_s is not None and level.goodput is not None for level in levels):
        lines.append(("within the SLO", lambda level: level.rates.goodput_per_s, False))
    return lines


def _failure_lines(levels: list[Level]) -> list[tuple[str, Pick, bool]]:
    lines: list[tuple[str, Pick, bool]] = [
        ("failed", lambda level: level.requests.failed / max(1, level.requests.offered), False),
        ("429", lambda level: level.throttled / max(1, level.requests.offered), False),
    ]
    if any(level.requests.dropped for level in levels):
        lines.append(("dropped", lambda level: level.requests.dropped / max(1, level.requests.offered), False))
    return lines


def _chart(
    title: str,
    levels: list[Level],
    label: str,
    lines: Iterable[tuple[str, Pick, bool]],
    *,
    write: Callable[[float], str] = plain,
    limits: tuple[tuple[float, str], ...] = (),
) -> Chart:
    rungs = _rungs(levels)
    series = [s for i, (name, pick, dashed) in enumerate(lines) for s in _line(name, pick, rungs, i, dashed, write)]
    values = [point.y for s in series for point in s.points]
    x_label = "offered requests/s" if levels and levels[0].kind == "open" else "concurrent requests"
    x = Axis(x_label, log=wants_log(list(rungs)), ticks=tuple(rungs))
    log = write is duration and wants_log(values)
    return Chart(title, x, Axis(label, TICKS_OF.get(write, number_tick), log), tuple(series), limits=limits)


def _rungs(levels: Iterable[Level]) -> dict[float, list[Level]]:
    found: dict[float, list[Level]] = defaultdict(list)
    for level in levels:
        found[level.value].append(level)
    return dict(sorted(found.items()))


def _line(
    name: str, pick: Pick, rungs: dict[float, list[Level]], colour: int, dashed: bool, write: Callable[[float], str]
) -> Iterator[Series]:
    points, repeats = [], []
    for value, levels in rungs.items():
        known = [(level, found) for level in levels if (found := pick(level)) is not None]
        mean = sum(found for _, found in known) / len(known) if known else None
        over = f", mean of {len(known)}" if len(known) > 1 else ""
        note = f"{levels[0].label}: {name} {write(mean) if mean is not None else NONE}{over}"
        points.append(Point(value, mean, note, any(level.client_bound for level in levels)))
        if len(known) > 1:
            repeats += [Point(value, y, f"{lv.label}, repeat {lv.repeat + 1}: {name} {write(y)}") for lv, y in known]
    if repeats:
        yield Series("", tuple(repeats), "dots", colour)
    yield Series(name, tuple(points), "line", colour, dashed)


def _trade_point(level: Level, y: float | None, unit: str) -> Point:
    written = duration(y) if unit == "s" else f"{plain(y)} {unit}"
    tokens = level.rates.output_tokens_per_s
    note = f"{level.label}: {written} at {plain(tokens)} tokens/s"
    return Point(tokens or 0.0, None if tokens is None else y, note, level.client_bound, f"{level.value:g}")


# ── Distributions ────────────────────────────────────────────────────────────────────────────────────────────────


def _cumulated(result: LoadResult, name: str) -> Chart:
    groups: dict[tuple[str, float], list[Level]] = defaultdict(list)
    for level in result.levels:
        groups[level.kind, level.value].append(level)
    series = [
        Series(levels[0].label, tuple(_cdf(levels, name)), "curve", i, any(level.client_bound for level in levels))
        for i, levels in enumerate(groups.values())
    ]
    label = BY_KEY[name].label
    log = wants_log([point.x for s in series for point in s.points])
    ticks = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
    return Chart(
        f"{label}: share of {'gaps' if name == 'icl' else 'requests'} within",
        Axis(label, duration_tick, log),
        Axis("share", share_tick, ticks=ticks, top=1.0),
        tuple(series),
    )


def _cdf(levels: list[Level], name: str) -> Iterator[Point]:
    counts: dict[float, int] = defaultdict(int)
    for level in levels:
        for upper, n in level.histograms.get(name, ()):
            counts[upper] += n
    total, seen, before = sum(counts.values()), 0, None
    for upper, n in sorted(counts.items()):
        if before is None and upper > 0:
            yield Point(upper / 1.02, 0.0)
        before = upper
        seen += n
        if upper > 0:
            yield Point(upper, seen / total if total else None)


def _coarser(edges: list[Bin]) -> list[Bin]:
    width = -(-len(edges) // MAX_BARS)
    merged = [edges[i : i + width] for i in range(0, len(edges), width)] if edges else []
    return [(part[-1][0], sum(n for _, n in part)) for part in merged]


# ── Timelines ────────────────────────────────────────────────────────────────────────────────────────────────────


def _steps(level: Level) -> list[tuple[Tick, float]]:
    """Ticks with their lengths, merged into at most MAX_STEPS; what is left at the end is no step of its own."""
    if not level.timeline:
        return []
    ticks = sorted(level.timeline, key=lambda tick: tick.t)
    width = -(-len(ticks) // MAX_STEPS)
    groups = [ticks[i : i + width] for i in range(0, len(ticks), width)]
    end = max(level.duration_s, ticks[-1].t + 1e-3)
    if len(groups) > 1 and end - groups[-1][0].t < (groups[-1][0].t - groups[-2][0].t) / 2:
        # One answer in the last 10 ms would be a peak of 100 a second.
        groups[-2:] = [groups[-2] + groups[-1]]
    ends = [group[0].t for group in groups[1:]] + [end]
    return [_merged(group, end) for group, end in zip(groups, ends, strict=True)]


def _merged(ticks: list[Tick], end: float) -> tuple[Tick, float]:
    def total(name: str) -> int:
        return sum(getattr(tick, name) for tick in ticks)

    def worst(name: str) -> float | None:
        return max((value for tick in ticks if (value := getattr(tick, name)) is not None), default=None)

    merged = Tick(
        t=ticks[0].t,
        in_flight=max(tick.in_flight for tick in ticks),
        sent=total("sent"),
        succeeded=total("succeeded"),
        failed=total("failed"),
        throttled=total("throttled"),
        output_tokens=total("output_tokens"),
        ttft_p50=worst("ttft_p50"),
        lag_max_s=worst("lag_max_s"),
    )
    return merged, max(end - merged.t, 1e-3)


def _request_steps(steps: list[tuple[Tick, float]]) -> Lines:
    picked = {
        "succeeded": [tick.succeeded / dt for tick, dt in steps],
        "failed": [tick.failed / dt for tick, dt in steps],
        "429": [tick.throttled / dt for tick, dt in steps],
    }
    return [(name, values) for name, values in picked.items() if name == "succeeded" or any(values)]


def _stepped(
    title: str,
    unit: str,
    lines: Lines,
    level: Level,
    steps: list[tuple[Tick, float]],
    write: Callable[[float], str],
) -> Chart:
    last = steps[-1][0].t + steps[-1][1]
    series = []
    for i, (name, values) in enumerate(lines):
        points = [Point(tick.t, value) for (tick, _), value in zip(steps, values, strict=True)]
        series.append(Series(name, (*points, Point(last, values[-1])), "step", (0, 3, 1)[i % COLOURS]))
    bands = tuple(
        (tick.t, tick.t + dt, _at(tick.t, [(name, values[i]) for name, values in lines], write))
        for i, (tick, dt) in enumerate(steps)
    )
    start, end = level.window_s
    shaded = ((0.0, start), (end, last)) if end > start else ()
    return Chart(
        title,
        Axis("seconds"),
        Axis(unit, TICKS_OF.get(write, number_tick)),
        tuple(series),
        bands=bands,
        shaded=shaded,
        height=200,
    )


def _at(t: float, values: Iterable[tuple[str, float | None]], write: Callable[[float], str]) -> str:
    shown = (f"{name} {NONE if value is None else write(value)}".strip() for name, value in values)
    return f"{duration(t)}: {', '.join(shown)}"
