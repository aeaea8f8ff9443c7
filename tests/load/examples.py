"""Plausible load tests, made without a clock: a model server with a knee, seen through real sketches.

The server: up to 24 streams decode at full speed, beyond that they share it, and requests wait for a place.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from functools import cache
from typing import Any

import orjson

from runner.load.definitions import METRICS
from runner.load.quantiles import Distribution, histogram
from runner.load.results import LoadResult

HOSTILE = (
    "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>\x1b[2J\u202e`${7*7}`]]>--><svg/onload=x>\x00"
)
CAPACITY = 24


def distribution(values: Iterable[float]) -> Distribution:
    made = Distribution()
    for value in values:
        made.add(value)
    return made


def quantiles(values: Iterable[float]) -> dict[str, Any]:
    return distribution(values).quantiles()


def bins(values: Iterable[float]) -> list[tuple[float, int]]:
    return histogram(distribution(values).sketch)


def drawn(rng: random.Random, n: int, median: float, spread: float) -> list[float]:
    return [median * math.exp(rng.gauss(0, spread)) for _ in range(n)]


def timeline(
    rng: random.Random, seconds: int, in_flight: float, per_s: float, tokens: float, first: float, stall: int | None
) -> Any:
    ticks, scatter = [], 0.25 * math.sqrt(math.pi / 2 / per_s)  # of the median of a second's requests
    for t in range(seconds):
        stalled = stall is not None and stall <= t < stall + 5
        warm = min(1.0, (t + 1) / 3)
        done = 0 if stalled else round(per_s * warm * rng.uniform(0.8, 1.2))
        ticks.append(
            {
                "t": float(t),
                "in_flight": round(in_flight * warm * (1.6 if stalled else 1)),
                "sent": round(per_s * rng.uniform(0.8, 1.2)),
                "succeeded": done,
                "failed": round(per_s) if stall is not None and t == stall + 5 else 0,
                "throttled": round(per_s / 2) if stall is not None and t in (stall + 6, stall + 7) else 0,
                "output_tokens": 0 if stalled else round(tokens * warm * rng.uniform(0.9, 1.1)),
                "ttft_p50": None if stalled or done < 4 else first * math.exp(rng.gauss(0, scatter)),
                "lag_max_s": rng.uniform(0.0005, 0.004),
            }
        )
    return ticks


def level(value: float, **options: Any) -> dict[str, Any]:
    """One level as load.json has it, one's own to change; `options` are those of `_level`."""
    made: dict[str, Any] = orjson.loads(_level(value, **options))
    return made


