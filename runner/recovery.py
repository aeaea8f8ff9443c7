"""What an earlier run left → what remains to do.

results.jsonl is read once: what is done, and what that sums up to. The lines of a block are read together as long as
each is plainly a record (`written`); where one isn't, its neighbours are looked at one by one.

A tail that isn't a whole record is what a crash leaves: it is moved aside to torn.jsonl and cut off, and its job runs
again. Zeros before a record are what a power loss leaves when the later pages of the last group reached the disk and
the earlier ones didn't (a record of ours holds no raw zero): those lines are moved aside too, and the records round
them stay. Any other bad line with a good one behind it is what no crash of ours leaves: it is refused, by line number,
rather than guessed at.

Moving records aside (--retry-failed, --accept-changes) first makes the copies durable in superseded.jsonl, then
replaces results.jsonl in one rename: a crash in between repeats a copy, and loses nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final, NamedTuple

from runner.digests import DigestMap, id_key
from runner.errors import DamagedOutputError
from runner.files import AppendFile, FileSystem, output_errors
from runner.totals import Totals
from runner.written import Block, of_any, read, read_any
from runner.written import Entry as Entry

RESULTS: Final = "results.jsonl"
DELTAS: Final = "deltas.jsonl"
TORN: Final = "torn.jsonl"
SUPERSEDED: Final = "superseded.jsonl"
_NEW: Final = f"{RESULTS}.new"
_BLOCK_BYTES: Final = 1 << 20
_SHORTEST_BYTES: Final = 150
"""About the length of the shortest record."""
MAX_RECORD_BYTES: Final = 1 << 30
"""A longer line without an end isn't one of our records: the longest answer is bounded far below."""


class Recovered(NamedTuple):
    """What results.jsonl holds."""

    done: DigestMap  # digest of the id → digest of what was asked (0 for a rejected line)
    totals: Totals
    torn_bytes: int = 0  # moved aside now
    size_bytes: int = 0  # of the records: what a run adds stands behind them

    @property
    def failed(self) -> int:
        """Records of jobs that failed, and of lines that can't be jobs."""
        return self.totals.failed


class Line(NamedTuple):
    """One line of a file, without its newline."""

    number: int
    offset: int
    data: bytes
    whole: bool  # whether a newline ended it


class Group(NamedTuple):
    """Lines that ended in one block, without their newlines."""

    number: int  # of the first
    offset: int  # of the first
    lines: list[bytes]
    whole: bool  # whether newlines ended them


class Moved(NamedTuple):
    """What went from results.jsonl to another file."""

    lines: int
    size_bytes: int  # without newlines


