"""A file system in memory that can lose power, crash at its N-th operation, fill up and fail.

It stands behind `runner.files.FileSystem`, so the real journal, recovery and folder code run on it. The model is the
worst that POSIX allows an append-only program to meet:

- A file has bytes as they read, and bytes as they are on the disk; fsync makes them equal. After a power loss the bytes
  since the last fsync are torn (`Tear`): none, some, all, or zeros before the last ones, because the size and later
  pages reached the disk first. A cut that wasn't synced may be undone.
- A directory has names as they read and names as they are on the disk; fsync_dir makes them equal, for that directory.
  After a power loss a name made, replaced or removed since then may be as before or as after.
- After a failed fsync the bytes still read well and will never reach the disk, whatever later fsyncs report (Linux).
- After a kill everything that was written reads as it was; only the write that was under way may be torn.

Numbers of operations count what changes or syncs something; reads cost nothing. After its crash a machine does nothing
more: every call raises `Crashed`. `after_kill` and `after_power_loss` give the machine that starts next.
"""

from __future__ import annotations

import enum
import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final, Literal

Operation = Literal["create", "write", "truncate", "fsync", "rename", "remove", "make_dir", "fsync_dir", "read"]
_ROOT: Final = Path("/")


class Crashed(BaseException):
    """Raised in the place of the operation that the machine didn't live to do, and of every later one."""


class Tear(enum.Enum):
    """What is left of bytes that weren't synced, or of a write that a kill cut short."""

    NOTHING = "nothing"
    ONE_BYTE = "one byte"
    HALF = "half"
    NO_NEWLINE = "all but the last byte"
    ALL = "all"
    HOLE = "zeros, then the second half"
    ZEROS = "zeros"

    def of(self, data: bytes) -> bytes:
        """What is left of `data`."""
        half = len(data) // 2
        match self:
            case Tear.NOTHING:
                return b""
            case Tear.ONE_BYTE:
                return data[:1]
            case Tear.HALF:
                return data[:half]
            case Tear.NO_NEWLINE:
                return data[:-1]
            case Tear.ALL:
                return data
            case Tear.HOLE:
                return bytes(half) + data[half:]
            case Tear.ZEROS:
                return bytes(len(data))


PREFIXES: Final = (Tear.NOTHING, Tear.ONE_BYTE, Tear.HALF, Tear.NO_NEWLINE, Tear.ALL)
"""What a kill can leave of a write."""


@dataclass(slots=True)
class Inode:
    """A file."""

    data: bytearray = field(default_factory=bytearray)
    disk: bytes = b""
    same: int = 0
    """How many bytes at the beginning have not changed since the last sync."""
    dropped: list[tuple[int, int]] = field(default_factory=list)
    """Ranges that a failed fsync left readable, and never to be written."""

    def cut(self, size: int) -> None:
        """Truncates it."""
        del self.data[size:]
        self.same = min(self.same, size)
        self.dropped = [(start, min(end, size)) for start, end in self.dropped if start < size]

    def drop(self) -> None:
        """A failed fsync."""
        if self.same < len(self.data):
            self.dropped.append((self.same, len(self.data)))
        self.same = len(self.data)

    def sync(self) -> None:
        """A good fsync."""
        disk = bytearray(self.data)
        for start, end in self.dropped:
            disk[start:end] = bytes(end - start)
        self.disk, self.same = bytes(disk), len(disk)

    def torn(self, tear: Tear) -> Inode:
        """The file after a power loss."""
        if tear is Tear.NOTHING:
            left = self.disk
        else:
            written = Inode(bytearray(self.data), dropped=self.dropped)
            written.sync()
            left = written.disk[: self.same] + tear.of(written.disk[self.same :])
        return Inode(bytearray(left), left, len(left))

    def copy(self) -> Inode:
        """The same file on the machine that starts next."""
        return Inode(bytearray(self.data), self.disk, self.same, list(self.dropped))


@dataclass(slots=True)
class Directory:
    """Names of files (directories are known by their paths)."""

    names: dict[str, Inode | None] = field(default_factory=dict)
    """None stands for a directory."""
    disk: dict[str, Inode | None] = field(default_factory=dict)

    def left(self, keep: Callable[[Inode | None], bool]) -> dict[str, Inode | None]:
        """The names after a power loss; `keep` says for each file whether the changes of its name reached the disk."""
        left = dict(self.disk)
        for name in sorted(self.names.keys() | self.disk.keys()):
            if name not in self.names:
                if keep(self.disk[name]):
                    del left[name]
            elif (name not in self.disk or self.names[name] is not self.disk[name]) and keep(self.names[name]):
                left[name] = self.names[name]
        return left


