"""The output folder of a run, taken in order: lock, --fresh, manifest, recovery, --retry-failed, changed jobs.

All of it happens before anything is sent, so that a refusal costs nothing; the lock is held until the run is over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio.to_thread
import orjson

from runner import manifest, preflight
from runner.digests import DigestMap, id_key
from runner.earlier import EarlierDeltas
from runner.errors import UsageError
from runner.files import FileSystem, OsFiles, atomic_write, read_file
from runner.lock import lock_folder
from runner.plan import Plan
from runner.recovery import (
    DELTAS,
    RESULTS,
    SUPERSEDED,
    TORN,
    Entry,
    Recovered,
    chosen_ids,
    failed,
    named,
    recover,
    set_aside,
    start_afresh,
)
from runner.source import STDIN, Scan, scan
from runner.totals import Totals

T = TypeVar("T")
MANIFEST: Final = "manifest.json"
SUMMARY: Final = "summary.json"
LOG: Final = "run.log"
LOAD_JSON: Final = "load.json"
LOAD_CSV: Final = "load.csv"
REPORT: Final = "report.html"
FILES: Final = (RESULTS, DELTAS, TORN, SUPERSEDED, SUMMARY, LOG, LOAD_JSON, LOAD_CSV, REPORT, MANIFEST)
"""What --fresh moves aside, of a run and of a load test: the folder may have been that of the other. The manifest goes
last: while it stands, another input or test is still refused."""


@dataclass(slots=True)
class Folder:
    """An output folder that this run holds."""

    fs: FileSystem
    path: Path
    scanned: Scan | None
    """The input's hash and counts; None for standard input."""
    recovered: Recovered
    earlier: dict[str, Any] | None
    """The manifest that was found."""
    has_deltas: EarlierDeltas | None
    """What an earlier run left of deltas.jsonl; None if it left none."""
    one_input: bool = False
    """All its records came from the bytes that the input has now."""
    complete: bool = False
    """Every line of the input is known to have its record: nothing is left to read, nor to run."""

    @property
    def done(self) -> DigestMap:
        """Ids (keys of them) that have their final record."""
        return self.recovered.done

    def described(self, plan: Plan) -> dict[str, Any]:
        """The input, for the manifest."""
        scanned = self.scanned
        return manifest.describe_input(
            plan.paths,
            scanned.sha256 if scanned else None,
            scanned.lines if scanned else None,
            scanned.size_bytes if scanned else None,
        )

    def write_manifest(self, current: dict[str, Any]) -> None:
        """Writes manifest.json; a resumed run keeps its first start and lists its resumes."""
        if self.earlier is not None:
            current = manifest.resumed(self.earlier, current)
        atomic_write(self.fs, self.path / MANIFEST, manifest.encode(current | {"one_input": self.one_input}))


def refuse_strangers(fs: FileSystem, folder: Path, names: Iterable[str]) -> None:
    """Refuses a folder that belongs to no run, with files under these names: they are somebody else's.

    Raises:
        UsageError: there is one.
    """
    for name in names:
        if fs.exists(folder / name):
            raise UsageError(f"{folder / name} isn't this program's, and would be written over: {manifest.ELSEWHERE}")


