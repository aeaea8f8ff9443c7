"""What an earlier run left → what remains to do.

results.jsonl is read once, line by line. A tail that isn't a whole record (half a line, or zeros after a power loss) is
what a crash leaves: it is moved aside to torn.jsonl and cut off, and its job runs again. A bad line with a good one
behind it is what no crash of ours leaves: it is refused, by line number, rather than guessed at.

Moving records aside (--retry-failed, --accept-changes) first makes the copies durable in superseded.jsonl, then
replaces results.jsonl in one rename: a crash in between repeats a copy, and loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import orjson

from runner.digests import DigestMap, digest64
from runner.errors import DamagedOutputError
from runner.files import AppendFile, FileSystem, output_errors

RESULTS: Final = "results.jsonl"
DELTAS: Final = "deltas.jsonl"
TORN: Final = "torn.jsonl"
SUPERSEDED: Final = "superseded.jsonl"
_BLOCK_BYTES: Final = 1 << 20
MAX_RECORD_BYTES: Final = 1 << 30
"""A longer line without an end isn't one of our records: the longest answer is bounded far below."""


class Recovered(NamedTuple):
    """What results.jsonl holds."""

    done: DigestMap  # digest of the id → digest of what was asked (0 for a rejected line)
    succeeded: int
    failed: int
    torn_bytes: int  # moved aside now


class Line(NamedTuple):
    """One line of a file, without its newline."""

    number: int
    offset: int
    data: bytes
    whole: bool  # whether a newline ended it


class Entry(NamedTuple):
    """What a record says of itself."""

    id: str
    digest: int
    ok: bool


def recover(fs: FileSystem, folder: Path) -> Recovered:
    """Reads results.jsonl, repairs its tail and that of deltas.jsonl.

    Raises:
        DamagedOutputError: a line in the middle isn't a record, or an id has two.
        OutputError: the folder can't be read or repaired.
    """
    done = DigestMap()
    succeeded = failed = torn_bytes = 0
    bad: Line | None = None
    with output_errors(folder / RESULTS):
        fd = fs.open_append(folder / RESULTS)
        try:
            for line in read_lines(fs, fd):
                entry = parse(line.data) if line.whole else None
                if entry is None:
                    bad = bad or line
                    continue
                if bad is not None:
                    raise _damaged(folder, bad)
                key = digest64(entry.id.encode())
                if key in done:
                    raise DamagedOutputError(
                        f"{folder / RESULTS}:{line.number}: a second record of {entry.id!r}. Every job has one: "
                        "remove the line that is wrong, or start anew with --fresh (what is there is kept aside)"
                    )
                done.set(key, entry.digest)
                succeeded += entry.ok
                failed += not entry.ok
            if bad is not None:
                torn_bytes = _move_tail(fs, folder, fd, bad.offset)
        finally:
            fs.close(fd)
    _end_last_line(fs, folder / DELTAS)
    return Recovered(done, succeeded, failed, torn_bytes)


def read_lines(fs: FileSystem, fd: int) -> Iterator[Line]:
    """The lines of a file, in blocks; the last one may lack its newline."""
    number, offset, start = 0, 0, 0
    parts: list[bytes] = []
    while block := fs.read(fd, _BLOCK_BYTES, offset):
        offset += len(block)
        *ends, rest = block.split(b"\n")
        for end in ends:
            data = b"".join([*parts, end])
            parts.clear()
            number += 1
            yield Line(number, start, data, whole=True)
            start += len(data) + 1
        parts.append(rest)
        if offset - start > MAX_RECORD_BYTES:
            break
    if offset > start:
        yield Line(number + 1, start, b"".join(parts), whole=False)


def parse(data: bytes) -> Entry | None:
    """What a line of results.jsonl says of itself; None if it isn't a record."""
    try:
        record = orjson.loads(data)
        ours = record["runner"]["digest"]
        name = record["id"]
        ok = record["error"] is None
        digest = 0 if ours is None else int(ours, 16)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None
    return Entry(name, digest, ok) if isinstance(name, str) else None


def _damaged(folder: Path, bad: Line) -> DamagedOutputError:
    return DamagedOutputError(
        f"{folder / RESULTS}:{bad.number}: not a record, with records behind it, which no crash leaves. Restore the "
        "file, or remove that line (its job runs again), or start anew with --fresh (what is there is kept aside)"
    )


def _move_tail(fs: FileSystem, folder: Path, fd: int, offset: int) -> int:
    """Copies what follows `offset` to torn.jsonl, durably, and cuts it off."""
    size = fs.size(fd)
    aside = AppendFile(fs, folder / TORN)
    try:
        at = offset
        while at < size:
            block = fs.read(fd, _BLOCK_BYTES, at)
            aside.append(block)
            at += len(block)
        aside.append(b"\n")
        aside.sync()
    finally:
        aside.close()
    fs.fsync_dir(folder)
    fs.truncate(fd, offset)
    fs.fsync(fd)
    return size - offset


def _end_last_line(fs: FileSystem, path: Path) -> None:
    """Ends a torn last line of deltas.jsonl, so that nothing is glued to it. The fragment is evidence like the rest."""
    if not fs.exists(path):
        return
    with output_errors(path):
        file = AppendFile(fs, path)
        try:
            if file.last_byte() not in (b"", b"\n"):
                file.append(b"\n")
        finally:
            file.close()


def set_aside(fs: FileSystem, folder: Path, chosen: Callable[[Entry], bool]) -> int:
    """Moves the chosen records to superseded.jsonl; returns how many. Call `recover` before and after.

    Raises:
        OutputError: the folder can't be written; results.jsonl is then as it was.
    """
    path = folder / RESULTS
    new = folder / f"{RESULTS}.new"
    count = 0
    with output_errors(path):
        fs.remove(new)
        fd = fs.open_append(path)
        kept, aside = AppendFile(fs, new), AppendFile(fs, folder / SUPERSEDED)
        try:
            for line in read_lines(fs, fd):
                entry = parse(line.data)
                move = entry is not None and chosen(entry)
                count += move
                (aside if move else kept).append(line.data + b"\n")
            aside.sync()
            kept.sync()
        finally:
            fs.close(fd)
            kept.close()
            aside.close()
        fs.fsync_dir(folder)
        fs.rename(new, path)
        fs.fsync_dir(folder)
    return count


def start_afresh(fs: FileSystem, folder: Path, stamp: str, names: tuple[str, ...]) -> Path | None:
    """Moves the files of an earlier run into `old-<stamp>/`; None if there were none."""
    present = [name for name in names if fs.exists(folder / name)]
    if not present:
        return None
    old = folder / f"old-{stamp}"
    with output_errors(old):
        fs.make_dir(old)
        # The manifest goes last: while it stands, what is left of the old run is still refused to another input.
        for name in present:
            fs.rename(folder / name, old / name)
        fs.fsync_dir(old)
        fs.fsync_dir(folder)
    return old


def failed(entry: Entry) -> bool:
    """For --retry-failed."""
    return not entry.ok


def named(ids: set[int]) -> Callable[[Entry], bool]:
    """For --accept-changes: the records of these ids (digests)."""
    return lambda entry: digest64(entry.id.encode()) in ids
