"""What a level sends: a supply that makes request k, from a jobs file or one of the other sources. Pure.

`job(k)` is a function of k: processes that share a level make each its own requests, a level that is resumed goes on
where it was, and the same seed gives the same requests. `k` counts over the whole load test, never from zero again
for a level: what was sent before may be in a server's cache.

Request k of the job `a` has the id `a#k`: unique, and it tells the job's own. A jobs file is cycled in order, or
sampled with replacement.

Accepted: the jobs that are drawn from are held in memory, hence a large file gives its first ones only; how many were
left out is told. Its prompts come again once all were sent, so that a prefix cache hits from then on: `repeats` says
from which request on that is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol

import msgspec
import orjson

from runner.digests import digest64
from runner.jobs import Api, Job, Rejected
from runner.limits import MIB
from runner.load.draws import uniforms

POOL_JOBS: Final = 100_000
"""More different prompts than any load test sends before its caches are full."""
POOL_BYTES: Final = 256 * MIB
"""…and their lines: parsed jobs take about three times as much."""


class Supply(Protocol):
    """Where requests come from."""

    def job(self, k: int) -> Job:
        """Request k."""

    def describe(self) -> dict[str, Any]:
        """`workload` of load.json: `source`, `describe` and what else there is to say."""


@dataclass(slots=True)
class JobPool:
    """The jobs of a file, as many as the bounds allow."""

    max_jobs: int = POOL_JOBS
    max_bytes: int = POOL_BYTES
    jobs: list[Job] = field(default_factory=list)
    size_bytes: int = 0
    rejected: int = 0
    """Lines that can't be jobs."""
    left_out: int = 0
    """Jobs beyond the bounds."""

    @property
    def full(self) -> bool:
        """Whether all that follow will be left out."""
        return len(self.jobs) >= self.max_jobs or self.size_bytes >= self.max_bytes

    def add(self, item: Job | Rejected) -> None:
        """Takes what a line of the file is."""
        if isinstance(item, Rejected):
            self.rejected += 1
        elif self.full:
            self.left_out += 1
        else:
            self.jobs.append(item)
            self.size_bytes += item.size_bytes


@dataclass(frozen=True, slots=True)
class FromPool:
    """A supply of a pool's jobs. The pool isn't empty."""

    pool: JobPool
    name: str
    """Of the file."""
    order: Literal["cycle", "sample"] = "cycle"
    seed: int = 0
    source: str = "file"

    def job(self, k: int) -> Job:
        """Request k."""
        jobs = self.pool.jobs
        index = k % len(jobs) if self.order == "cycle" else int(uniforms(1, "sample", self.seed, k)[0] * len(jobs))
        return numbered(jobs[index], k)

    @property
    def repeats(self) -> int:
        """From this request on prompts come again, if they are cycled; sampled ones do at any time."""
        return len(self.pool.jobs) if self.order == "cycle" else 0

    def describe(self) -> dict[str, Any]:
        """`workload` of load.json."""
        pool = self.pool
        how = "in order, again and again" if self.order == "cycle" else "drawn by chance"
        left_out = f", {pool.left_out} more left out" if pool.left_out else ""
        rejected = f", lines that can't be jobs: {pool.rejected}" if pool.rejected else ""
        return {
            "source": self.source,
            "describe": f"{self.name}: {len(pool.jobs)} jobs{left_out}{rejected}, {how}",
            "jobs": len(pool.jobs),
            "left_out": pool.left_out,
            "rejected": pool.rejected,
            "order": self.order,
        }


def numbered(job: Job, k: int) -> Job:
    """The same job as request k of a load test."""
    return msgspec.structs.replace(job, id=f"{job.id}#{k}")


# ── Jobs that are made ───────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class OutputLength:
    """How the length of an answer is asked for: by a cap, and made exact where the server can.

    `ignore_eos` and `min_tokens` are what vLLM and its like know. Servers that don't know them may refuse them.
    """

    exact: bool = False
    cap: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The newer name is the only one that some models of the API take, and unknown to many compatible servers."""

    def keys(self, tokens: int | None) -> dict[str, Any]:
        """The keys of a body that ask for so many tokens; None leaves the length to the model."""
        if tokens is None:
            return {}
        return {self.cap: tokens} | ({"min_tokens": tokens, "ignore_eos": True} if self.exact else {})


CAPPED: Final = OutputLength()
"""By `max_tokens` alone."""


def chat_job(name: str, k: int, messages: list[dict[str, str]], output: dict[str, Any]) -> Job:
    """A chat job that stands in no file; its line is its number."""
    body = {"messages": messages, **output}
    data = orjson.dumps(body)
    return Job(name, k + 1, Api.CHAT, body, stream=True, digest=digest64(data), size_bytes=len(data))
