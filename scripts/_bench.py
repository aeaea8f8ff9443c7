"""The command line of `scripts/bench`: cells, repetitions, the tables, and the JSON beside them.

A cell is one load and the clients that do it, in one run on one machine: only ratios within a run travel. Every figure
has what a single job costs taken off; those that ratios are made of are medians (the slow loops run once).

Accepted: a server in Python. Pinned to a core of its own it serves some 60,000 chunks a second; its lateness is
printed, and where it was late it is marked, since then the client was not what was measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from _bench_measure import RUNNER, BenchFailed, Load, Machine, Used, median
from _bench_resume import resume

ROOT = Path(__file__).parents[1]
CLIENTS = (RUNNER, "bare", "sdk-aiohttp", "sdk")
QUICK = (RUNNER, "bare")
"""The clients that are quick enough to be measured more than once."""
LATE_MS = 10
"""A server whose p99 is later than this was the bottleneck, or lost its core to somebody else."""
BEHIND_MS = 250
"""A client that read the end of an answer (p99) so long after it was written could not keep up…"""
HELD = 0.9
"""…nor could one that never had so many of its streams open at once."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One comparison. `full` is its load with --full."""

    name: str
    title: str
    loads: tuple[Load, ...]
    full: tuple[Load, ...] = ()
    clients: tuple[str, ...] = (RUNNER,)
    repeated: bool = False
    """Whether a ratio is made of it: then the quick clients run `--repeats` times."""


