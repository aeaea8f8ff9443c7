"""The metrics of a load test: what each name means, its unit, and what other clients call the same thing. Pure.

One definition each: tables, charts, comparison and exports all read it here. Sources of the other names: vLLM's
`vllm/benchmarks/serve.py` (calculate_metrics), AIPerf's metrics reference, GuideLLM's and inference-perf's metric
guides. A name stands in a column only where the definition is the same; where it differs, the note says how.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from runner.sketch import needed

Unit = Literal["s", "tokens", "tokens/s"]


class Metric(NamedTuple):
    """One distribution that load.json holds for every level."""

    key: str
    """Its name in load.json and load.csv."""
    label: str
    unit: Unit
    meaning: str
    vllm: str = ""
    """What `vllm bench serve` calls it; empty: it has no such thing."""
    aiperf: str = ""
    guidellm: str = ""
    inference_perf: str = ""
    higher_is_better: bool | None = False
    """None: neither; it says what was asked, not how well it was answered."""


METRICS: Final = (
    Metric(
        "ttft",
        "TTFT",
        "s",
        "Time to first token: from sending to the first content, be it text, reasoning or a tool call. "
        "An empty role delta is not content (vLLM counts it).",
        "ttft",
        "time_to_first_token",
        "time_to_first_token_ms",
        "time_to_first_token",
    ),
    Metric(
        "ttft_from_schedule",
        "TTFT from schedule",
        "s",
        "The same from the time at which the request should have been sent: what a user would have waited. "
        "Open loops only.",
    ),
    Metric(
        "ttfv",
        "TTFV",
        "s",
        "Time to first visible text: like TTFT, but reasoning does not count.",
        "",
        "time_to_first_output_token",
        "time_to_first_output_token_ms",
    ),
    Metric(
        "icl",
        "ICL",
        "s",
        "Inter-chunk latency: every gap between two content chunks as they arrived, pooled over all requests. "
        "A chunk may carry several tokens. (vLLM also pools the gap behind an empty first chunk and that before the "
        "closing one.)",
        "itl",
        "inter_chunk_latency",
        "",
        "inter_token_latency",
    ),
    Metric(
        "tpot",
        "TPOT",
        "s",
        "Time per output token: (last content − first content) ÷ (output tokens − tokens in the first chunk), "
        "one value a request; tokens by the server's usage, unknown where it sends none.",
    ),
    Metric(
        "itl",
        "ITL",
        "s",
        "Mean gap per output token: (last content − first content) ÷ (output tokens − 1), one value a request. "
        "For comparison with other clients. (vLLM counts from an empty first chunk, where the server sends one, to the "
        "closing one.)",
        "tpot",
        "inter_token_latency",
        "inter_token_latency_ms",
        "time_per_output_token",
    ),
    Metric(
        "e2e",
        "E2E",
        "s",
        "End to end: from sending to the last content. (vLLM's ends with the closing chunk, GuideLLM's and "
        "inference-perf's with the stream.)",
        "e2el",
        "request_latency",
        "request_latency",
        "request_latency",
    ),
    Metric(
        "e2e_from_schedule",
        "E2E from schedule",
        "s",
        "The same from the time at which the request should have been sent. Open loops only.",
        guidellm="request_scheduled_latency",
    ),
    Metric(
        "queue_wait",
        "Queue wait",
        "s",
        "From schedule to sending: waiting for limits, for concurrency and for this client.",
    ),
    Metric(
        "send_lag",
        "Send lag",
        "s",
        "How late this client sent, waits for limits left out. Open loops only.",
    ),
    Metric("limiter_wait", "Limiter wait", "s", "Waiting for RPM and TPM, by the user's own limits."),
    Metric(
        "output_tokens_per_s_per_user",
        "Tokens/s per user",
        "tokens/s",
        "What one reader sees of one stream: 1 ÷ TPOT (AIPerf's is 1 ÷ its ITL).",
        higher_is_better=True,
    ),
    Metric(
        "input_tokens",
        "Input tokens",
        "tokens",
        "Of one request, by the server's usage.",
        "input_lens",
        "input_sequence_length",
        "prompt_token_count",
        "prompt_len",
        higher_is_better=None,
    ),
    Metric(
        "output_tokens",
        "Output tokens",
        "tokens",
        "Of one request, by the server's usage, reasoning included.",
        "output_lens",
        "output_sequence_length",
        "output_token_count",
        "output_len",
        higher_is_better=None,
    ),
)
BY_KEY: Final = {metric.key: metric for metric in METRICS}

TERMS: Final = (
    (
        "Offered",
        "Requests that the arrival process asked for. Admitted, sent, achieved and dropped are counted apart: "
        "offered is never lowered to what was achieved.",
    ),
    ("Achieved", "Requests actually sent, a second."),
    (
        "Goodput",
        "Requests that meet every SLO ÷ requests offered in the window. Errors, 429s, timeouts and truncated streams "
        "stay in the denominator.",
    ),
    ("Failed, 429", "429s are a class of their own and not among the failed."),
    (
        "Window",
        "The part of a level that counts; warm-up and cool-down are left out. Steady: in flight at least 90 % of peak.",
    ),
    (
        "ok, suspect, client-bound",
        "Whether this client's own lag, schedule delay and CPU leave the figures standing. What is client-bound "
        "measures the client, not the server.",
    ),
    (
        "–",
        "A percentile that the number of requests can't support, or something that was not measured. p90 needs "
        f"{needed(0.9)} values, p95 {needed(0.95)} and p99 {needed(0.99)} (lower 95 % Wilson bound of the largest).",
    ),
    ("Percentiles", "From mergeable sketches, within 1 % of the value at that rank; successful requests only."),
)
"""The other words of the report, each with its meaning."""
