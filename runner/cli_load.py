"""The options of `python -m runner load`. What they mean is checked where they are used: see `load.options`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def _text(name: str, metavar: str, text: str, **more: Any) -> Callable[[F], F]:
    return click.option(name, metavar=metavar, default=None, help=text, **more)


def _flag(name: str, text: str) -> Callable[[F], F]:
    return click.option(name, is_flag=True, help=text)


_LEVELS: Final = (
    _text("--concurrency", "N,…", "Closed loop: so many streams at once, one level each. [1,4,16]"),
    _text("--rate", "N,…", "Open loop: so many requests a second, one level each."),
    _text("--arrivals", "KIND", "constant, poisson, gamma:0.5, ramp:1..50/60s or step:10x30s,20x30s. [poisson]"),
    _text("--trace", "FILE", "Open loop: the send times of a trace (JSONL or CSV)."),
    _text("--trace-speed", "X", "Replay the trace X times as fast. [1]", type=float),
    _text("--trace-unit", "s|ms", "Unit of the trace's times. [by its columns]", type=click.Choice(["s", "ms"])),
    _text(
        "--duration",
        "TIME",
        "Of a level's sending. [30s, or what a ramp, steps or a trace say, if --requests isn't given]",
    ),
    _text("--requests", "N", "Of a level.", type=int),
    _text("--warmup", "TIME", "Left out at a level's start. [a tenth of --duration, 5s at most; else 0]"),
    _text("--cooldown", "TIME", "Left out at the end of --duration. [0]"),
    _text("--drain", "TIME", "After a level's last request, wait at most so long for answers. [5m]"),
    _text("--repeats", "N", "Run every level N times. [1]", type=int),
    _text("--max-in-flight", "N", "Open loop: what is due beyond it is dropped, and counted. [10000]", type=int),
    _text("--slo", "LIST", "Objectives of a request, e.g. ttft=500ms,itl=50ms,e2e=10s."),
    _text("--find-max", "slo|LIST", "Search the highest rate or concurrency that keeps them, from the first value up."),
    _text("--goal", "SHARE", "Of the requests that must keep the SLO, for --find-max. [0.99]", type=float),
    _text("--max-value", "N", "Highest value that --find-max tries.", type=float),
)
_PROMPTS: Final = (
    _flag("--sample", "Draw prompts by chance, instead of in order and again."),
    _flag("--synthetic", "Made-up prompts instead of JOBS."),
    _text("--input-tokens", "DIST", "512, uniform:100..500, normal:512,100 or lognormal:400,0.8. [512]"),
    _text("--output-tokens", "DIST", "The same, of the answers. [128]"),
    _text("--shared-prefix", "SHARE", "Part of the input that all synthetic prompts begin with. [0]", type=float),
    _flag("--exact-output", "Ask for the exact output length (min_tokens, ignore_eos: vLLM and its like)."),
    _text("--output-cap", "KEY", "What caps an answer.", type=click.Choice(["max_tokens", "max_completion_tokens"])),
    _text("--sharegpt", "FILE", "Prompts of a file in ShareGPT's form instead of JOBS."),
    _text("--turns", "DIST", "Conversations of so many turns (ShareGPT: any number, all of the recorded ones)."),
    _text("--think", "DIST", "Seconds between an answer and the next turn, e.g. exponential:2. [0]"),
)
_MACHINE: Final = (
    _text("--workers", "N", "Processes that share the schedule. [1]", type=int),
    click.option("--calibrate/--no-calibrate", default=None, help="Measure this machine first, 4 seconds. [yes]"),
    _flag("--strict-client", "Exit with 5 if a level was bound by this client."),
    _text("--server-metrics", "URL", "Poll the server's Prometheus page (vLLM, SGLang, TGI) along."),
    _text("--export", "vllm|aiperf", "Write the levels in that client's JSON, too; repeatable.", multiple=True),
    _text("--out", "DIR", "Output folder. [results/<stem of JOBS>-load]"),
    _flag("--fresh", "Start anew; what is in DIR is moved to DIR/old-…."),
    _text("--simulate", "[PRESET]", "Test the built-in simulator: no key, no network."),
)
_SETTINGS: Final = (
    _text("--base-url", "URL", "An OpenAI-compatible server. [OPENAI_BASE_URL, else OpenAI]"),
    _text("--api-key-env", "NAME", "Environment variable that holds the key. [OPENAI_API_KEY]"),
    _text("--model", "NAME", "Model for prompts that name none."),
    _text("--transport", "KIND", "aiohttp or native. [native]", type=click.Choice(["aiohttp", "native"])),
    _text("--rpm", "N", "Send at most so many requests a minute; the wait is no latency. [no limit]"),
    _text("--tpm", "N", "The same for tokens, input and reserved output. [no limit]"),
    _text("--max-attempts", "N", "Tries of one request. [1]"),
    _text("--max-cost", "N", "Stop when this much is spent (needs prices in --config)."),
    _text("--first-token-timeout", "TIME", "From sending to the first content. [5m]"),
    _text("--idle-timeout", "TIME", "Between two deltas. [60s]"),
    _text("--total-timeout", "TIME", "One attempt in all. [30m]"),
    _text("--grace", "TIME", "After Ctrl-C, wait at most so long for answers. [30s]"),
    _text("--stream-options", "openai|usage|none", "What to ask of a stream. [openai]"),
    _text("--fail-on", "FINISH,…", "Finish reasons that count as failure, e.g. length."),
    click.option("--deltas/--no-deltas", default=None, help="Write deltas.jsonl. [no]"),
    _text("--seed", "N", "Of arrivals, lengths and samples. [a fresh one]"),
    _text("--progress", "auto|rich|plain|json|none", "The live line, on stderr. [auto]"),
    _text("--log-level", "LEVEL", "Of DIR/run.log. [INFO]"),
    click.option("--config", metavar="NAME|FILE", help="configs/NAME.toml, or a TOML file."),
)


def load_options(function: F) -> F:
    """All of them, and the jobs files."""
    for option in reversed((*_LEVELS, *_PROMPTS, *_MACHINE, *_SETTINGS)):
        function = option(function)
    return click.argument("jobs", nargs=-1)(function)
