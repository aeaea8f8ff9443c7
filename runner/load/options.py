"""What a load test is asked to do, beside its settings: its levels, its prompts, its folder. Pure; travels as JSON.

Everything is checked here, before anything is sent. A level's length: `--duration`, `--requests` or both, whichever
ends first. With neither it lasts as long as its ramp, steps or trace say, else DEFAULT_DURATION_S. A tenth of its time
(at most MAX_WARMUP_S) is warm-up; of so many requests, or of a whole trace, there is none, so that n requests are n
requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from runner.errors import UsageError
from runner.limits import MAX_CONCURRENCY
from runner.load.arrivals import Process, Ramp, Steps, parse_arrivals
from runner.load.export import LAYOUTS
from runner.load.search import GOAL, Plan
from runner.load.slo import Slo, parse_slo
from runner.load.spec import LevelSpec
from runner.plan import stem
from runner.settings import parse_duration

DEFAULT_CONCURRENCY: Final = "1,4,16"
DEFAULT_DURATION_S: Final = 30.0
WARMUP_SHARE: Final = 0.1
MAX_WARMUP_S: Final = 5.0
DEFAULT_DRAIN_S: Final = 300.0
"""As long as a first token may take (--first-token-timeout): no server that hangs holds up a sweep for longer."""
MAX_REQUESTS: Final = 10_000_000
"""Of one level: three hours at a thousand a second. When the last one of an open loop is due is known beforehand, which
takes some seconds for as many."""
MAX_LEVELS: Final = 1_000
"""One after the other, repeats included."""
MAX_PROCESSES: Final = 256
MAX_IN_FLIGHT: Final = 10_000
"""Default of an open loop: half of the descriptors that a process mostly may have."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """One load test, as its options say. Times are texts such as "30s"; None is unset."""

    paths: tuple[str, ...] = ()
    out: str | None = None
    concurrency: str | None = None
    rate: str | None = None
    arrivals: str | None = None
    trace: str | None = None
    trace_speed: float = 1.0
    trace_unit: Literal["s", "ms"] | None = None
    duration: str | None = None
    requests: int | None = None
    warmup: str | None = None
    cooldown: str | None = None
    drain: str | None = None
    repeats: int = 1
    max_in_flight: int = MAX_IN_FLIGHT
    slo: str | None = None
    find_max: str | None = None
    goal: float = GOAL
    max_value: float | None = None
    synthetic: bool = False
    sharegpt: str | None = None
    input_tokens: str | None = None
    output_tokens: str | None = None
    shared_prefix: float = 0.0
    exact_output: bool = False
    output_cap: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    turns: str | None = None
    think: str | None = None
    sample: bool = False
    workers: int = 1
    calibrate: bool = True
    strict_client: bool = False
    server_metrics: str | None = None
    export: tuple[str, ...] = ()
    simulate: str | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        """Refuses what contradicts itself.

        Raises:
            UsageError: it names the options.
        """
        for rules in (_sources, _levels, _searches):
            for is_broken, text in rules(self):
                if is_broken:
                    raise UsageError(text)
        for layout in self.export:
            if layout not in LAYOUTS:
                raise UsageError(f"--export is {' or '.join(LAYOUTS)}, not {layout!r}")
        for value in self.values():
            self.level(value, 0)
            if self.rate is not None:
                parse_arrivals(self._arrivals, rate=value)
        if self.objectives is None and self.find_max is not None:
            raise UsageError("--find-max needs objectives")
        self.search()

    # ── What they make ───────────────────────────────────────────────────────────────────────────────────────────

    @property
    def folder(self) -> Path:
        """Where the results go."""
        if self.out is not None:
            return Path(self.out)
        return Path("results") / f"{self.source_name}-load"

    @property
    def source_name(self) -> str:
        """Of the prompts, for people."""
        return "synthetic" if self.synthetic else stem(self.sharegpt or self.paths[0])

    @property
    def objectives(self) -> Slo | None:
        """What requests are judged by."""
        text = self.slo if self.find_max in (None, "slo") else self.find_max
        return None if text is None else parse_slo(text)

    def levels(self) -> list[LevelSpec]:
        """The levels of the sweep in order, each with its repeats; empty: a search finds them."""
        if self.find_max is not None:
            return []
        return [self.level(value, repeat) for value in self.values() for repeat in range(self.repeats)]

    def level(self, value: float, repeat: int) -> LevelSpec:
        """One level."""
        duration_s = _seconds("--duration", self.duration)
        if duration_s is None and self.requests is None and self.trace is None:
            duration_s = self._length_s or DEFAULT_DURATION_S
        cooldown_s = _seconds("--cooldown", self.cooldown) or 0.0
        warmup_s = _seconds("--warmup", self.warmup)
        if warmup_s is None:
            # With a number of requests all of them are asked for.
            whole = duration_s is None or self.requests is not None
            warmup_s = 0.0 if whole or duration_s is None else min(MAX_WARMUP_S, WARMUP_SHARE * duration_s)
        if duration_s is not None and warmup_s + cooldown_s >= duration_s:
            raise UsageError("--warmup and --cooldown leave nothing of --duration")
        if duration_s is None and cooldown_s:
            raise UsageError("--cooldown needs --duration: without one nobody knows when the end begins")
        return LevelSpec(
            kind="open" if self.is_open else "closed",
            value=value,
            label=self._label(value),
            repeat=repeat,
            requests=self.requests,
            duration_s=duration_s,
            warmup_s=warmup_s,
            cooldown_s=cooldown_s,
            arrivals=self._arrivals if self.is_open else "",
            drain_s=DEFAULT_DRAIN_S if self.drain is None else _seconds("--drain", self.drain),
            max_in_flight=self.max_in_flight,
        )

    def search(self) -> Plan | None:
        """The plan of --find-max."""
        if self.find_max is None:
            return None
        try:
            return Plan(
                start=self.values()[0],
                maximum=self._maximum,
                whole=not self.is_open,
                goal=self.goal,
                repeats=self.repeats,
            )
        except ValueError:
            raise UsageError(
                "--max-value is at least the value at which --find-max begins; of a concurrency it is a whole number"
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LoadOptions:
        """What `to_dict` made."""
        return cls(**{**data, "paths": tuple(data["paths"]), "export": tuple(data["export"])})

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a test to go on in its folder."""
        free = ("out", "fresh", "strict_client", "calibrate", "export", "workers", "server_metrics")
        return {key: value for key, value in self.to_dict().items() if key not in free}

    # ── Parts ────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def is_open(self) -> bool:
        """Whether requests go out whatever the server does."""
        return self.rate is not None or self.arrivals is not None or self.trace is not None

    @property
    def _arrivals(self) -> str:
        return "trace" if self.trace is not None else self.arrivals or "poisson"

    @property
    def _length_s(self) -> float | None:
        """Of a ramp or of steps."""
        return None if self.arrivals is None else parse_arrivals(self.arrivals, rate=1.0).length_s

    @property
    def _maximum(self) -> float:
        most = math.inf if self.is_open else float(MAX_CONCURRENCY)
        return most if self.max_value is None else min(most, self.max_value)

    def values(self) -> list[float]:
        """The levels' values in order."""
        if self.trace is not None:
            return [self.trace_speed]
        if self.rate is not None:
            return _numbers("--rate", self.rate)
        if self.arrivals is not None:
            return [_highest(parse_arrivals(self.arrivals, rate=1.0))]
        return _numbers("--concurrency", DEFAULT_CONCURRENCY if self.concurrency is None else self.concurrency)

    def _label(self, value: float) -> str:
        if self.trace is not None:
            return "trace" if self.trace_speed == 1 else f"trace ×{self.trace_speed:g}"
        if not self.is_open:
            return f"{value:g} concurrent"
        return f"{value:g}/s" if self.rate is not None else str(self.arrivals)


