"""load.json: what a load test leaves, as values and bytes. Pure.

load.json (schema 1) holds everything that tables, charts, comparisons, load.csv and exports show; latencies are in
seconds. It is read strictly: a wrong type, a NaN or a missing part is a UsageError that names the place, since a
comparison of guesses is worse than none. Keys that this version doesn't know are left out, so that a later one may add
some.

Accepted: +∞ among the percentiles "with failures" is the string "inf" in load.json, since JSON has no number for it.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError

from runner.errors import UsageError
from runner.escape import for_line

SCHEMA: Final = 1
Verdict = Literal["ok", "suspect", "client-bound"]
STATISTICS: Final = ("n", "mean", "stddev", "min", "p50", "p90", "p95", "p99", "p99_9", "max")


def _from_json(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        raise ValueError("not a number")
    return math.inf if value == "inf" else value


def _to_json(value: float | None) -> float | str | None:
    return "inf" if value == math.inf else value


Figure = Annotated[float, Field(allow_inf_nan=False)] | None
Count = Annotated[int, Field(ge=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]
OrInfinite = Annotated[float | None, BeforeValidator(_from_json), PlainSerializer(_to_json)]


class Part(BaseModel):
    """A part of load.json."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Quantiles(Part):
    """One distribution: None is what `n` can't support or what was not measured."""

    n: Count = 0
    mean: Figure = None
    stddev: Figure = None
    min: Figure = None
    p50: Figure = None
    p90: Figure = None
    p95: Figure = None
    p99: Figure = None
    p99_9: Figure = None
    max: Figure = None


class FailureQuantiles(Part):
    """The same with every failure counted as +∞."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=True)

    n: Count = 0
    mean: OrInfinite = None
    stddev: OrInfinite = None
    min: OrInfinite = None
    p50: OrInfinite = None
    p90: OrInfinite = None
    p95: OrInfinite = None
    p99: OrInfinite = None
    p99_9: OrInfinite = None
    max: OrInfinite = None


class Requests(Part):
    """Where the requests of a level went.

    `sent` = succeeded + failed + throttled + in flight at the end; `offered` = sent + dropped + waiting at the end.
    """

    offered: Count = 0
    admitted: Count = 0
    sent: Count = 0
    succeeded: Count = 0
    failed: Count = 0
    dropped: Count = 0
    in_window: Count = 0
    in_flight_at_end: Count = 0
    waiting_at_end: Count = 0
    """Held back by the user's own limits until the level was cut: never sent."""


class Rates(Part):
    """Per second of the window."""

    offered_per_s: Figure = None
    achieved_per_s: Figure = None
    succeeded_per_s: Figure = None
    input_tokens_per_s: Figure = None
    output_tokens_per_s: Figure = None
    total_tokens_per_s: Figure = None
    chunks_per_s: Figure = None
    goodput_per_s: Figure = None


class Steady(Part):
    """The stretch in which at least 90 % of the peak was in flight."""

    from_s: Number
    to_s: Number
    output_tokens_per_s: Figure = None
    requests_per_s: Figure = None


class Tick(Part):
    """One step of a level's timeline; the counts are those of the step that begins at `t`."""

    t: Number
    in_flight: Count = 0
    sent: Count = 0
    succeeded: Count = 0
    failed: Count = 0
    throttled: Count = 0
    output_tokens: Count = 0
    ttft_p50: Figure = None
    lag_max_s: Figure = None


class Client(Part):
    """Whether the client itself could keep up."""

    verdict: Verdict = "ok"
    reasons: tuple[str, ...] = ()
    lag_p99_s: Figure = None
    lag_max_s: Figure = None
    schedule_delay_p99_s: Figure = None
    schedule_delay_max_s: Figure = None
    cpu_share: Figure = None
    coalesced_share: Figure = None
    """Share of chunks that were read together with another in one wake-up."""


class Gauge(Part):
    """A gauge of the server over a level."""

    mean: Figure = None
    max: Figure = None
    last: Figure = None


Bin = tuple[Number, Count]
"""Upper edge in seconds, how many values up to it from the bin before."""


