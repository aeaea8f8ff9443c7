"""The pass over the input before anything is sent, made only where its answer can matter.

It finds jobs whose line changed under a known id since an earlier run (only where the input's bytes changed), and lines
that can't be jobs (only under --strict). Where the bytes are the same and there are as many records as lines, it finds
out whether all is done already, which is cheaper than to read the jobs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from runner.digests import DigestMap, id_key, id_keys
from runner.errors import UsageError
from runner.jobs import Job, Rejected
from runner.source import STDIN, JobSource, given_ids

_SHOWN = 5


def refuse_own_files(inputs: Iterable[str], folder: Path, names: Iterable[str]) -> None:
    """Refuses inputs that are files which the run writes, by these names in its folder: they would be written over.

    Raises:
        UsageError: one of them is.
    """
    own = {os.path.realpath(folder / name) for name in names}
    for path in inputs:
        if path != STDIN and os.path.realpath(path) in own:
            raise UsageError(
                f"{path} is a file that the run itself writes: give it another name, or name another folder with --out"
            )


def asks_something_else(item: Job | Rejected, done: DigestMap) -> bool:
    """Whether there is a record under the job's id for another request."""
    known = done.get(id_key(item.id))
    return known is not None and isinstance(item, Job) and known != item.digest


async def changed_jobs(paths: Sequence[str], done: DigestMap) -> list[str]:
    """Ids of the jobs that have a record of another request, in the input's order."""
    return [item.id async for batch in JobSource(paths).batches() for item in batch if asks_something_else(item, done)]


def changes_refused(ids: Sequence[str], paths: Sequence[str]) -> UsageError:
    """The error that names the changed jobs."""
    shown = ", ".join(repr(name) for name in ids[:_SHOWN]) + (" …" if len(ids) > _SHOWN else "")
    return UsageError(
        f"{', '.join(paths)}: {len(ids)} finished job(s) now ask something else under the same id ({shown}): "
        "give them another custom_id, or run them again with --accept-changes (their old records are kept aside)"
    )


def all_done(paths: Sequence[str], done: DigestMap) -> bool:
    """Whether every line names an id of its own that has its record. Blocks: run it in a thread.

    Only where all records are known to be of these bytes: then none of an id is of another line than the one that
    names it. False where a line has no id, or can't be a job: who is to know without having parsed all of them.

    Raises:
        InputError: a file can't be read.
    """
    ticks = done.ticks()
    for names in given_ids(paths):
        if names is None or not done.tick(id_keys(names), ticks):
            return False
    return ticks.count(1) == len(done)


async def refuse_bad_lines(paths: Sequence[str]) -> None:
    """Raises the error of the first line that can't be a job.

    Raises:
        UsageError: it names file, line and reason.
    """
    first: Rejected | None = None
    count = 0
    async for batch in JobSource(paths).batches():
        for item in batch:
            if isinstance(item, Rejected):
                first = first or item
                count += 1
    if first is not None:
        raise UsageError(f"{first.reason} ({count} line(s) can't be jobs; nothing was sent, because of --strict)")
