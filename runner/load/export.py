"""A load test in the JSON layouts of other clients, so that people can lay results beside each other. Pure.

Sources of the layouts: vLLM, `vllm/benchmarks/serve.py` (what `vllm bench serve --save-result` writes); AIPerf,
docs/reference/json-export-schema.md (schema 1.5) and docs/metrics-reference.md. GuideLLM's is left out: its file nests
every request's record, which load.json doesn't hold.

Only what we can fill honestly is there: a percentile that n can't support is left out, as is whatever we don't measure
in that client's meaning. One file a level, since those clients write one a run. What is known to differ:
- vLLM counts an empty role chunk as the first token, so that its TTFT can be shorter;
- vLLM's TPOT and AIPerf's ITL are our `itl`; vLLM's ITL is our `icl`;
- our latencies are those in the level's window, warm-up left out; AIPerf's `error_summary` is of the whole level.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import orjson

from runner.errors import UsageError
from runner.load.results import Level, LoadResult, Quantiles

_VLLM_METRICS: Final = {"ttft": "ttft", "tpot": "itl", "itl": "icl", "e2el": "e2e"}
"""Their name → ours."""
_AIPERF_LATENCIES: Final = {
    "time_to_first_token": "ttft",
    "time_to_first_output_token": "ttfv",
    "inter_token_latency": "itl",
    "inter_chunk_latency": "icl",
    "request_latency": "e2e",
}
_AIPERF_TOKENS: Final = {"input_sequence_length": "input_tokens", "output_sequence_length": "output_tokens"}
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9.]+")


def export(result: LoadResult, layout: str) -> dict[str, bytes]:
    """File names → JSON, one a level. Names are made of the layout, the kind and the value, never of a text.

    Raises:
        UsageError: there is no such layout.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"no layout {layout!r} to export to: use {' or '.join(LAYOUTS)}")
    return {
        f"{layout}-{level.kind}-{level.value:g}-{level.repeat}.json": orjson.dumps(
            LAYOUTS[layout](result, level), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
        )
        for level in result.levels
    }


def vllm(result: LoadResult, level: Level) -> dict[str, Any]:
    """As `vllm bench serve --save-result` writes it; times in milliseconds. `tokenizer_id` is null: usage counts."""
    rates, is_open = level.rates, level.kind == "open"
    # In a closed loop it means nothing; theirs has its default there.
    gamma = {"constant": "inf", "poisson": 1.0, "closed": 1.0}.get(result.arrival.kind)
    made = {
        "date": _date(result.started),
        "endpoint_type": "openai-chat",
        "backend": "openai-chat",
        "label": f"runner {result.runner}",
        "model_id": result.model,
        "tokenizer_id": None,
        "num_prompts": level.requests.in_window,
        "request_rate": _asked_rate(result, level) if is_open else "inf",
        "burstiness": gamma if gamma is not None else (result.arrival.model_extra or {}).get("burstiness"),
        "max_concurrency": None if is_open else round(level.value),
        "duration": level.window_length_s,
        "completed": level.metric("e2e").n,
        "failed": level.requests.in_window - level.metric("e2e").n,
        "total_input_tokens": _total(level.metric("input_tokens")),
        "total_output_tokens": _total(level.metric("output_tokens")),
        "request_throughput": rates.succeeded_per_s,
        "request_goodput": rates.goodput_per_s if level.goodput is not None else None,
        "output_throughput": rates.output_tokens_per_s,
        "total_token_throughput": rates.total_tokens_per_s,
    }
    for theirs, ours in _VLLM_METRICS.items():
        found = level.metric(ours)
        for name, value in (
            *(("mean", found.mean), ("median", found.p50), ("std", found.stddev)),
            *(("p90", found.p90), ("p95", found.p95), ("p99", found.p99)),
        ):
            if value is not None:
                made[f"{name}_{theirs}_ms"] = 1000 * value
    return made


