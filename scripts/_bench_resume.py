"""What it costs to find out that everything is done: a run over a folder that holds every record already.

The folder is a real one of one finished job, whose record is then repeated under the ids of all the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from _bench_measure import RUNNER, BenchFailed, Load, Machine, Used

RECORDS = "results.jsonl"


@dataclass(frozen=True, slots=True)
class Resumed:
    """A run that had nothing left to do."""

    records: int
    used: Used
    """The whole process, its start included."""

    def line(self) -> str:
        used = self.used
        return (
            f"{self.records:,} finished records: {used.wall_s:.1f} s, {used.cpu_s:.1f} s CPU, "
            f"peak {used.peak_mib:.0f} MiB"
        )


def resume(machine: Machine, jobs: int) -> Resumed:
    path, out = machine.jobs_file(jobs), machine.work / "resumed"
    fill(machine, path, out, jobs)
    # Nothing is sent, so nobody has to listen there.
    return Resumed(jobs, machine.run(machine.command(RUNNER, path, out, "http://127.0.0.1:9/v1", 64)))


def fill(machine: Machine, path: Path, out: Path, jobs: int) -> None:
    with machine.serving(Load(1, 1, 1)) as (port, _):
        machine.run([*machine.command(RUNNER, path, out, f"http://127.0.0.1:{port}/v1", 1), "--limit", 1])
    first = (out / RECORDS).read_bytes()
    if first.count(b"\n") != 1 or first.count(b"job-0000000") != 2:
        raise BenchFailed(f"not one record of the first job: {first[:500]!r}")
    with (out / RECORDS).open("wb") as file:
        file.writelines(repeated(first, jobs))


def repeated(record: bytes, jobs: int) -> Iterator[bytes]:
    return (record.replace(b"job-0000000", b"job-%07d" % number) for number in range(jobs))
