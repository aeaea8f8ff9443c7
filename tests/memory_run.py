"""Whole runs on a machine in memory: real folder, recovery, journal and job source; only the answers are made up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import anyio
import anyio.to_thread
import orjson

from runner import records
from runner.digests import id_key
from runner.files import make_folder
from runner.folder import FILES, Folder, open_folder
from runner.jobs import Job, Rejected
from runner.journal import Journal
from runner.plan import Plan
from runner.recovery import start_afresh
from runner.settings import Settings
from runner.source import JobSource
from runner.testing.memory_files import Crashed, MemoryFiles
from runner.testing.virtual_time import run_virtual

T = TypeVar("T")
OUT = Path("/data/results/jobs")
RESULTS = OUT / "results.jsonl"
SUPERSEDED = OUT / "superseded.jsonl"
TORN = OUT / "torn.jsonl"
DELTAS = OUT / "deltas.jsonl"
SETTINGS = Settings()


def execute(main: Callable[[], Awaitable[T]], *, disk_s: float = 0.0) -> T:
    """In virtual time, and with threads that aren't: what one would do is done in its place, and takes `disk_s`."""

    async def inline(function, *args, **_):
        await anyio.sleep(disk_s)
        result = function(*args)
        await anyio.lowlevel.checkpoint()
        return result

    with mock.patch.object(anyio.to_thread, "run_sync", inline):
        return run_virtual(main)


@dataclass
class World:
    """What outlives machines: the jobs file, and what the program was told."""

    jobs: Path
    failing: frozenset[str] = frozenset()
    """Jobs that fail now."""
    acknowledged: list[bytes] = field(default_factory=list)
    """Records whose writer was told that they are durable."""
    answers: int = 0
    """Answers that were paid for."""

    def write_jobs(self, ids, *, version=0, bad_line=True) -> None:
        lines = [orjson.dumps({"custom_id": name, "prompt": f"{name} {version}"}) for name in ids]
        self.jobs.write_bytes(b"\n".join([*lines, b"{not a job"] if bad_line else lines) + b"\n")

    def plan(self, **kwargs) -> Plan:
        return Plan.of([str(self.jobs)], settings=SETTINGS, out=str(OUT), **kwargs)


@dataclass
class Options:
    plan: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    durability: Any = "batch"
    deltas: bool = True
    workers: int = 3


def run(fs: MemoryFiles, world: World, options: Options | None = None) -> bool:
    """One run; False if the machine crashed."""
    try:
        execute(lambda: run_async(fs, world, options or Options()))
    except Crashed:
        return False
    except BaseExceptionGroup as group:
        if group.subgroup(Crashed) is None:
            raise _first(group) from group
        return False
    return True


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


async def run_async(fs: MemoryFiles, world: World, options: Options) -> None:
    """The steps of `runner.api`, in its order."""
    plan = world.plan(**options.plan)
    make_folder(fs, plan.out)
    if plan.fresh:
        start_afresh(fs, plan.out, "stamp", FILES)
    folder = await open_folder(fs, plan)
    journal = Journal(fs, plan.out, durability=options.durability, deltas=options.deltas)
    folder.write_manifest({"schema": 1, "started": "now", "input": folder.described(plan)})
    await _journalled(journal, folder, world, options)


async def _journalled(journal: Journal, folder: Folder, world: World, options: Options) -> None:
    async with anyio.create_task_group() as services:
        await services.start(journal.run)
        try:
            await _work(journal, folder, world, options)
        finally:
            journal.close()
        with anyio.CancelScope(shield=True):
            await journal.wait_closed()


async def _work(journal: Journal, folder: Folder, world: World, options: Options) -> None:
    todo = [
        item
        async for batch in JobSource([str(world.jobs)]).batches()
        for item in batch
        if id_key(item.id) not in folder.done
    ][: options.limit]
    async with anyio.create_task_group() as staff:
        for first in range(options.workers):
            staff.start_soon(_worker, journal, world, todo[first :: options.workers], first)


async def _worker(journal: Journal, world: World, items: list[Job | Rejected], number: int) -> None:
    for item in items:
        if isinstance(item, Job):
            for seq in range(2):
                await journal.room()
                journal.delta(orjson.dumps({"custom_id": item.id, "attempt": 1, "seq": seq, "delta": "…"}) + b"\n")
                await anyio.sleep(0.06 * (number + 1))
            world.answers += 1
        line = record_of(item, world)
        await journal.finish(line)
        world.acknowledged.append(line)


def record_of(item: Job | Rejected, world: World) -> bytes:
    if isinstance(item, Rejected):
        return records.record_line(records.of_rejected(item))
    return record(item.id, item.digest, ok=item.id not in world.failing, answer=world.answers)


def record(name: str, digest: int = 1, *, ok: bool = True, answer: int = 0) -> bytes:
    """A record as short as they get; `answer` tells two answers to one job apart."""
    return records.record_line(
        {
            "id": name,
            "custom_id": name,
            "response": {"status_code": 200, "body": {"answer": answer}} if ok else None,
            "error": None if ok else {"code": "server_error", "message": "overloaded"},
            "runner": {"attempts": 1, "digest": f"{digest:016x}"},
        }
    )


def lines_of(fs: MemoryFiles, path: Path) -> list[bytes]:
    """Its whole lines, newlines included."""
    data = fs.content(path) or b""
    return [line + b"\n" for line in data.split(b"\n")[:-1]]


def ids_of(lines: list[bytes]) -> list[str]:
    return sorted(orjson.loads(line)["id"] for line in lines)


def whole_records(lines: list[bytes]) -> list[bytes]:
    def is_whole(line: bytes) -> bool:
        try:
            return "runner" in orjson.loads(line)
        except orjson.JSONDecodeError:
            return False

    return [line for line in lines if is_whole(line)]


def check_finished(fs: MemoryFiles, world: World, wanted: list[str]) -> None:
    """Exactly one final record for every job, on this machine's disk too; nothing acknowledged is lost."""
    kept = lines_of(fs, RESULTS)
    assert (fs.content(RESULTS) or b"").endswith(b"\n")
    names = [name for name in ids_of(kept) if not name.startswith("line-")]
    assert names == sorted(wanted)
    assert len(kept) == len(wanted) + 1  # and one for the line that is no job
    aside = set(lines_of(fs, SUPERSEDED))
    for line in world.acknowledged:
        assert line in kept or line in aside, line