def aiperf(result: LoadResult, level: Level) -> dict[str, Any]:
    """As AIPerf's profile_export_aiperf.json; absent fields are those that its schema calls not applicable."""
    rates, requests = level.rates, level.requests
    made: dict[str, Any] = {
        "schema_version": "1.5",
        "start_time": result.started,
        "end_time": result.ended,
        "was_cancelled": not level.complete,
        "run_info": _run_info(result, level),
        "error_summary": [
            {"error_details": {"type": kind, "message": kind.replace("_", " ")}, "count": n}
            for kind, n in _errors(level)
        ],
    }
    for theirs, ours in _AIPERF_LATENCIES.items():
        made[theirs] = _block(level.metric(ours), "ms", 1000)
    for theirs, ours in _AIPERF_TOKENS.items():
        made[theirs] = _block(level.metric(ours), "tokens", 1)
    made["output_token_throughput_per_user"] = _block(
        level.metric("output_tokens_per_s_per_user"), "tokens/sec/user", 1
    )
    single = {
        "request_throughput": ("requests/sec", rates.succeeded_per_s),
        "goodput": ("requests/sec", rates.goodput_per_s if level.goodput is not None else None),
        "output_token_throughput": ("tokens/sec", rates.output_tokens_per_s),
        "input_token_throughput": ("tokens/sec", rates.input_tokens_per_s),
        "total_token_throughput": ("tokens/sec", rates.total_tokens_per_s),
        "total_isl": ("tokens", _total(level.metric("input_tokens"))),
        "total_osl": ("tokens", _total(level.metric("output_tokens"))),
        "request_count": ("requests", float(level.metric("e2e").n)),
        "error_request_count": ("requests", float(requests.in_window - level.metric("e2e").n)),
        "benchmark_duration": ("sec", level.window_length_s),
    }
    made |= {
        name: {"unit": unit, "avg": value} if value is not None else None for name, (unit, value) in single.items()
    }
    return {name: value for name, value in made.items() if value is not None}


def _run_info(result: LoadResult, level: Level) -> dict[str, Any]:
    is_open = level.kind == "open"
    return {
        "random_seed": result.seed,
        "trial": level.repeat,
        "run_label": level.label,
        "variation_label": level.label,
        "variation_values": {"request_rate": _asked_rate(result, level)} if is_open else {"concurrency": level.value},
        "cli_command": shlex.join(("runner", *result.argv)) if result.argv else None,
    }


def _errors(level: Level) -> list[tuple[str, int]]:
    """Of the whole level; 429s are among them there."""
    throttled = [("rate_limited", level.throttled)] if level.throttled else []
    return [*sorted(level.errors.items()), *throttled]


def _block(found: Quantiles, unit: str, factor: float) -> dict[str, Any] | None:
    if not found.n or found.mean is None:
        return None
    picked = {
        "avg": found.mean,
        "min": found.min,
        "max": found.max,
        "p50": found.p50,
        "p90": found.p90,
        "p95": found.p95,
        "p99": found.p99,
        "std": found.stddev,
        "sum": found.mean * found.n,
    }
    figures = {name: factor * value for name, value in picked.items() if value is not None}
    return {"unit": unit, **figures, "count": found.n}


def _asked_rate(result: LoadResult, level: Level) -> float | None:
    """Requests a second; of ramps, steps and traces, whose value is another, as many as were due."""
    return level.value if result.arrival.kind in ("constant", "poisson", "gamma") else level.rates.offered_per_s


def _total(found: Quantiles) -> int | None:
    return None if found.mean is None else round(found.mean * found.n)


def _date(started: str) -> str:
    try:
        return datetime.fromisoformat(started).strftime("%Y%m%d-%H%M%S")
    except ValueError:
        return ""


LAYOUTS: Final[dict[str, Callable[[LoadResult, Level], dict[str, Any]]]] = {"vllm": vllm, "aiperf": aiperf}