class Level(Part):
    """One concurrency or rate, run once."""

    label: str
    kind: Literal["closed", "open"]
    value: Number
    repeat: Count = 0
    run: Count = 0
    """Which start of the test ran it. Its requests are the records whose `runner.load` has the same level, repeat and
    run: those of an interrupted try, which was run again, have an earlier one."""
    started_s: Number = 0.0
    duration_s: Number = 0.0
    window_s: tuple[Number, Number] = (0.0, 0.0)
    complete: bool = True
    requests: Requests = Requests()
    errors: dict[str, Count] = {}
    throttled: Count = 0
    """Requests that a 429 ended."""
    throttled_attempts: Count = 0
    """Attempts that a 429 answered, those of requests that succeeded later included."""
    backed_off: Count = 0
    """How often a stream of a closed loop waited before its next request, since its last one had failed at once."""
    backed_off_s: Number = 0.0
    """For how long, all streams together."""
    without_usage: Count = 0
    """Requests that succeeded without a usage of the server's."""
    unjudged: Count | None = None
    """Requests that lack what an SLO is about; None without SLO."""
    rates: Rates = Rates()
    steady: Steady | None = None
    goodput: Figure = None
    metrics: dict[str, Quantiles] = {}
    metrics_with_failures: dict[str, FailureQuantiles] = {}
    histograms: dict[str, tuple[Bin, ...]] = {}
    timeline: tuple[Tick, ...] = ()
    client: Client = Client()
    server_metrics: dict[str, Gauge] | None = None

    def metric(self, name: str) -> Quantiles:
        """The distribution of that name; one of no values where there is none."""
        return self.metrics.get(name, Quantiles())

    @property
    def client_bound(self) -> bool:
        """Whether its figures are the client's and not the server's."""
        return self.client.verdict == "client-bound"

    @property
    def window_length_s(self) -> float:
        """How long the part that counts was."""
        return self.window_s[1] - self.window_s[0]


class Workload(Part):
    """Where the prompts came from; whatever else the source has to say is kept."""

    model_config = ConfigDict(frozen=True, extra="allow")

    source: str = "file"
    describe: str = ""


class Arrival(Part):
    """The arrival process and its parameters."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str = "closed"


class Calibration(Part):
    """What this machine could time honestly, measured before the run."""

    max_chunks_per_s: Figure = None
    max_requests_per_s: Figure = None
    lag_max_s: Figure = None
    cpu_us_per_chunk: Figure = None
    describe: str = ""


class Interval(Part):
    """Mean over repeats with its 95 % interval."""

    mean: Figure = None
    low: Figure = None
    high: Figure = None


class SummaryLevel(Part):
    """A level over all its repeats."""

    label: str
    kind: Literal["closed", "open"]
    value: Number
    repeats: Count
    metrics: dict[str, Interval] = {}
    rates: dict[str, Interval] = {}
    """Of `rates`, and goodput."""


class Tried(Part):
    """One step of a search."""

    value: Number
    goodput: Figure = None
    kept: bool = False
    verdict: Verdict = "ok"


class Search(Part):
    """What `--find-max` found."""

    slo: Any = None
    best: Figure = None
    goal: Figure = None
    """The share of the requests that must keep the objectives."""
    limited_by: str | None = None
    agreed: bool = True
    """Whether the tries agree: more load was never kept where less was missed."""
    reason: str = ""
    tried: tuple[Tried, ...] = ()


class LoadResult(Part):
    """One load test: what load.json holds."""

    schema_: Literal[1] = Field(alias="schema")
    runner: str = ""
    name: str = ""
    started: str = ""
    ended: str | None = None
    complete: bool = False
    endpoint: str = ""
    model: str | None = None
    synthetic: bool = False
    seed: int = 0
    argv: tuple[str, ...] = ()
    host: dict[str, Any] = {}
    versions: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    workload: Workload = Workload()
    arrival: Arrival = Arrival()
    slo: dict[str, Number] | None = None
    calibration: Calibration | None = None
    levels: tuple[Level, ...] = ()
    summary_levels: tuple[SummaryLevel, ...] = ()
    search: Search | None = None


def decode(data: bytes, path: object) -> LoadResult:
    """What load.json at `path` holds.

    Raises:
        UsageError: it isn't one of this schema; the message names the first place that is wrong.
    """
    try:
        return LoadResult.model_validate_json(data, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        more = error.error_count() - 1
        rest = f" (and {more} more)" if more else ""
        wrong = for_line(f"{place}: {first['msg']}{rest}")
        raise UsageError(f"{path} is not a load.json of schema {SCHEMA}: {wrong}") from None


def encode(result: LoadResult) -> bytes:
    """The bytes of load.json: UTF-8, indented, with a newline at the end."""
    return orjson.dumps(
        result.model_dump(mode="json", by_alias=True), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    )