def write_summary(fs: FileSystem, path: Path, summary: dict[str, Any]) -> None:
    """Writes summary.json into the folder `path`."""
    data = orjson.dumps(summary, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    atomic_write(fs, path / SUMMARY, data)


@contextmanager
def held(plan: Plan) -> Iterator[OsFiles]:
    """Makes and locks the folder, for as long as it lasts; --fresh moves aside what is there.

    Raises:
        LockedError: another run holds it.
        OutputError: it can't be made or written.
    """
    fs = OsFiles()
    with lock_folder(plan.out):
        if plan.fresh:
            stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
            start_afresh(fs, plan.out, stamp, FILES)
        yield fs


async def open_folder(fs: FileSystem, plan: Plan) -> Folder:
    """Checks the folder against the plan, repairs what a crash left, and says what is done.

    Raises:
        UsageError: the folder holds another input's run, or a finished job now asks something else.
        InputError: the input can't be read.
        DamagedOutputError: results.jsonl is broken where no crash of ours breaks it.
        OutputError: the folder can't be written.
    """
    scanned = await anyio.to_thread.run_sync(scan, plan.paths)
    if plan.settings.strict:
        await preflight.refuse_bad_lines(plan.paths)
    earlier = _read_manifest(fs, plan.out / MANIFEST)
    folder = Folder(fs, plan.out, scanned, Recovered(DigestMap(), Totals()), earlier, None)
    if fs.exists(plan.out / DELTAS):
        folder.has_deltas = EarlierDeltas(fs, plan.out / DELTAS, lambda key: key in folder.done)
    described = folder.described(plan)
    if earlier is not None:
        manifest.check_same_input(earlier, described, plan.out)
    elif not fs.exists(plan.out / RESULTS):
        refuse_strangers(fs, plan.out, (SUMMARY,))
    await _recover(folder)
    if earlier is not None and len(folder.done):
        manifest.check_same_origin(earlier, simulated=plan.simulate is not None, folder=plan.out)
    changed: set[int] = set()
    if earlier is not None and len(folder.done) and not manifest.unchanged(earlier, described):
        changed = await _changed(folder, plan)
    if changed or (plan.retry_failed and folder.recovered.failed):
        is_changed = named(changed)
        await _set_aside(folder, lambda entry: is_changed(entry) or (plan.retry_failed and failed(entry)))
    folder.one_input = manifest.of_one_input(earlier, described, len(folder.done))
    if folder.one_input and scanned is not None and len(folder.done) == scanned.lines:
        folder.complete = await anyio.to_thread.run_sync(preflight.all_done, plan.paths, folder.done)
    return folder


async def _recover(folder: Folder) -> None:
    expected = folder.scanned.lines if folder.scanned else 0
    folder.recovered = await _to_its_end(lambda check: recover(folder.fs, folder.path, expected, check))


async def _changed(folder: Folder, plan: Plan) -> set[int]:
    """Ids (keys of them) of finished jobs that now ask something else; refused where the user didn't accept it."""
    if STDIN in plan.paths:
        return set()  # it can't be read ahead: the pipeline looks at each job as it comes
    changed = {id_key(name): name for name in await preflight.changed_jobs(plan.paths, folder.done)}
    if changed and not plan.accept_changes:
        again = await anyio.to_thread.run_sync(chosen_ids, folder.fs, folder.path, failed) if plan.retry_failed else ()
        kept = [name for key, name in changed.items() if key not in again]
        if kept:
            raise preflight.changes_refused(kept, plan.paths)
    return set(changed)


async def _set_aside(folder: Folder, chosen: Callable[[Entry], bool]) -> None:
    def of_a_line(check: Callable[[], None]) -> int:
        def choose(entry: Entry) -> bool:
            check()
            return chosen(entry)

        return set_aside(folder.fs, folder.path, choose)

    await _to_its_end(of_a_line)
    await _recover(folder)


class _StoppedError(Exception):
    """Raised in a thread whose result nobody awaits any more."""


async def _to_its_end(work: Callable[[Callable[[], None]], T]) -> T:
    """Runs it in a thread, which has ended when this is left: the lock goes next, and with it the right to repair.

    Ctrl-C leaves a thread alone; it would go on, and cut off what the next run has written. `work` is to call what it
    is given often: that raises once the thread is to end.
    """
    stopped, running = threading.Event(), threading.Lock()

    def check() -> None:
        if stopped.is_set():
            raise _StoppedError

    def run() -> T:
        with running:
            check()
            return work(check)

    try:
        return await anyio.to_thread.run_sync(run)
    except BaseException:
        stopped.set()
        with running:  # held by the thread for as long as it works
            raise


def _read_manifest(fs: FileSystem, path: Path) -> dict[str, Any] | None:
    data = read_file(fs, path)
    return None if data is None else manifest.load(data, path)
