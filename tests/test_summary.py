from __future__ import annotations

import io

import orjson
import pytest

from runner import summary
from runner.sketch import Sketch

RUN = {
    "folder": "results/x",
    "ended": "complete",
    "elapsed_s": 2.0,
    "jobs_per_s": 1.5,
    "output_tokens_per_s": 10.0,
    "limited_by": "nothing",
    "resumed": 0,
    "remaining": 0,
    "next": "",
}


def line(error=None, **runner):
    made = {
        "attempts": 1,
        "digest": "00",
        "chunks": 2,
        "usage": None,
        "finish": "stop",
        "retries": [],
        "cost": None,
        **runner,
    }
    return orjson.dumps({"id": "a", "custom_id": "a", "response": None, "error": error, "runner": made}) + b"\n"


def test_counts_tokens_and_reasons_are_those_of_the_records():
    usage = {"input_tokens": 3, "cached_tokens": 1, "output_tokens": 2, "reasoning_tokens": 0}
    made = summary.summarize(
        [
            line(usage=usage, cost=0.25, ttft_s=0.1),
            line(usage=usage, cost=0.5, attempts=3, retries=[{"reason": "truncated"}, {"reason": "rate_limited"}]),
            line({"code": "bad_json"}, attempts=0, digest=None, finish=None),
        ]
    )
    assert made["counts"] == {
        "total": 3,
        "succeeded": 2,
        "failed": 1,
        "rejected": 1,
        "attempts": 4,
        "chunks": 6,
    }
    assert made["errors"] == {"bad_json": 1}
    assert made["retries"] == {"truncated": 1, "rate_limited": 1}
    assert made["usage"] == {"input_tokens": 6, "cached_tokens": 2, "output_tokens": 4, "reasoning_tokens": 0}
    assert made["cost"] == 0.75
    assert made["percentiles"]["ttft_s"]["count"] == 1


def test_an_unknown_cost_is_none_and_not_zero():
    assert summary.summarize([line()])["cost"] is None


@pytest.mark.parametrize(("n", "shown"), [(3, set()), (4, {"p50"}), (35, {"p50", "p90"}), (381, {"p50", "p90", "p99"})])
def test_a_percentile_that_n_cannot_support_is_not_shown(n, shown):
    sketch = Sketch()
    for i in range(n):
        sketch.add(0.001 * (i + 1))
    made = summary.percentiles(sketch)
    assert {name for name in ("p50", "p90", "p99") if made[name] is not None} == shown
    assert made["max"] == pytest.approx(0.001 * n)


def test_the_table_escapes_what_a_server_named():
    made = summary.summarize([line({"code": "evil\x1b[2J\n"}, retries=[{"reason": "\x07bell"}])])
    made["run"] = RUN
    out = io.StringIO()
    summary.print_table(made, out)
    assert "\x1b" not in out.getvalue()
    assert "\x07" not in out.getvalue()
    assert "evil\\x1b[2J\\n" in out.getvalue()


def test_the_table_escapes_the_name_of_a_folder():
    """It is named after the jobs file, and that by whoever made it."""
    made = summary.summarize([line()])
    made["run"] = RUN | {"folder": "results/a\x1b[31m"}
    out = io.StringIO()
    summary.print_table(made, out)
    assert "results/a\\x1b[31m" in out.getvalue()


def test_the_table_says_what_to_do_next():
    made = summary.summarize([line()])
    made["run"] = RUN | {"ended": "SIGINT", "next": "the same command again goes on", "remaining": 4}
    out = io.StringIO()
    summary.print_table(made, out)
    assert "4 not run yet" in out.getvalue()
    assert "the same command again goes on" in out.getvalue()
