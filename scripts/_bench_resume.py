"""What it costs to find out that everything is done: a run over a folder that holds every record already.

The records are made up, of the size and with the fields of real ones: latencies that differ, usage, gaps, a retry
in every tenth. The manifest is that of a run over the same jobs file that was killed before its first record.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random

import anyio
import orjson
from _bench_measure import RUNNER, Machine, Used

from runner import manifest
from runner.folder import held, open_folder
from runner.jobs import Job
from runner.lines import Line
from runner.parsing import JobParser
from runner.plan import Plan
from runner.settings import Settings

RECORDS = "results.jsonl"
SEED = 5
ENDPOINT = "http://127.0.0.1:9/v1"
"""Nothing is sent, so nobody has to listen there."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """A run that had nothing left to do."""

    records: int
    record_bytes: float
    used: Used
    """The whole process, its start included."""

    def line(self) -> str:
        used = self.used
        return (
            f"{self.records:,} finished records of {self.record_bytes:.0f} bytes: {used.wall_s:.1f} s, "
            f"{used.cpu_s:.1f} s CPU, peak {used.peak_mib:.0f} MiB"
        )


def resume(machine: Machine, jobs: int) -> Resumed:
    path, out = machine.jobs_file(jobs), machine.work / "resumed"
    shutil.rmtree(out, ignore_errors=True)
    anyio.run(begin, Plan.of([str(path)], out=str(out), settings=Settings()))
    command = machine.command(RUNNER, path, out, ENDPOINT, 64)
    with path.open("rb") as lines, (out / RECORDS).open("wb") as file:
        file.writelines(records(lines))
    return Resumed(jobs, (out / RECORDS).stat().st_size / jobs, machine.run(command))


async def begin(plan: Plan) -> None:
    """A run that was killed before its first record."""
    with held(plan) as fs:
        folder = await open_folder(fs, plan)
        folder.write_manifest(manifest.new(folder.described(plan), plan.settings, {"bench": ENDPOINT}, SEED, False))


def records(lines: Iterable[bytes]) -> Iterator[bytes]:
    rng, parser = Random(SEED), JobParser()
    for number, line in enumerate(lines):
        job = parser.parse(Line(number + 1, line, len(line)))
        assert isinstance(job, Job)
        yield orjson.dumps(record(rng, number, job)) + b"\n"


def record(rng: Random, number: int, job: Job) -> dict[str, object]:
    return {
        "id": job.id,
        "custom_id": job.id,
        "response": {"status_code": 200, "request_id": f"req_{number:024x}", "body": body(number)},
        "error": None,
        "runner": how_it_went(rng, job, retried=number % 10 == 3),
    }


def body(number: int) -> dict[str, object]:
    message = {"role": "assistant", "content": "It rained."}
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": "bench-1",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }


def how_it_went(rng: Random, job: Job, *, retried: bool) -> dict[str, object]:
    ttft_s, gap_s, tokens = rng.lognormvariate(-1, 0.5), rng.lognormvariate(-4, 0.5), rng.randrange(5, 80)
    usage = {"input_tokens": 12, "cached_tokens": 0, "output_tokens": tokens, "reasoning_tokens": 0}
    retry = {"attempt": 1, "reason": "rate_limited", "message": "slow down", "status": 429, "endpoint": ENDPOINT}
    return {
        "attempts": 1 + retried,
        "line": job.line,
        "digest": f"{job.digest:016x}",
        "endpoint": ENDPOINT,
        "model": "bench-1",
        "started": "2026-01-02T03:04:05.678901+00:00",
        "queue_s": round(rng.random(), 6),
        "limiter_wait_s": round(rng.random() / 100, 6),
        "ttft_s": round(ttft_s, 6),
        "duration_s": round(ttft_s + tokens * gap_s, 6),
        "chunks": tokens,
        "icl": {"p50": round(gap_s, 6), "p99": round(2 * gap_s, 6), "max": round(3 * gap_s, 6)},
        "usage": usage,
        "cost": 0.000123,
        "finish": "stop",
        "retries": [retry] if retried else [],
    }