def recover(fs: FileSystem, folder: Path, expected: int = 0, check: Callable[[], None] = lambda: None) -> Recovered:
    """Reads results.jsonl, repairs it and the tail of deltas.jsonl. `expected` records are read without regrowing.

    `check` is called for each block that is read, before anything is repaired: what it raises ends the reading.

    Raises:
        DamagedOutputError: a line in the middle isn't a record, or an id has two.
        OutputError: the folder can't be read or repaired.
    """
    path = folder / RESULTS
    torn_bytes = 0
    with output_errors(path):
        fs.remove(folder / _NEW)  # of a crash while records were moved aside
        fd = fs.open_append(path)
        try:
            found = _Found(path, min(expected, fs.size(fd) // _SHORTEST_BYTES))
            for group in read_groups(fs, fd):
                check()
                found.add_all(group)
            check()
            if found.tail is not None and not found.holes:
                torn_bytes = _move_tail(fs, folder, fd, found.tail.offset)
        finally:
            fs.close(fd)
        if found.holes:
            torn_bytes = _move_lines(fs, folder, TORN, lambda entry: entry is None).size_bytes
        fs.fsync_dir(folder)
    _end_last_line(fs, folder / DELTAS)
    return Recovered(found.done, found.totals, torn_bytes, found.size_bytes)


class _Found:
    """What has been read of results.jsonl so far."""

    def __init__(self, path: Path, expected: int) -> None:
        self._path = path
        self.done = DigestMap(expected)
        self.totals = Totals()
        self.size_bytes = 0
        """Of the records, with their newlines."""
        self.tail: Line | None = None
        """The first line that is no record and has no record behind it."""
        self.holes = False
        """Whether there are zeros before a record."""
        self._damage: Line | None = None

    def add_all(self, group: Group) -> None:
        """Takes the next lines.

        Raises:
            DamagedOutputError: see `recover`.
        """
        sound = group.whole and self.tail is None
        block = read(group.lines) if sound else None
        if block is not None:
            self._add_block(group, block)
        elif sound and len(group.lines) > 1:  # one odd line must not make many slow
            for half in halves(group):
                self.add_all(half)
        else:
            for line in lines_of(group):
                self._add(line)

    def _add_block(self, group: Group, block: Block) -> None:
        new = self.done.add(block.keys(), block.digests)
        if new < len(block.records):
            raise self._second(group.number + new, block.records[new].id)
        self.totals.add(block.records)
        self.size_bytes += sum(map(len, group.lines)) + len(group.lines)

    def _add(self, line: Line) -> None:
        found = read_any(line.data) if line.whole else None
        if found is not None:
            self._add_record(line, found[0])
            self.totals.add([of_any(found[1])])
            self.size_bytes += len(line.data) + 1
            return
        self.tail = self.tail or line
        if b"\0" not in line.data:
            self._damage = self._damage or line
        if len(line.data) > MAX_RECORD_BYTES:
            raise self._damaged(line)

    def _add_record(self, line: Line, entry: Entry) -> None:
        if self._damage is not None:
            raise self._damaged(self._damage)
        key = id_key(entry.id)
        if key in self.done:
            raise self._second(line.number, entry.id)
        self.holes = self.holes or self.tail is not None
        self.tail = None
        self.done.set(key, entry.digest)

    def _second(self, number: int, name: str) -> DamagedOutputError:
        return DamagedOutputError(
            f"{self._path}:{number}: a second record of {name!r}. Every job has one: "
            "remove the line that is wrong, or start anew with --fresh (what is there is kept aside)"
        )

    def _damaged(self, bad: Line) -> DamagedOutputError:
        return DamagedOutputError(
            f"{self._path}:{bad.number}: not a record, and not at the end, which no crash leaves. Restore the file, "
            "or remove that line (its job runs again), or start anew with --fresh (what is there is kept aside)"
        )


def read_groups(fs: FileSystem, fd: int) -> Iterator[Group]:
    """The lines of a file, a block's at a time; the last one alone where it lacks its newline."""
    number, offset, start = 1, 0, 0
    parts: list[bytes] = []
    while block := fs.read(fd, _BLOCK_BYTES, offset):
        offset += len(block)
        *lines, rest = block.split(b"\n")
        if lines:
            lines[0] = b"".join([*parts, lines[0]])
            yield Group(number, start, lines, whole=True)
            number += len(lines)
            start = offset - len(rest)
            parts.clear()
        parts.append(rest)
        if offset - start > MAX_RECORD_BYTES:
            break
    if offset > start:
        yield Group(number, start, [b"".join(parts)], whole=False)


def lines_of(group: Group) -> Iterator[Line]:
    """The lines of a group, one by one."""
    offset = group.offset
    for number, data in enumerate(group.lines, group.number):
        yield Line(number, offset, data, group.whole)
        offset += len(data) + 1


def halves(group: Group) -> tuple[Group, Group]:
    """The first half of a group's lines, and the second."""
    half = len(group.lines) // 2
    first, second = group.lines[:half], group.lines[half:]
    behind = group.offset + sum(map(len, first)) + half
    return group._replace(lines=first), Group(group.number + half, behind, second, group.whole)


def read_lines(fs: FileSystem, fd: int) -> Iterator[Line]:
    """The lines of a file, in blocks; the last one may lack its newline."""
    return (line for group in read_groups(fs, fd) for line in lines_of(group))


def parse(data: bytes) -> Entry | None:
    """What a line of results.jsonl says of itself; None if it isn't a record."""
    found = read_any(data)
    return None if found is None else found[0]


def _move_tail(fs: FileSystem, folder: Path, fd: int, offset: int) -> int:
    """Copies what follows `offset` to torn.jsonl, durably, and cuts it off."""
    at = offset
    with closing(AppendFile(fs, folder / TORN)) as aside:
        aside.end_line()
        while block := fs.read(fd, _BLOCK_BYTES, at):
            aside.append(block)
            at += len(block)
        aside.end_line()
        aside.sync()
    fs.fsync_dir(folder)
    fs.truncate(fd, offset)
    fs.fsync(fd)
    return at - offset


def _end_last_line(fs: FileSystem, path: Path) -> None:
    """Ends a torn last line of deltas.jsonl. The fragment is evidence like the rest."""
    if fs.exists(path):
        with output_errors(path), closing(AppendFile(fs, path)) as file:
            file.end_line()


def chosen_ids(fs: FileSystem, folder: Path, chosen: Callable[[Entry], bool]) -> set[int]:
    """Keys of the ids of the chosen records. Call `recover` before.

    Raises:
        OutputError: the folder can't be read.
    """
    with output_errors(folder / RESULTS), ExitStack() as opened:
        fd = fs.open_append(folder / RESULTS)
        opened.callback(fs.close, fd)
        entries = (parse(line.data) for line in read_lines(fs, fd))
        return {id_key(entry.id) for entry in entries if entry is not None and chosen(entry)}


def set_aside(fs: FileSystem, folder: Path, chosen: Callable[[Entry], bool]) -> int:
    """Moves the chosen records to superseded.jsonl; returns how many. Call `recover` before and after.

    Raises:
        OutputError: the folder can't be written; nothing is lost, and the next run goes on with what is there.
    """
    moved = _move_lines(fs, folder, SUPERSEDED, lambda entry: entry is not None and chosen(entry))
    return moved.lines


def _move_lines(fs: FileSystem, folder: Path, name: str, chosen: Callable[[Entry | None], bool]) -> Moved:
    """Moves lines of results.jsonl (None: no whole record) to the end of another file: copy, sync, replace."""
    lines = size = 0
    with output_errors(folder / RESULTS), ExitStack() as opened:
        fs.remove(folder / _NEW)
        fd = fs.open_append(folder / RESULTS)
        opened.callback(fs.close, fd)
        kept = opened.enter_context(closing(AppendFile(fs, folder / _NEW)))
        aside = opened.enter_context(closing(AppendFile(fs, folder / name)))
        aside.end_line()
        for line in read_lines(fs, fd):
            move = chosen(parse(line.data) if line.whole else None)
            lines += move
            size += len(line.data) if move else 0
            (aside if move else kept).append(line.data + b"\n")
        aside.sync()
        kept.sync()
        fs.fsync_dir(folder)
        fs.rename(folder / _NEW, folder / RESULTS)
        fs.fsync_dir(folder)
    return Moved(lines, size)


def start_afresh(fs: FileSystem, folder: Path, stamp: str, names: tuple[str, ...]) -> Path | None:
    """Moves the files of an earlier run into `old-<stamp>/`; None if there were none."""
    present = [name for name in names if fs.exists(folder / name)]
    if not present:
        return None
    old = folder / f"old-{stamp}"
    with output_errors(old):
        fs.make_dir(old)
        # The manifest goes last, and not before the others have durably gone: while it stands, what is left of the
        # old run is still refused to another input.
        for name in present:
            fs.rename(folder / name, old / name)
            fs.fsync_dir(old)
            fs.fsync_dir(folder)
    return old


def failed(entry: Entry) -> bool:
    """For --retry-failed."""
    return not entry.ok


def named(ids: set[int]) -> Callable[[Entry], bool]:
    """For --accept-changes: the records of these ids (keys of them)."""
    return lambda entry: id_key(entry.id) in ids
