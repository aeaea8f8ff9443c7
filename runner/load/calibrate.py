"""Calibration: what this machine can time honestly, measured before anything is sent to the server under test.

The load test's own engine, settings and transport run against the null server for a few seconds:

1. STREAMS paced streams of 50 chunks a second: the CPU that a chunk takes, its share of its request included, and how
   late the loop wakes meanwhile. A flat-out server would understate a chunk's cost up to eightfold, since many come
   with one read then.
2. paced requests of one chunk: the CPU that a request takes.

The ceilings are what half a core can do, the bound up to which a level's verdict is `ok` (see `verdict`). They are of
one process; several have as many times that, as long as there are cores for them and for the server.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio

from runner.errors import RunnerError
from runner.load.crew import Alone, Measured
from runner.load.draws import Constant
from runner.load.engine import Engine
from runner.load.figures import ms
from runner.load.nullserver import GAP_MS
from runner.load.results import Calibration
from runner.load.sender import Workload
from runner.load.spec import LevelSpec
from runner.load.synthetic import Synthetic
from runner.load.verdict import CPU_SHARE
from runner.redact import Redactor
from runner.settings import Settings
from runner.target import Target

STREAMS: Final = 100
"""Enough that wake-ups are shared as they are under load: fifty would overstate a chunk's cost by a quarter."""
PACED_S: Final = 2.0
REQUESTS_PER_S: Final = 100
REQUESTS_S: Final = 1.0
_START_S: Final = 30.0
_PROMPT_TOKENS: Final = 64


class _Cost(NamedTuple):
    """What one process spent."""

    cpu_s: float
    chunks: int
    requests: int
    lag_max_s: float | None


async def calibrate(settings: Settings, redactor: Redactor, processes: int = 1) -> Calibration:
    """Measures this machine.

    Raises:
        RunnerError: the null server didn't start.
    """
    settings = _plain(settings)
    async with _null_server() as origin:
        paced = await _cost(settings, redactor, f"{origin}/paced/v1", _level("closed", STREAMS, PACED_S))
        once = await _cost(settings, redactor, f"{origin}/once/v1", _level("open", REQUESTS_PER_S, REQUESTS_S))
    if not paced.chunks or not once.requests:
        raise RunnerError("the null server for the calibration did not answer; --no-calibrate does without")
    per_chunk_s, per_request_s = paced.cpu_s / paced.chunks, once.cpu_s / once.requests
    chunks, requests = CPU_SHARE.ok / per_chunk_s, CPU_SHARE.ok / per_request_s
    return Calibration(
        max_chunks_per_s=chunks,
        max_requests_per_s=requests,
        lag_max_s=paced.lag_max_s,
        cpu_us_per_chunk=per_chunk_s * 1e6,
        describe=_described(chunks, requests, paced.lag_max_s, processes),
    )


def _described(chunks: float, requests: float, lag_s: float | None, processes: int) -> str:
    each = " in each of the processes" if processes > 1 else ""
    streams = chunks * GAP_MS / 1000
    return (
        f"this machine can honestly time about {chunks:,.0f} chunks/s ({streams:,.0f} streams of "
        f"{1000 // GAP_MS} chunks/s) or {requests:,.0f} requests/s{each}; its loop woke {ms(lag_s)} ms late at most"
    )


def _plain(settings: Settings) -> Settings:
    """Without what is meant for the server under test."""
    bounds: dict[str, Any] = {"rpm": None, "tpm": None, "limits": {}, "endpoints": (), "max_cost": None, "prices": {}}
    return settings.model_copy(update={**bounds, "max_attempts": 1, "deltas": False, "model": "null"})


def _level(kind: Any, value: float, seconds: float) -> LevelSpec:
    return LevelSpec(kind, value, "calibration", duration_s=seconds, arrivals="poisson", max_in_flight=1_000)


async def _cost(settings: Settings, redactor: Redactor, base_url: str, spec: LevelSpec) -> _Cost:
    supply = Synthetic(Constant(_PROMPT_TOKENS), Constant(1))
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(settings, [Target(base_url, "null", "null", simulated=True)], Path(folder), redactor)
        async with engine.running():
            measured = await Alone(engine, Workload(supply), None).run(spec)
    return _cost_of(measured)


def _cost_of(measured: Measured) -> _Cost:
    found = measured.statistics
    cpu_s = (found.cpu_share or 0.0) * measured.duration_s
    return _Cost(cpu_s, found.counts["chunks"], found.counts["succeeded"], found.lag.sketch.max)


@asynccontextmanager
async def _null_server() -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "runner.load.nullserver"), stdin=PIPE, stdout=PIPE, start_new_session=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with anyio.move_on_after(_START_S):
            port = await process.stdout.readline()
            if not port.strip().isdigit():
                raise RunnerError("the null server for the calibration did not start; --no-calibrate does without")
            yield f"http://127.0.0.1:{int(port)}"
            return
        raise RunnerError("the null server for the calibration did not start; --no-calibrate does without")
    finally:
        with anyio.CancelScope(shield=True):
            process.stdin.close()
            await process.communicate()
