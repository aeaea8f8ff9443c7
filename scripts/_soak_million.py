"""Memory over very many jobs: what the runner holds must not grow with what it has done.

The real process against a simulator that answers one token at once. Its peak (VmHWM of /proc/PID/status, so Linux only)
is read when 10,000 records are there and until it ends; between them it may grow by GROWTH_MIB: the table of ids
is 16 MB for a million jobs, and half of that more for a moment when it grows.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from anyio.from_thread import start_blocking_portal

from runner.simulator import Profile, simulator_process
from tests.process import start, write_jobs

BASE = 10_000
GROWTH_MIB = 64
INSTANT = Profile(ttft_s=0.0, tokens_per_s=float("inf"), jitter=0.0, output_tokens=1)
POLL_S = 0.05
OPTIONS = ("--concurrency", 64, "--progress", "none", "--model", "synthetic-1")
"""A fixed concurrency: memory may grow with that."""


def soak(jobs: int) -> int:
    if jobs <= BASE:
        print(f"more than {BASE:,} jobs are needed: the peak at {BASE:,} is what the end is measured by")
        return 2
    root = Path(tempfile.mkdtemp(prefix="soak-million-"))
    path = write_jobs(root / "jobs.jsonl", lines(jobs))
    began = time.monotonic()
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(simulator_process(INSTANT)) as simulator:
        process = start(path, "--base-url", simulator.base_url, *OPTIONS, cwd=root, stderr=(root / "said").open("wb"))
        peaks = watch(process, root / "results" / "jobs" / "results.jsonl", jobs)
    took_s = time.monotonic() - began
    written = sum(block.count(b"\n") for block in blocks(root / "results" / "jobs" / "results.jsonl"))
    said = (root / "said").read_text()[-500:]
    shutil.rmtree(root)
    return verdict(jobs, written, process.returncode, peaks, took_s, said)


def verdict(jobs: int, written: int, code: int, peaks: dict[int, float], took_s: float, said: str) -> int:
    at_base, at_end = peaks.get(BASE, 0.0), peaks[jobs]
    whole = code == 0 and written == jobs
    good = whole and at_end - at_base <= GROWTH_MIB
    print(
        f"{'OK' if good else 'VIOLATED'}: {written:,} records of {jobs:,} jobs in {took_s:.0f} s, exit {code}; "
        f"peak RSS {at_base:.0f} MiB at {BASE:,}, {at_end:.0f} at the end: {at_end - at_base:+.0f} of {GROWTH_MIB} MiB"
    )
    if not whole:
        print(f"it said: {said}")
    return 0 if good else 1


def lines(jobs: int) -> Iterator[bytes]:
    return (b'{"custom_id":"job-%d","prompt":"question %d"}' % (i, i) for i in range(jobs))


def watch(process: subprocess.Popen[bytes], results: Path, jobs: int) -> dict[int, float]:
    """Peaks in MiB, by the number of records there were: at 10,000, at every tenth, and at the end (`jobs`)."""
    peaks: dict[int, float] = {}
    wanted = sorted({BASE, *(jobs * tenth // 10 for tenth in range(1, 10))})
    counted = count = 0
    last = 0.0  # not wait4's ru_maxrss: that begins with what this process held when it forked
    while process.poll() is None:
        last = max(last, peak_mib(process.pid))
        for block in blocks(results, counted):
            counted += len(block)
            count += block.count(b"\n")
        while wanted and count >= wanted[0]:
            number = wanted.pop(0)
            peaks[number] = last
            print(f"{number:>9,} records: {last:.0f} MiB", flush=True)
        time.sleep(POLL_S)
    return peaks | {jobs: last}


def peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) / 1024


def blocks(path: Path, offset: int = 0) -> Iterator[bytes]:
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        while block := file.read(1 << 20):
            yield block
