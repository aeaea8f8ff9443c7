"""`--server-metrics URL`: the server's own gauges, recorded beside the load test.

A poll a second: fetch, pick the known gauges out of the Prometheus text, add them to a recorder. It is a bystander: a
poll that fails or comes too late leaves a gap, a server without metrics costs one warning, and nothing here ends a run.

Only what is wanted is parsed: one regular expression over the whole body, since vLLM's is hundreds of kilobytes and the
loop has streams to time. Prometheus' text format 0.0.4: `name{label="value",…} number [timestamp]`. Series of one name
are summed (data-parallel engines), a share is averaged, and ranks of one tensor-parallel group, which all report the
same requests, count once. Names: vLLM's metrics page, SGLang's production metrics, TGI's metrics reference.

Accepted: a gauge between two polls is not seen; URL and query may hold a token, so that neither is ever logged here.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import anyio

if TYPE_CHECKING:
    import httpx2

INTERVAL_S: Final = 1.0
TIMEOUT_S: Final = 2.0
"""Of one poll; a server that is busy answers late, and the next poll is due."""
MAX_BODY_BYTES: Final = 8 * 2**20
"""vLLM's page is below 1 MB."""
MAX_FAILURES: Final = 3
"""So many polls in a row that bring nothing, before anything came, end the polling."""

GAUGES: Final = (
    *("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:num_requests_swapped"),
    *("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    *("sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:token_usage", "sglang:cache_hit_rate"),
    *("sglang:gen_throughput",),
    *("tgi_batch_current_size", "tgi_queue_size"),
)
"""vLLM up to 0.10 names its cache's use gpu_cache_usage_perc, later kv_cache_usage_perc."""
_SHARES: Final = ("usage", "usage_perc", "rate")
_SAMPLE: Final = re.compile(
    rb"^(" + b"|".join(re.escape(name.encode()) for name in GAUGES) + rb")"
    rb'(?:\{((?:[^"}\n]|"(?:[^"\\\n]|\\.)*")*)\})?[ \t]+(\S+)',
    re.MULTILINE,
)
_LABEL: Final = re.compile(rb'([A-Za-z_]\w*)[ \t]*=[ \t]*"((?:[^"\\\n]|\\.)*)"')

Fetch = Callable[[], Awaitable[bytes]]


class ScrapeError(Exception):
    """Raised by a fetch when there are no metrics to be had; its message holds no URL."""


def parse(body: bytes) -> dict[str, float]:
    """The known gauges in a Prometheus text; whatever else it holds, and whatever is malformed, is passed over."""
    series: dict[str, dict[bytes, float]] = defaultdict(dict)
    for name, labels, number in _SAMPLE.findall(body):
        try:
            value = float(number)
        except ValueError:
            continue
        if math.isfinite(value):
            series[name.decode()][_identity(labels)] = value
    return {name: _combined(name, list(values.values())) for name, values in series.items()}


def _identity(labels: bytes) -> bytes:
    """A series' labels in order, but for the rank in its tensor-parallel group."""
    return b",".join(sorted(key + b"=" + value for key, value in _LABEL.findall(labels) if key != b"tp_rank"))


def _combined(name: str, values: list[float]) -> float:
    return math.fsum(values) / (len(values) if name.endswith(_SHARES) else 1)


class GaugeRecord:
    """One gauge: mean, largest and last of all polls."""

    __slots__ = ("_count", "_total", "last", "max")

    def __init__(self) -> None:
        self.max = -math.inf
        self.last = math.nan
        self._count = 0
        self._total = 0.0

    def add(self, value: float) -> None:
        """Adds one poll's value."""
        self._count += 1
        self._total += value
        self.max, self.last = max(self.max, value), value

    def summary(self) -> dict[str, float]:
        """What load.json holds: `{"mean", "max", "last"}`."""
        return {"mean": self._total / self._count, "max": self.max, "last": self.last}


class Recorder:
    """All gauges of one level; a level begins with a new one."""

    __slots__ = ("gauges",)

    def __init__(self) -> None:
        self.gauges: dict[str, GaugeRecord] = {}

    def add(self, values: dict[str, float]) -> None:
        """Adds one poll."""
        for name, value in values.items():
            self.gauges.setdefault(name, GaugeRecord()).add(value)

    def summary(self) -> dict[str, dict[str, float]] | None:
        """`server_metrics` of load.json; None where there was nothing."""
        return {name: gauge.summary() for name, gauge in sorted(self.gauges.items())} or None


async def poll(
    fetch: Fetch,
    recorder: Callable[[], Recorder],
    warn: Callable[[str], None],
    *,
    interval_s: float = INTERVAL_S,
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Polls until it is cancelled, or gives up with one warning when nothing comes from the start.

    `recorder` says where values go now; it is asked after each answer, so that a level may change while a poll is under
    way.
    """
    due, failures, came, warned = anyio.current_time(), 0, False, False
    while True:
        values, problem = await _one(fetch, timeout_s)
        if values:
            recorder().add(values)
            failures, came = 0, True
        else:
            failures += 1
            if not warned:
                warn(f"no server metrics: {problem}")
                warned = True
            if failures >= MAX_FAILURES and not came:
                return
        due = max(due + interval_s, anyio.current_time())  # a late poll is not made up for
        await anyio.sleep_until(due)


async def _one(fetch: Fetch, timeout_s: float) -> tuple[dict[str, float], str]:
    try:
        with anyio.fail_after(timeout_s):
            values = parse(await fetch())
    except TimeoutError:
        return {}, f"no answer within {timeout_s:g} s"
    except ScrapeError as error:
        return {}, str(error)
    return values, "none of the known gauges (vLLM, SGLang, TGI) is in the answer"


def fetcher(client: httpx2.AsyncClient, url: str) -> Fetch:
    """Fetches `url` with a client of its own: its waits must not stand in the way of the streams under test."""
    import httpx2

    async def fetch() -> bytes:
        try:
            async with client.stream("GET", url, headers={"Accept": "text/plain"}) as response:
                if response.status_code != 200:
                    raise ScrapeError(f"the server answered {response.status_code}")
                body = bytearray()
                async for part in response.aiter_bytes():
                    body += part
                    if len(body) > MAX_BODY_BYTES:
                        raise ScrapeError(f"the answer is larger than {MAX_BODY_BYTES // 2**20} MiB")
                return bytes(body)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise ScrapeError(type(error).__name__) from None

    return fetch