@cache
def _level(
    value: float,
    *,
    kind: str = "closed",
    repeat: int = 0,
    seed: int = 0,
    seconds: int = 60,
    speed: float = 1.0,
    verdict: str = "ok",
    stall: int | None = None,
    started: float = 0.0,
    complete: bool = True,
    label: str | None = None,
) -> bytes:
    """`speed` is the server's, 1.1 is 10 % faster; `stall` the second in which it stands still."""
    rng = random.Random(f"{seed} {value} {repeat}")
    users = value if kind == "closed" else value * 3.0
    crowding = max(1.0, users / CAPACITY)
    gap = 0.02 * crowding / speed * (1 + 0.1 * users / CAPACITY)
    first = (0.12 + 0.9 * max(0.0, crowding - 1)) / speed
    length = 100
    each = first + gap * length
    per_s = min(users, 1e9) / each if kind == "closed" else min(value, CAPACITY / (0.12 + 0.02 * length) * speed)
    n = max(1, int(per_s * (seconds - 5)))
    failed = round(n * 0.04) if stall is not None else 0
    throttled = round(n * 0.03) if stall is not None else 0
    ttft = drawn(rng, n, first, 0.25) + ([5.0 * rng.random() for _ in range(n // 12)] if stall is not None else [])
    gaps = drawn(rng, min(5_000, n * length), gap, 0.12)
    tpot = drawn(rng, n, gap, 0.05)
    output = [float(rng.randint(60, 140)) for _ in range(n)]
    e2e = [a + b * c for a, b, c in zip(ttft, tpot, output, strict=False)]
    late = [v + rng.expovariate(1 / (0.01 + 2 * max(0.0, crowding - 1))) for v in ttft]
    values: dict[str, list[float]] = {
        "ttft": ttft,
        "ttfv": ttft,
        "icl": gaps,
        "tpot": tpot,
        "itl": [1.01 * v for v in tpot],
        "e2e": e2e,
        "limiter_wait": [0.0] * n,
        "output_tokens_per_s_per_user": [1 / v for v in tpot],
        "input_tokens": [float(rng.randint(200, 400)) for _ in range(n)],
        "output_tokens": output,
    }
    if kind == "open":
        values["ttft_from_schedule"] = late
        values["e2e_from_schedule"] = [a + b for a, b in zip(e2e, late, strict=False)]
        values["queue_wait"] = [b - a for a, b in zip(ttft, late, strict=False)]
        values["send_lag"] = drawn(rng, n, 0.0008, 0.5)
    good = sum(v <= 0.5 for v in ttft) / (n + failed + throttled)
    assert set(values) <= {metric.key for metric in METRICS}
    reasons = {
        "client-bound": ["loop lag p99 41 ms (client-bound above 30 ms)", "CPU share 93 %"],
        "suspect": ["CPU share 69 % (suspect above 50 %)"],
    }.get(verdict, [])
    made = {
        "label": label or (f"{value:g} concurrent" if kind == "closed" else f"{value:g}/s"),
        "kind": kind,
        "value": value,
        "repeat": repeat,
        "started_s": started,
        "duration_s": float(seconds),
        "window_s": [5.0, float(seconds)],
        "complete": complete,
        "requests": {
            "offered": n + failed + throttled + 3,
            "admitted": n + failed + throttled + 2,
            "sent": n + failed + throttled + 2,
            "succeeded": n,
            "failed": failed,
            "dropped": 1 if kind == "open" else 0,
            "in_window": n + failed + throttled,
            "in_flight_at_end": 2,
        },
        "errors": {"read_timeout": failed - failed // 3, "truncated": failed // 3} if failed else {},
        "throttled": throttled,
        "rates": {
            "offered_per_s": value if kind == "open" else per_s,
            "achieved_per_s": per_s * 1.001,
            "succeeded_per_s": per_s,
            "input_tokens_per_s": per_s * 300,
            "output_tokens_per_s": per_s * length,
            "total_tokens_per_s": per_s * (300 + length),
            "chunks_per_s": per_s * length,
            "goodput_per_s": per_s * good,
        },
        "steady": {"from_s": 7.0, "to_s": seconds - 2.0, "output_tokens_per_s": per_s * 104, "requests_per_s": per_s},
        "goodput": good,
        "metrics": {name: quantiles(found) for name, found in values.items()},
        "metrics_with_failures": {
            name: quantiles(values[name]) | ({"p99": "inf", "p99_9": "inf", "max": "inf"} if failed else {})
            for name in ("ttft", "e2e")
        },
        "histograms": {name: bins(values[name]) for name in ("ttft", "icl", "e2e")},
        "timeline": timeline(rng, seconds, min(users, CAPACITY * 4), per_s, per_s * length, first, stall),
        "client": {
            "verdict": verdict,
            "reasons": reasons,
            "lag_p99_s": 0.041 if reasons else 0.0021,
            "lag_max_s": 0.09 if reasons else 0.006,
            "schedule_delay_p99_s": 0.05 if reasons else 0.001,
            "schedule_delay_max_s": 0.09 if reasons else 0.002,
            "cpu_share": 0.93 if reasons else 0.31,
            "coalesced_share": 0.4 if reasons else 0.02,
        },
        "server_metrics": {"vllm:num_requests_running": {"mean": min(users, 24), "max": 24.0, "last": 3.0}},
    }
    return orjson.dumps(made)


def result(levels: list[dict[str, Any]], **changes: Any) -> LoadResult:
    """A load test of these levels."""
    return LoadResult.model_validate(
        {
            "schema": 1,
            "runner": "0.1.0",
            "name": "sweep",
            "started": "2026-11-21T09:00:00+00:00",
            "ended": "2026-11-21T09:04:00+00:00",
            "complete": True,
            "endpoint": "http://10.0.0.5:8000/v1",
            "model": "meta-llama/Llama-3.1-8B-Instruct",
            "synthetic": False,
            "seed": 7,
            "argv": ["load", "prompts.jsonl", "--concurrency", "1,4,16,64", "--duration", "60s", "--slo", "ttft=500ms"],
            "host": {"name": "bench-1", "platform": "Linux-6.1-x86_64", "cpus": 16},
            "versions": {"python": "3.11.9", "openai": "3.52.0", "aiohttp": "3.14.5"},
            "settings": {"rpm": None, "tpm": None, "max_attempts": 1, "durability": "batch"},
            "workload": {"source": "file", "describe": "prompts.jsonl, 500 lines, cycled", "lines": 500},
            "arrival": {"kind": "closed"},
            "slo": {"ttft": 0.5},
            "calibration": {
                "max_chunks_per_s": 24000.0,
                "max_requests_per_s": 900.0,
                "lag_max_s": 0.0018,
                "cpu_us_per_chunk": 36.0,
                "describe": "paced null server, 200 streams, 50 tokens/s, 3 s",
            },
            "levels": levels,
            "summary_levels": [],
            "search": None,
        }
        | changes
    )


def healthy(seed: int = 0, speed: float = 1.0, **changes: Any) -> LoadResult:
    """1, 4, 16, 64 at once; 64 is beyond the knee."""
    made = [
        level(n, seed=seed, speed=speed, started=60.0 * i, seconds=60 if n < 64 else 90)
        for i, n in enumerate((1, 4, 16, 64))
    ]
    return result(made, **changes)


def repeated(seed: int = 0, speed: float = 1.0, times: int = 4, **changes: Any) -> LoadResult:
    """4 and 16 at once, several times each."""
    rng = random.Random(seed)
    made = [level(n, repeat=i, seed=seed, speed=speed * rng.uniform(0.98, 1.02)) for n in (4, 16) for i in range(times)]
    summary = [
        {
            "label": f"{n} concurrent",
            "kind": "closed",
            "value": n,
            "repeats": times,
            "metrics": {"ttft_p50": {"mean": 0.12, "low": 0.11, "high": 0.13}},
            "rates": {"output_tokens_per_s": {"mean": 710.0, "low": 698.0, "high": 722.0}},
        }
        for n in (4, 16)
    ]
    return result(made, summary_levels=summary, **changes)


def open_loop(seed: int = 1, **changes: Any) -> LoadResult:
    """2 to 20 requests a second, Poisson; the client can't keep up with the last."""
    rates = (2, 5, 8, 11, 20)
    made = [
        level(rate, kind="open", seed=seed, verdict={11: "suspect", 20: "client-bound"}.get(rate, "ok"))
        for rate in rates
    ]
    search = {
        "slo": {"ttft": 0.5},
        "best": 8,
        "tried": [{"value": r, "goodput": 1 - r / 40, "kept": r <= 8, "verdict": "ok"} for r in rates],
    }
    return result(made, name="poisson", arrival={"kind": "poisson", "seed": 3}, search=search, **changes)


def stalled(seed: int = 2) -> LoadResult:
    """A server that stands still for five seconds, then fails and refuses."""
    return result(
        [level(5, kind="open", seed=seed, stall=25), level(9, kind="open", seed=seed, stall=20)],
        name="stall",
        arrival={"kind": "constant"},
    )


def interrupted(seed: int = 3) -> LoadResult:
    """Ended by the user in its second level."""
    made = [level(4, seed=seed), level(16, seed=seed, seconds=8, complete=False)]
    return result(made, name="cut short", complete=False, ended=None, slo=None, calibration=None, argv=[])


def empty() -> LoadResult:
    """Ended before the first level did anything."""
    bare = {"label": "1 concurrent", "kind": "closed", "value": 1, "complete": False}
    return result([bare], name="nothing", complete=False, ended=None)


def hostile() -> LoadResult:
    """Names that would like to be markup, terminal codes and formulas."""
    made = level(4, label=HOSTILE) | {"errors": {HOSTILE: 3, "=cmd|' /C calc'!A0": 1}}
    made["client"] = made["client"] | {"verdict": "client-bound", "reasons": [HOSTILE, "=1+1"]}
    made["server_metrics"] = {HOSTILE: {"mean": 1.0, "max": 2.0, "last": 1.0}}
    return result(
        [made],
        name="=" + HOSTILE,
        model="@SUM(A1)" + HOSTILE,
        endpoint="javascript:alert(3)//" + HOSTILE,
        argv=["load", HOSTILE],
        host={HOSTILE: HOSTILE},
        versions={"python": HOSTILE},
        settings={"headers": {HOSTILE: [HOSTILE]}},
        workload={"source": HOSTILE, "describe": HOSTILE, HOSTILE: HOSTILE},
        arrival={"kind": HOSTILE},
        slo={HOSTILE: 0.5},
        runner=HOSTILE,
        started=HOSTILE,
        calibration={"describe": HOSTILE},
    )
