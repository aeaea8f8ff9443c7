"""results.jsonl → summary.json and the table at the end of a run.

It is made from the records themselves, so that it covers every job of the folder, whichever run finished it, and can be
made again at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol

from runner.escape import for_line
from runner.sketch import Sketch, needed
from runner.totals import Totals
from runner.written import of_any, read, read_any

SCHEMA: Final = 1
_GROUP_BYTES: Final = 1 << 20
_PERCENTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def summarize(lines: Iterable[bytes], totals: Totals | None = None) -> dict[str, Any]:
    """Counts, tokens, cost and percentiles of the records in `lines`, beside those that `totals` has: it takes them in.

    One pass, bounded memory. Latencies are those of jobs that succeeded, waits those of all that were sent. `cost` is
    None where no answer had a price.

    Raises:
        ValueError: a line is not a record.
    """
    totals = totals or Totals()
    number = totals.succeeded + totals.failed
    for group in _groups(lines):
        _count(totals, group, number + 1)
        number += len(group)
    return {
        "schema": SCHEMA,
        "counts": {
            "total": totals.succeeded + totals.failed,
            "succeeded": totals.succeeded,
            "failed": totals.failed,
            "rejected": totals.rejected,
            "attempts": totals.attempts,
            "chunks": totals.chunks,
        },
        "errors": dict(totals.errors.most_common()),
        "finishes": dict(totals.finishes.most_common()),
        "retries": dict(totals.retries.most_common()),
        "usage": totals.tokens,
        "cost": totals.cost,
        "percentiles": {name: percentiles(sketch) for name, sketch in totals.times.items()},
    }


def _groups(lines: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Some lines at a time, bounded by their bytes."""
    group: list[bytes] = []
    size = 0
    for line in lines:
        group.append(line)
        size += len(line)
        if size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _count(totals: Totals, lines: list[bytes], first: int) -> None:
    """Counts the records of some lines, together where each is plainly one."""
    block = read(lines)
    if block is not None:
        totals.add(block.records)
    elif len(lines) > 1:
        half = len(lines) // 2
        _count(totals, lines[:half], first)
        _count(totals, lines[half:], first + half)
    else:
        found = read_any(lines[0])
        if found is None:
            raise ValueError(f"line {first} is not a record")
        totals.add([of_any(found[1])])


def percentiles(sketch: Sketch) -> dict[str, float | int | None]:
    """What a sketch can support: None where there are too few samples."""
    shown: dict[str, float | int | None] = {"count": sketch.count}
    for name, q in _PERCENTILES.items():
        value = sketch.quantile(q) if sketch.count >= needed(q) else None
        shown[name] = None if value is None else round(value, 6)
    shown["max"] = None if sketch.max is None else round(sketch.max, 6)
    return shown


class Printed(Protocol):
    """What a table is printed to."""

    def write(self, text: str, /) -> object:
        """Takes text."""

    def flush(self) -> None:
        """Hands it on."""


def print_table(summary: dict[str, Any], stream: Printed) -> None:
    """The end of a run for a person: what came of it, what it cost, what to do next."""
    for name, value in _rows(summary):
        stream.write(f"{name:<13} {value}\n")
    stream.flush()


def _rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    counts, usage, run = summary["counts"], summary["usage"], summary["run"]
    rows = [("jobs", _jobs(counts, run))]
    if summary["errors"]:
        rows.append(("errors", ", ".join(f"{for_line(code)} {n:,}" for code, n in summary["errors"].items())))
    if summary["retries"]:
        rows.append(("retried", ", ".join(f"{for_line(reason)} {n:,}" for reason, n in summary["retries"].items())))
    tokens = f"{usage['input_tokens']:,} in ({usage['cached_tokens']:,} cached), "
    rows.append(("tokens", tokens + f"{usage['output_tokens']:,} out"))
    if summary["cost"] is not None:
        rows.append(("cost", f"{summary['cost']:,.4f}"))
    for name, label in (("ttft_s", "first token"), ("duration_s", "whole answer")):
        if summary["percentiles"][name]["count"]:
            rows.append((label, _times(summary["percentiles"][name])))
    if "elapsed_s" in run:
        speed = f"{run['jobs_per_s']:,.1f} jobs/s, {run['output_tokens_per_s']:,.0f} tok/s"
        used = "".join(f", {share:.0%} of {name.upper()} used" for name, share in run.get("allowance_used", {}).items())
        rows.append(("time", f"{run['elapsed_s']:.1f} s, {speed}; limited by {run['limited_by']}{used}"))
    for name, each in run.get("limits", {}).get("endpoints", {}).items():
        rows.append((f"  {for_line(name)}", f"{each['requests']:,} requests, {each['state']}"))
    rows.append(("output", for_line(str(run["folder"]))))
    if run["ended"] != "complete":
        rows.append(("ended", for_line(run["ended"])))
    if run["next"]:
        rows.append(("next", run["next"]))
    return rows


def _jobs(counts: dict[str, int], run: dict[str, Any]) -> str:
    parts = [f"{counts['succeeded']:,} succeeded", f"{counts['failed']:,} failed"]
    if counts["rejected"]:
        parts[-1] += f" ({counts['rejected']:,} of them never sent)"
    if run["resumed"]:
        parts.append(f"{run['resumed']:,} of them by earlier runs")
    if run["remaining"]:
        parts.append(f"{run['remaining']:,} not run yet")
    return ", ".join(parts)


def _times(shown: dict[str, Any]) -> str:
    return "  ".join(f"{name} {shown[name]:.3f} s" for name in ("p50", "p90", "p99", "max") if shown[name] is not None)