def _highest(process: Process) -> float:
    match process.rate:
        case Ramp(a, b, _):
            return max(a, b)
        case Steps(levels):
            return max(per_s for per_s, _ in levels)
    raise UsageError("--arrivals constant, poisson and gamma need --rate")


def _sources(o: LoadOptions) -> Iterator[tuple[bool, str]]:
    """What may not be said of prompts, and how to say it."""
    made = o.synthetic or o.sharegpt is not None
    jobs = f" (JOBS is {o.paths[0][:80]!r})" if made and o.paths else ""
    yield (
        made + bool(o.paths) + (o.synthetic and o.sharegpt is not None) != 1,
        (f"name what to send: JOBS, --synthetic or --sharegpt FILE, one of them{jobs}"),
    )
    yield len(o.paths) > 1 and "-" in o.paths, "standard input can't be read together with other files"
    yield "-" in o.paths and o.workers > 1, "--workers needs a file: each process reads the jobs for itself"
    lengths = o.input_tokens is not None or o.output_tokens is not None or bool(o.shared_prefix)
    yield lengths and not o.synthetic, "--input-tokens, --output-tokens and --shared-prefix are for --synthetic"
    asked = o.turns is not None or o.exact_output or o.output_cap != "max_tokens"
    yield asked and not made, "--turns, --exact-output and --output-cap are for --synthetic and --sharegpt"
    drawn = not o.synthetic and o.turns is None
    yield o.sample and not drawn, "--sample draws from JOBS or ShareGPT's first turns: not with --synthetic or --turns"
    yield o.think is not None and o.turns is None, "--think needs --turns"
    yield not 0 <= o.shared_prefix <= 1, "--shared-prefix is a share of the input, between 0 and 1"
    yield o.out == "", "--out names a folder"
    page = o.server_metrics is None or o.server_metrics.startswith(("http://", "https://"))
    yield not page, "--server-metrics is a URL such as http://localhost:8000/metrics"
    yield not 1 <= o.workers <= MAX_PROCESSES, f"--workers is between 1 and {MAX_PROCESSES}"


