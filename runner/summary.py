"""results.jsonl → summary.json and the table at the end of a run.

It is made from the records themselves, so that it covers every job of the folder, whichever run finished it, and can be
made again at any time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import IO, Any, Final

import orjson

from runner.escape import for_line
from runner.sketch import Sketch

SCHEMA: Final = 1
MIN_COUNT: Final = {0.5: 1, 0.9: 38, 0.99: 370}
"""How many samples a percentile needs to be shown: a 95 % Wilson interval of its rank then spans at most the same
again on the upper side. p90 about 38, p99 about 370."""
_TIMES: Final = ("ttft_s", "duration_s", "queue_s", "limiter_wait_s")


def summarize(lines: Iterable[bytes]) -> dict[str, Any]:
    """Counts, tokens, cost and percentiles of the records in `lines`. One pass, bounded memory."""
    counts: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    finishes: Counter[str] = Counter()
    retries: Counter[str] = Counter()
    usage: Counter[str] = Counter()
    sketches = {name: Sketch() for name in _TIMES}
    cost = 0.0
    for line in lines:
        record = orjson.loads(line)
        runner = record["runner"]
        counts["total"] += 1
        error = record["error"]
        counts["succeeded" if error is None else "failed"] += 1
        counts["rejected"] += runner["attempts"] == 0 and runner["digest"] is None
        counts["attempts"] += runner["attempts"]
        counts["chunks"] += runner.get("chunks") or 0
        if error is not None:
            errors[error["code"]] += 1
        if runner["finish"] is not None:
            finishes[runner["finish"]] += 1
        retries.update(retry["reason"] for retry in runner["retries"])
        usage.update(runner["usage"] or {})
        cost += runner.get("cost") or 0.0
        _add_times(sketches, runner)
    return {
        "schema": SCHEMA,
        "counts": {name: counts[name] for name in ("total", "succeeded", "failed", "rejected", "attempts", "chunks")},
        "errors": dict(errors.most_common()),
        "finishes": dict(finishes.most_common()),
        "retries": dict(retries.most_common()),
        "usage": dict(usage),
        "cost": cost,
        "percentiles": {name: percentiles(sketch) for name, sketch in sketches.items()},
    }


def _add_times(sketches: dict[str, Sketch], runner: dict[str, Any]) -> None:
    for name in _TIMES:
        value = runner.get(name)
        if value is not None:
            sketches[name].add(value)


def percentiles(sketch: Sketch) -> dict[str, float | int | None]:
    """What a sketch can support: None where there are too few samples."""
    shown: dict[str, float | int | None] = {"count": sketch.count}
    for q, least in MIN_COUNT.items():
        value = sketch.quantile(q) if sketch.count >= least else None
        shown[f"p{round(100 * q)}"] = None if value is None else round(value, 6)
    shown["max"] = None if sketch.max is None else round(sketch.max, 6)
    return shown


def print_table(summary: dict[str, Any], stream: IO[str]) -> None:
    """The end of a run for a person: what came of it, what it cost, what to do next."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(summary):
        table.add_row(name, Text(value))
    Console(file=stream, highlight=False).print(table)


def _rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    counts, usage, run = summary["counts"], summary["usage"], summary["run"]
    rows = [("jobs", _jobs(counts, run))]
    if summary["errors"]:
        rows.append(("errors", ", ".join(f"{for_line(code)} {n:,}" for code, n in summary["errors"].items())))
    if summary["retries"]:
        rows.append(("retried", ", ".join(f"{reason} {n:,}" for reason, n in summary["retries"].items())))
    tokens = f"{usage.get('input_tokens', 0):,} in ({usage.get('cached_tokens', 0):,} cached), "
    rows.append(("tokens", tokens + f"{usage.get('output_tokens', 0):,} out"))
    if summary["cost"]:
        rows.append(("cost", f"{summary['cost']:,.4f}"))
    for name, label in (("ttft_s", "first token"), ("duration_s", "whole answer")):
        if summary["percentiles"][name]["count"]:
            rows.append((label, _times(summary["percentiles"][name])))
    if "elapsed_s" in run:
        rows.append(
            ("time", f"{run['elapsed_s']:.1f} s, {run['jobs_per_s']:.1f} jobs/s; limited by {run['limited_by']}")
        )
    rows.append(("output", str(run["folder"])))
    if run["ended"] != "complete":
        rows.append(("ended", for_line(run["ended"])))
    if run["next"]:
        rows.append(("next", run["next"]))
    return rows


def _jobs(counts: dict[str, int], run: dict[str, Any]) -> str:
    parts = [f"{counts['succeeded']:,} succeeded", f"{counts['failed']:,} failed"]
    if counts["rejected"]:
        parts[-1] += f" ({counts['rejected']:,} of them lines that can't be jobs)"
    if run["resumed"]:
        parts.append(f"{run['resumed']:,} of them by earlier runs")
    if run["remaining"]:
        parts.append(f"{run['remaining']:,} not run yet")
    return ", ".join(parts)


def _times(shown: dict[str, Any]) -> str:
    return "  ".join(f"{name} {shown[name]:.3f} s" for name in ("p50", "p90", "p99", "max") if shown[name] is not None)
