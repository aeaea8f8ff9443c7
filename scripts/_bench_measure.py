"""One measurement: a load server on its cores, a client process on another, and what the system says the client used.

CPU is user and system time of the whole client process (wait4), with its interpreter's start; what the same client uses
for one job is taken off by whoever compares. Peak RSS is the kernel's too. The parent stays small: a child's peak
includes its parent's at the fork.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import _bench_server

HERE = Path(__file__).parent
RUNNER = "runner"
RUNNER_OPTIONS = ("--rpm", 6_000_000)
"""Told no limit, the runner approaches a server that names none slowly: that start isn't what is measured here."""
TIMEOUT_S = 3600.0


class BenchFailed(Exception):
    """Raised when a client didn't do its jobs: its figures would mean nothing."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a client is asked to do."""

    jobs: int
    streams: int
    chunks: int
    gap_ms: int = 0
    """0: flat out."""


@dataclass(frozen=True, slots=True)
class Used:
    """What one process used."""

    cpu_s: float
    wall_s: float
    peak_mib: float
    server: dict[str, float] = field(default_factory=dict)

    def less(self, start: Used) -> Used:
        """Without what starting costs. The peak stays what it was."""
        return Used(
            max(0.0, self.cpu_s - start.cpu_s), max(0.0, self.wall_s - start.wall_s), self.peak_mib, self.server
        )


def median(runs: Sequence[Used]) -> Used:
    """Field by field; the server's figures are those of the run with the median CPU time."""
    middle = sorted(runs, key=lambda used: used.cpu_s)[(len(runs) - 1) // 2]
    return Used(
        statistics.median(used.cpu_s for used in runs),
        statistics.median(used.wall_s for used in runs),
        statistics.median(used.peak_mib for used in runs),
        middle.server,
    )


@dataclass(frozen=True, slots=True)
class Pinned:
    """Which cores serve and which one measures; empty where nothing can be pinned."""

    server: str = ""
    client: str = ""

    @classmethod
    def of_machine(cls) -> Pinned:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if len(cores) < 2 or shutil.which("taskset") is None:
            return cls()
        return cls(",".join(map(str, cores[:-1][:4])), str(cores[-1]))

    def __str__(self) -> str:
        if not self.client:
            return "nothing is pinned: server and client may share a core"
        return f"server on core {self.server}, client on core {self.client} (taskset)"

    def command(self, cores: str, argv: Iterable[object]) -> list[str]:
        return [*(["taskset", "-c", cores] if cores else []), *map(str, argv)]


class Machine:
    """Where everything runs: cores, a working directory, and the runner's extra options."""

    def __init__(self, work: Path, runner_args: Sequence[str] = (), repeats: int = 3) -> None:
        self.work = work
        self.repeats = repeats
        self.pinned = Pinned.of_machine()
        self.cores = os.cpu_count() or 1
        self._runner_args = runner_args
        self._starts: dict[str, Used] = {}

    def measure(self, client: str, load: Load) -> Used:
        """One run of one client; its start is in it."""
        jobs, out = self.jobs_file(load.jobs), self.work / "out"
        shutil.rmtree(out, ignore_errors=True)
        with self.serving(load) as (port, stats):
            command = self.command(client, jobs, out, f"http://127.0.0.1:{port}/v1", load.streams)
            used = self.run(command)
        if client != "bare":
            check_records(out / "results.jsonl", load.jobs)
        return Used(used.cpu_s, used.wall_s, used.peak_mib, stats)

    def start_of(self, client: str) -> Used:
        """What one job of one chunk uses: the interpreter, the imports, the end. Measured once a bench."""
        if client not in self._starts:
            self._starts[client] = median([self.measure(client, Load(1, 1, 1)) for _ in range(self.repeats)])
        return self._starts[client]

    def command(self, client: str, jobs: Path, out: Path, url: str, streams: int) -> list[object]:
        if client == RUNNER:
            options = ("--base-url", url, "--model", _bench_server.MODEL, "--concurrency", streams, "--out", out)
            return [sys.executable, "-m", "runner", jobs, *RUNNER_OPTIONS, *options, *self._runner_args]
        options = ("--base-url", url, "--concurrency", streams, "--out", out)
        return [sys.executable, HERE / "_bench_clients.py", client, jobs, *options]

    def run(self, argv: Iterable[object]) -> Used:
        """Runs a client to its end."""
        said = self.work / "said"
        with said.open("wb") as stderr:
            began = time.monotonic()
            process = subprocess.Popen(
                self.pinned.command(self.pinned.client, argv),
                cwd=self.work,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
            )
            timer = threading.Timer(TIMEOUT_S, process.kill)
            timer.start()
            _, status, used = os.wait4(process.pid, 0)
            wall_s = time.monotonic() - began
            timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise BenchFailed(f"exit {process.returncode}: {said.read_text(errors='replace')[-2000:]}")
        return Used(used.ru_utime + used.ru_stime, wall_s, used.ru_maxrss / 1024)

    @contextmanager
    def serving(self, load: Load) -> Iterator[tuple[int, dict[str, float]]]:
        """Server processes on one port; their figures are there afterwards, CPU added up, the worst lateness."""
        held = _bench_server.listen(0)
        port = held.getsockname()[1]
        argv = [sys.executable, HERE / "_bench_server.py", "--port", port]
        argv += ["--gap-ms", load.gap_ms, "--chunks", load.chunks]
        command = self.pinned.command(self.pinned.server, argv)
        count = len(self.pinned.server.split(","))
        servers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
        stats: dict[str, float] = {}
        try:
            for server in servers:
                assert server.stdout
                if server.stdout.readline() != "ready\n":
                    raise BenchFailed("the load server did not start")
            yield port, stats
        finally:
            held.close()
            stats.update(merged([end(server) for server in servers]))

    def jobs_file(self, jobs: int) -> Path:
        path = self.work / f"jobs-{jobs}.jsonl"
        if not path.exists():
            with path.open("wb") as file:
                file.writelines(
                    b'{"custom_id":"job-%07d","prompt":"Once upon a time: what follows?"}\n' % i for i in range(jobs)
                )
        return path


def end(server: subprocess.Popen[str]) -> dict[str, float]:
    server.send_signal(signal.SIGTERM)
    stdout, _ = server.communicate(timeout=30)
    report: dict[str, float] = json.loads(stdout) if stdout.strip() else {}
    return report


def merged(reports: Sequence[dict[str, float]]) -> dict[str, float]:
    names = {name for report in reports for name in report}
    of = {name: [report.get(name, 0.0) for report in reports] for name in names}
    return {name: max(values) if name.endswith("_ms") else sum(values) for name, values in sorted(of.items())}


def check_records(path: Path, jobs: int) -> None:
    with path.open("rb") as lines:
        found = sum(1 for _ in lines)
    if found != jobs:
        raise BenchFailed(f"{found} records of {jobs} jobs")


def environment() -> dict[str, str]:
    """Ours, without what would change where a client sends or how."""
    dropped = ("OPENAI_", "RUNNER_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(dropped)}
    return {**kept, "PYTHONPATH": str(HERE.parent), "OPENAI_API_KEY": "bench"}