CELLS = (
    Cell(
        "paced",
        "500 streams, a chunk every 20 ms",
        (Load(500, 500, 100, 20),),
        (Load(500, 500, 500, 20),),
        CLIENTS,
        repeated=True,
    ),
    Cell("one-chunk", "answers of one chunk", (Load(5_000, 64, 1),), (Load(10_000, 64, 1),), CLIENTS, repeated=True),
    Cell("many", "a chunk every 100 ms", (Load(5_000, 5_000, 50, 100),), (Load(5_000, 5_000, 300, 100),), QUICK),
    Cell(
        "sustained",
        "more and more streams, a chunk every 20 ms",
        tuple(Load(n, n, 150, 20) for n in (250, 500, 1_000)),
        tuple(Load(n, n, 500, 20) for n in (250, 500, 750, 1_000, 1_250, 1_500)),
        QUICK,
    ),
    Cell(
        "streams",
        "growth with streams, a chunk every 100 ms",
        tuple(Load(n, n, 30, 100) for n in (10, 100, 1_000)),
        tuple(Load(n, n, 100, 100) for n in (10, 100, 1_000, 10_000)),
    ),
    Cell(
        "length",
        "growth with the answer's length, flat out",
        tuple(Load(100_000 // n, 10, n) for n in (100, 1_000, 10_000)),
        tuple(Load(1_000_000 // n, 10, n) for n in (10, 100, 1_000, 10_000, 100_000)),
    ),
    Cell(
        "jobs",
        "growth with jobs, answers of one chunk",
        (Load(1_000, 64, 1), Load(4_000, 64, 1)),
        tuple(Load(n, 64, 1) for n in (1_000, 10_000, 100_000, 1_000_000)),
    ),
    Cell(
        "idle",
        "memory of streams that wait",
        (Load(10, 10, 2, 3_000), Load(2_000, 2_000, 2, 5_000)),
        (Load(10, 10, 2, 3_000), Load(2_000, 2_000, 2, 5_000), Load(8_000, 8_000, 2, 20_000)),
        QUICK,
    ),
)
RESUME = "resume"
NAMES = (*(cell.name for cell in CELLS), RESUME)


@dataclass(frozen=True, slots=True)
class Row:
    """One client's figures for one load."""

    cell: str
    client: str
    load: Load
    used: Used
    """Its start taken off."""

    @property
    def us_per_request(self) -> float:
        return self.used.cpu_s / self.load.jobs * 1e6

    @property
    def us_per_chunk(self) -> float:
        return self.us_per_request / self.load.chunks

    @property
    def chunks_per_s(self) -> float | None:
        """None where the start, which waits for others on a busy machine, took longer than all of it."""
        return self.load.jobs * self.load.chunks / self.used.wall_s if self.used.wall_s > 0 else None

    @property
    def paced(self) -> bool:
        return self.load.gap_ms > 0

    @property
    def behind_ms(self) -> float:
        """How long after the last chunk was written the client had read it, p99."""
        return self.used.server.get("behind_p99_ms", 0.0)

    @property
    def held(self) -> int:
        """Connections that were open at the same time."""
        return int(self.used.server.get("most_open", 0))

    @property
    def keeps_up(self) -> bool:
        return self.paced and self.behind_ms <= BEHIND_MS and self.held >= HELD * self.load.streams

    @property
    def server_late_ms(self) -> float:
        return self.used.server.get("late_p99_ms", 0.0)

    def as_json(self) -> dict[str, Any]:
        """The parts, and what is made of them."""
        made = ("us_per_chunk", "us_per_request", "chunks_per_s", "behind_ms", "keeps_up")
        return asdict(self) | {name: getattr(self, name) for name in made}

    def kib_per_stream(self, least: Row) -> float | None:
        """Growth of the peak since the row with the fewest streams."""
        more = self.load.streams - least.load.streams
        return (self.used.peak_mib - least.used.peak_mib) * 1024 / more if more > 0 else None


def main() -> int:
    options = parser().parse_args()
    cells = [cell for cell in CELLS if not options.cell or cell.name in options.cell]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="runner-bench-") as work:
        machine = Machine(Path(work), shlex.split(options.runner_args), options.repeats)
        described = describe(machine, options)
        print(heading(described), flush=True)
        rows: list[Row] = []
        try:
            measure(machine, cells, options, rows)
            described["resume"] = resumed(machine, options)
        except BenchFailed as error:
            described["failed"] = str(error)
    found = verdicts(rows)
    if found:
        print("\n### ratios\n\n" + "\n".join(found))
    described["took_s"] = round(time.monotonic() - began, 1)
    path = written(described, rows)
    print(f"\n{described['took_s']:.0f} s; {path.relative_to(ROOT)}")
    if "failed" in described:
        print(f"bench failed: {described['failed']}", file=sys.stderr)
    return 1 if "failed" in described else 0


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    result.add_argument("--full", action="store_true", help="long loads: an hour or two")
    result.add_argument("--cell", action="append", choices=NAMES, help="only this one; may be given again")
    result.add_argument("--client", action="append", choices=CLIENTS, help="only this one; may be given again")
    result.add_argument("--repeats", type=int, default=3, help="of what ratios are made of (default %(default)s)")
    result.add_argument("--runner-args", default="", metavar="'…'", help="more options for `python -m runner`")
    return result


def measure(machine: Machine, cells: Sequence[Cell], options: argparse.Namespace, rows: list[Row]) -> None:
    """Adds a row a client and load, and prints each as soon as it is there."""
    for cell in cells:
        print(f"\n### {cell.name}: {cell.title}\n\n{HEAD}", flush=True)
        for row in rows_of(machine, cell, options):
            rows.append(row)
            least = next(first for first in rows if (first.cell, first.client) == (row.cell, row.client))
            print(table_line(row, least), flush=True)


def resumed(machine: Machine, options: argparse.Namespace) -> dict[str, Any] | None:
    if (options.cell and RESUME not in options.cell) or (options.client and RUNNER not in options.client):
        return None
    found = resume(machine, 1_000_000 if options.full else 100_000)
    print(f"\n### {RESUME}: a run over a folder in which everything is done\n\n{found.line()}", flush=True)
    return asdict(found)


def rows_of(machine: Machine, cell: Cell, options: argparse.Namespace) -> Iterator[Row]:
    for load in cell.full if options.full else cell.loads:
        for client in cell.clients:
            if not options.client or client in options.client:
                yield row_of(machine, cell, client, load)


def row_of(machine: Machine, cell: Cell, client: str, load: Load) -> Row:
    start = machine.start_of(client)
    repeats = machine.repeats if cell.repeated and client in QUICK else 1
    return Row(cell.name, client, load, median([machine.measure(client, load) for _ in range(repeats)]).less(start))


HEAD = (
    "| client | jobs | streams | held | chunks | gap ms | CPU µs/chunk | CPU µs/request | chunks/s | behind ms "
    "| peak MiB | KiB/stream | server late ms |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def table_line(row: Row, least: Row) -> str:
    load, each = row.load, row.kib_per_stream(least)
    cells = [
        row.client,
        f"{load.jobs:,}",
        f"{load.streams:,}",
        f"{row.held:,}",
        f"{load.chunks:,}",
        load.gap_ms or "flat out",
    ]
    cells += [f"{row.us_per_chunk:,.1f}", f"{row.us_per_request:,.0f}"]
    cells += ["" if row.chunks_per_s is None else f"{row.chunks_per_s:,.0f}"]
    cells += [f"{row.behind_ms:,.0f}{'' if row.keeps_up else ' ✗'}" if row.paced else ""]
    cells += [f"{row.used.peak_mib:.0f}", "" if each is None else f"{each:.0f}"]
    cells += [f"{row.server_late_ms:.0f}{' (!)' if row.server_late_ms > LATE_MS else ''}"]
    return f"| {' | '.join(map(str, cells))} |"


def verdicts(rows: Sequence[Row]) -> list[str]:
    """The runner's cost beside each other client's, where both did the same."""
    found: list[str] = []
    for cell, of in (("paced", per_chunk), ("one-chunk", per_request)):
        costs = {row.client: cost for row in rows if row.cell == cell and (cost := of(row))}  # 0: too short to measure
        ours = costs.get(RUNNER)
        if ours:
            found += [f"- {cell}: {ratio(ours, cost)} {client}" for client, cost in costs.items() if client != RUNNER]
    best = [row for row in rows if row.cell == "sustained" and row.keeps_up]
    for client in QUICK:
        most = max((row.load.streams * 1000 // row.load.gap_ms for row in best if row.client == client), default=None)
        if most is not None:
            found.append(f"- sustained by {client}: {most:,} chunks/s, the most of those tried")
    return found


def ratio(ours: float, other: float) -> str:
    if ours <= other:
        return f"{other / ours:.1f} × less CPU than"
    return f"{ours / other:.1f} × the CPU of"


def per_chunk(row: Row) -> float:
    return row.us_per_chunk


def per_request(row: Row) -> float:
    return row.us_per_request


def describe(machine: Machine, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "command": shlex.join(["scripts/bench", *sys.argv[1:]]),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": f"{cpu_model()}, {machine.cores} cores, {platform.system()} {platform.release()}",
        "pinned": str(machine.pinned),
        "versions": {"python": platform.python_version()} | versions(),
        "repeats": options.repeats,
    }


def versions() -> dict[str, str]:
    wanted = ("openai", "httpx2", "aiohttp", "anyio", "orjson", "uvloop", "httptools")
    found = {dist.name.lower(): dist.version for dist in metadata.distributions()}
    return {name: found.get(name, "not installed") for name in wanted}


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def heading(described: dict[str, Any]) -> str:
    named = ", ".join(f"{name} {version}" for name, version in described["versions"].items())
    return f"`{described['command']}`: {described['machine']}; {described['pinned']}; {named}"


def written(described: dict[str, Any], rows: Sequence[Row]) -> Path:
    folder = ROOT / "results" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{described['time'].replace(':', '')}.json"
    whole = described | {"rows": [row.as_json() for row in rows]}
    path.write_text(json.dumps(whole, indent=2) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