@dataclass(frozen=True, slots=True)
class WriteFault:
    """Operations of these kinds on files of that name fail, from the `first` one on: `times` of them, or for ever."""

    number: int
    """errno"""
    operations: frozenset[str]
    """Some of `Operation`."""
    name: str | None = None
    first: int = 1
    times: int | None = None
    short: int | None = None
    """The first write that fails takes so many bytes and reports them, as a full disk does."""


class MemoryFiles:
    """See the module. `crash_at` is the number of the operation that it doesn't live to do, from 1."""

    def __init__(
        self, *, crash_at: int | None = None, tear: Tear = Tear.NOTHING, fault: WriteFault | None = None
    ) -> None:
        self.directories: dict[Path, Directory] = {_ROOT: Directory()}
        self.log: list[tuple[Operation, str]] = []
        """Every operation that was counted, and the name it was about."""
        self.open_descriptors: dict[int, Path] = {}
        self.crashed = False
        self.crash_at = crash_at
        self.tear = tear
        self.fault = fault
        self._matched = 0
        self._inodes: dict[int, Inode] = {}
        self._next_descriptor = 3

    # ── The next machine ─────────────────────────────────────────────────────────────────────────────────────────

    def after_kill(self, *, crash_at: int | None = None, tear: Tear = Tear.NOTHING) -> MemoryFiles:
        """The process died, the system lives."""
        inodes: dict[int, Inode] = {}

        def same(names: dict[str, Inode | None]) -> dict[str, Inode | None]:
            return {name: inode and inodes.setdefault(id(inode), inode.copy()) for name, inode in names.items()}

        after = MemoryFiles(crash_at=crash_at, tear=tear)
        after.directories = {path: Directory(same(d.names), same(d.disk)) for path, d in self.directories.items()}
        return after

    def after_power_loss(
        self, tear: Tear, *, names_kept: bool, crash_at: int | None = None, next_tear: Tear = Tear.NOTHING
    ) -> MemoryFiles:
        """The system died: one tear for all files, and all changed names reached the disk or none did."""
        return self._after_power_loss(lambda: tear, lambda: names_kept, crash_at, next_tear)

    def after_random_power_loss(self, rng: Random) -> MemoryFiles:
        """The system died: a tear for each file, and each changed name for itself."""
        return self._after_power_loss(lambda: rng.choice(list(Tear)), lambda: rng.random() < 0.5, None, Tear.NOTHING)

    def _after_power_loss(
        self, tear: Callable[[], Tear], keep: Callable[[], bool], crash_at: int | None, next_tear: Tear
    ) -> MemoryFiles:
        inodes: dict[int, Inode] = {}
        kept: dict[int, bool] = {}

        def keep_file(inode: Inode | None) -> bool:
            """One answer a file: a rename is atomic, however many directories it is about."""
            return keep() if inode is None else kept.setdefault(id(inode), keep())

        after = MemoryFiles(crash_at=crash_at, tear=next_tear)
        pending = [_ROOT]
        while pending:  # a directory whose name is lost is lost with all that is in it
            path = pending.pop()
            directory = after.directories[path] = Directory()
            for name, inode in self.directories[path].left(keep_file).items():
                if inode is None:
                    pending.append(path / name)
                elif id(inode) not in inodes:
                    inodes[id(inode)] = inode.torn(tear())
                directory.names[name] = None if inode is None else inodes[id(inode)]
            directory.disk = dict(directory.names)
        return after

    # ── For tests ────────────────────────────────────────────────────────────────────────────────────────────────

    def content(self, path: Path) -> bytes | None:
        """What a reader would see; None if there is no such file."""
        directory = self.directories.get(path.parent)
        inode = directory.names.get(path.name) if directory else None
        return None if inode is None else bytes(inode.data)

    def state(self) -> frozenset[tuple[Path, bytes | None, bytes | None]]:
        """Every name with what it reads and what is on the disk; two machines of one state behave the same."""
        return frozenset(
            (path / name, None if inode is None else bytes(inode.data), None if inode is None else inode.disk)
            for path, directory in self.directories.items()
            for name, inode in (*directory.names.items(), *((f"{n} (disk)", i) for n, i in directory.disk.items()))
        )

    def put(self, path: Path, data: bytes) -> None:
        """A file that is there before, durably, with the directories above it."""
        for above in (path.parent, *path.parent.parents):
            self.directories.setdefault(above, Directory())
            if above != _ROOT:
                parent = self.directories.setdefault(above.parent, Directory())
                parent.names[above.name] = parent.disk[above.name] = None
        directory = self.directories[path.parent]
        directory.names[path.name] = directory.disk[path.name] = Inode(bytearray(data), data, len(data))

    # ── Faults ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, operation: Operation, path: Path) -> None:
        """Counts an operation, or raises what is planned for it."""
        self._refuse_if_crashed()
        if operation != "read":
            self.log.append((operation, path.name))
            self.crashed = len(self.log) == self.crash_at
        if self.fault is not None and self._is_hit(self.fault, operation, path):
            raise _error(self.fault.number)
        if operation != "write":  # a torn write has something to do before
            self._refuse_if_crashed()

    def _refuse_if_crashed(self) -> None:
        if self.crashed:
            raise Crashed

    def _is_hit(self, fault: WriteFault, operation: Operation, path: Path) -> bool:
        if operation not in fault.operations or fault.name not in (None, path.name):
            return False
        self._matched += 1
        nth = self._matched - fault.first
        return nth >= 0 and (fault.times is None or nth < fault.times)

    # ── FileSystem ───────────────────────────────────────────────────────────────────────────────────────────────

    def open_append(self, path: Path) -> int:
        """See `runner.files.FileSystem`."""
        self._refuse_if_crashed()
        directory = self._directory(path.parent)
        if path.name not in directory.names:
            self._begin("create", path)
            directory.names[path.name] = Inode()
        inode = directory.names[path.name]
        if inode is None:
            raise _error(errno.EISDIR)
        fd = self._next_descriptor
        self._next_descriptor += 1
        self._inodes[fd] = inode
        self.open_descriptors[fd] = path
        return fd

    def write(self, fd: int, data: bytes) -> int:
        """See `runner.files.FileSystem`."""
        inode = self._inodes[fd]
        try:
            self._begin("write", self.open_descriptors[fd])
        except OSError:
            short = self.fault.short if self.fault else None
            if not short or self._matched != (self.fault.first if self.fault else 0):
                raise
            data = data[:short]
        inode.data += self.tear.of(data) if self.crashed else data
        self._refuse_if_crashed()
        return len(data)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """See `runner.files.FileSystem`."""
        self._begin("read", self.open_descriptors[fd])
        return bytes(self._inodes[fd].data[offset : offset + size])

    def size(self, fd: int) -> int:
        """See `runner.files.FileSystem`."""
        self._refuse_if_crashed()
        return len(self._inodes[fd].data)

    def truncate(self, fd: int, size: int) -> None:
        """See `runner.files.FileSystem`."""
        self._begin("truncate", self.open_descriptors[fd])
        self._inodes[fd].cut(size)

    def fsync(self, fd: int) -> None:
        """See `runner.files.FileSystem`."""
        try:
            self._begin("fsync", self.open_descriptors[fd])
        except OSError:
            self._inodes[fd].drop()
            raise
        self._inodes[fd].sync()

    def close(self, fd: int) -> None:
        """See `runner.files.FileSystem`."""
        self._refuse_if_crashed()
        del self._inodes[fd], self.open_descriptors[fd]

    def rename(self, old: Path, new: Path) -> None:
        """See `runner.files.FileSystem`."""
        self._begin("rename", old)
        source, target = self._directory(old.parent), self._directory(new.parent)
        if old.name not in source.names:
            raise _error(errno.ENOENT)
        target.names[new.name] = source.names.pop(old.name)

    def remove(self, path: Path) -> None:
        """See `runner.files.FileSystem`."""
        if self.exists(path):
            self._begin("remove", path)
            del self._directory(path.parent).names[path.name]

    def make_dir(self, path: Path) -> None:
        """See `runner.files.FileSystem`."""
        parent = self._directory(path.parent)
        if path.name in parent.names:
            raise _error(errno.EEXIST)
        self._begin("make_dir", path)
        parent.names[path.name] = None
        self.directories[path] = Directory()

    def fsync_dir(self, path: Path) -> None:
        """See `runner.files.FileSystem`."""
        directory = self._directory(path)
        self._begin("fsync_dir", path)
        directory.disk = dict(directory.names)

    def exists(self, path: Path) -> bool:
        """See `runner.files.FileSystem`."""
        self._refuse_if_crashed()
        directory = self.directories.get(path.parent)
        return path == _ROOT or (directory is not None and path.name in directory.names)

    def _directory(self, path: Path) -> Directory:
        self._refuse_if_crashed()
        if path not in self.directories:
            raise _error(errno.ENOENT)
        return self.directories[path]


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