def _levels(o: LoadOptions) -> Iterator[tuple[bool, str]]:
    """What may not be said of levels, and how to say it."""
    closed, traced = o.concurrency is not None, o.trace is not None
    own_rate = o.arrivals is not None and o.arrivals.strip().startswith(("ramp", "step"))
    yield (
        closed and (o.rate is not None or traced),
        ("--concurrency is a closed loop, --rate and --trace are open ones: choose one"),
    )
    yield (
        closed and o.arrivals is not None,
        ("--arrivals is for open loops (--rate): a closed one sends when an answer is in"),
    )
    yield (
        traced and (o.rate is not None or o.arrivals is not None),
        ("--trace says itself when to send: --rate and --arrivals don't go with it"),
    )
    yield own_rate and o.rate is not None, "--arrivals ramp and step have rates of their own: leave --rate out"
    yield (
        o.find_max is not None and (own_rate or traced),
        ("--find-max looks for one rate: --arrivals is constant, poisson or gamma, and there is no --trace"),
    )
    yield o.requests is not None and not 1 <= o.requests <= MAX_REQUESTS, f"--requests is between 1 and {MAX_REQUESTS}"
    timed = o.trace_speed != 1 or o.trace_unit is not None
    yield timed and not traced, "--trace-speed and --trace-unit are for --trace FILE"
    yield not 0 < o.trace_speed < math.inf, "--trace-speed is above 0"
    yield not 1 <= o.max_in_flight <= MAX_CONCURRENCY, f"--max-in-flight is between 1 and {MAX_CONCURRENCY}"


def _searches(o: LoadOptions) -> Iterator[tuple[bool, str]]:
    """The same of values and objectives, which can be read by now."""
    values = o.values()
    whole = all(1 <= value <= MAX_CONCURRENCY and value == int(value) for value in values)
    yield not o.is_open and not whole, f"--concurrency is whole numbers between 1 and {MAX_CONCURRENCY}, e.g. 1,4,16"
    yield (
        o.repeats < 1 or len(values) * o.repeats > MAX_LEVELS,
        (f"--repeats is at least 1, and there are at most {MAX_LEVELS} levels"),
    )
    yield len(set(values)) < len(values), "a level is named twice: say --repeats"
    searched = o.goal != GOAL or o.max_value is not None
    yield searched and o.find_max is None, "--goal and --max-value are for --find-max"
    yield not 0 < o.goal <= 1, "--goal is a share of the requests, above 0 and at most 1, e.g. 0.99"
    yield (
        o.find_max == "slo" and o.slo is None,
        ("--find-max slo needs --slo, or name the objectives: --find-max ttft=500ms"),
    )
    yield (
        o.find_max not in (None, "slo") and o.slo is not None,
        ("--find-max names objectives, and so does --slo: say --find-max slo"),
    )
    yield (
        o.find_max is not None and len(values) > 1,
        ("--find-max begins at one value: name one --rate or --concurrency"),
    )


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} is a number or a list of them, e.g. 1,4,16; not {text[:80]!r}") from None


def _seconds(option: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        found = float(parse_duration(text))
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf or (option == "--duration" and not found):
        raise UsageError(f"{option} is a time such as 30s or 5m, not {text[:80]!r}")
    return found
