"""The file seam: the few operations that durability rests on, small enough to model and to crash at each of them.

Rules, each paid for by an incident:
- O_APPEND and one os.write a group: a buffered file lost 194 acknowledged records in 29 kills.
- A short write returns less than was asked and raises nothing (a full disk wrote 186 of 1,520 bytes): what arrived is
  cut off again, or the next record would be glued to the fragment.
- After a failed fsync the kernel may have dropped the pages and report success the next time: never sync again, and
  cut off what was to be synced, for it may read back and yet be gone from the disk.
- What is written to a file that was deleted meanwhile is gone with its last descriptor: a sync of it fails, or a run
  would pay for its answers to the end and keep none.
- A file that somebody else cuts or appends to meanwhile (a second run, where the lock file was deleted) no longer holds
  what was acknowledged: its length is compared at each sync.
- A created or renamed name is durable when its directory is synced, and a directory's when the one above it is.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import takewhile
from pathlib import Path
from typing import Final, Protocol

from runner.errors import OutputError, UsageError

_PRIVATE: Final = 0o600  # prompts and answers are nobody else's


class FileSystem(Protocol):
    """What the output needs of an operating system. Descriptors are ints, offsets and sizes are bytes."""

    def open_append(self, path: Path) -> int:
        """Opens for reading and appending, creating it; refuses what isn't a regular file (UsageError)."""

    def write(self, fd: int, data: bytes) -> int:
        """Appends; may write less than all."""

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """Reads at an offset; b"" at the end."""

    def size(self, fd: int) -> int:
        """The file's length."""

    def truncate(self, fd: int, size: int) -> None:
        """Cuts the file."""

    def fsync(self, fd: int) -> None:
        """Makes what was written durable."""

    def close(self, fd: int) -> None:
        """Closes the descriptor."""

    def rename(self, old: Path, new: Path) -> None:
        """Renames, replacing what is there."""

    def remove(self, path: Path) -> None:
        """Removes a file if it exists."""

    def make_dir(self, path: Path) -> None:
        """Makes a directory."""

    def fsync_dir(self, path: Path) -> None:
        """Makes the directory's names durable."""

    def exists(self, path: Path) -> bool:
        """Whether there is something of that name."""


class OsFiles:
    """The real one."""

    def open_append(self, path: Path) -> int:
        """See `FileSystem`."""
        return open_own(path)

    def write(self, fd: int, data: bytes) -> int:
        """See `FileSystem`."""
        return os.write(fd, data)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """See `FileSystem`."""
        return os.pread(fd, size, offset)

    def size(self, fd: int) -> int:
        """See `FileSystem`."""
        return os.fstat(fd).st_size

    def truncate(self, fd: int, size: int) -> None:
        """See `FileSystem`."""
        os.ftruncate(fd, size)

    def fsync(self, fd: int) -> None:
        """See `FileSystem`."""
        os.fsync(fd)
        if os.fstat(fd).st_nlink == 0:
            raise OSError(errno.ENOENT, "the file was deleted while it was written")

    def close(self, fd: int) -> None:
        """See `FileSystem`."""
        os.close(fd)

    def rename(self, old: Path, new: Path) -> None:
        """See `FileSystem`."""
        os.replace(old, new)

    def remove(self, path: Path) -> None:
        """See `FileSystem`."""
        path.unlink(missing_ok=True)

    def make_dir(self, path: Path) -> None:
        """See `FileSystem`."""
        path.mkdir()

    def fsync_dir(self, path: Path) -> None:
        """See `FileSystem`."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno != errno.EINVAL:  # how a file system says that its directories know no fsync
                raise
        finally:
            os.close(fd)

    def exists(self, path: Path) -> bool:
        """See `FileSystem`."""
        return os.path.lexists(path)


def open_own(path: Path) -> int:
    """Opens a file of the folder to read and append; no link, which leads elsewhere, no pipe, which keeps nothing.

    Raises:
        UsageError: it is a link, or no regular file.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, _PRIVATE)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(f"{path} is a symbolic link: output is written only to files of the folder") from None
        if error.errno in (errno.EISDIR, errno.ENXIO):
            raise _not_a_file(path) from None
        raise
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _not_a_file(path)
    return fd


def _not_a_file(path: Path) -> UsageError:
    return UsageError(f"{path} is not a regular file: output is written only to files of the folder")


class AppendFile:
    """A file that only grows by whole writes.

    Raises OutputError for every failure. After a failed write or fsync it holds what it held before, or where even that
    fails a fragment that recovery moves aside; it is broken, and every further use raises the same error.
    """

    def __init__(self, fs: FileSystem, path: Path) -> None:
        self._fs = fs
        self.path = path
        self._broken: str | None = None
        with output_errors(path):
            self._fd = fs.open_append(path)
            self._good = self._durable = fs.size(self._fd)

    def append(self, data: bytes) -> None:
        """Writes all of `data`, or nothing of it."""
        self._refuse_if_broken()
        view = memoryview(data)
        try:
            while view:
                written = self._fs.write(self._fd, bytes(view) if len(view) < len(data) else data)
                if written <= 0:
                    raise OSError(errno.EIO, "nothing was written")
                view = view[written:]
        except OSError as error:
            self._broken = f"{self.path}: {error.strerror or error}"
            self._cut_back(self._good)
            raise OutputError(self._broken) from error
        self._good += len(data)

    def _cut_back(self, size: int) -> None:
        try:
            self._fs.truncate(self._fd, size)
        except OSError as error:
            # The fragment stays; recovery moves it aside before anything is written behind it.
            self._broken = f"{self._broken} (and it could not be cut back: {error.strerror})"

    def end_line(self) -> None:
        """Ends the fragment of a line that a crash left, so that nothing is glued to it."""
        with output_errors(self.path):
            last = self._fs.read(self._fd, 1, self._good - 1) if self._good else b"\n"
        if last != b"\n":
            self.append(b"\n")

    def sync(self, *, cut: bool = True) -> None:
        """Makes what was written durable; what can't be made so is cut off again, unless `cut` is false."""
        self._refuse_if_broken()
        try:
            self._fs.fsync(self._fd)
        except OSError as error:
            self._broken = f"{self.path}: fsync: {error.strerror or error}"
            if cut:
                self._cut_back(self._durable)
            raise OutputError(self._broken) from error
        self._refuse_if_changed()
        self._durable = self._good

    def _refuse_if_changed(self) -> None:
        """Nothing is cut off of a file that somebody else has written to or cut: what is whose isn't known."""
        with output_errors(self.path):
            size = self._fs.size(self._fd)
        if size != self._good:
            self._broken = f"{self.path}: another program changed it while it was written"
            raise OutputError(f"{self._broken} (it has {size:,} bytes in place of {self._good:,})")

    def _refuse_if_broken(self) -> None:
        if self._broken is not None:
            raise OutputError(self._broken)

    def close(self) -> None:
        """Closes it; what was written stays as durable as it is."""
        with output_errors(self.path):
            self._fs.close(self._fd)


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """OSError → OutputError that names the file."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror or error}") from error


def atomic_write(fs: FileSystem, path: Path, data: bytes) -> None:
    """Replaces a file: after a crash there is the old one or the new one, whole."""
    temporary = path.with_name(f"{path.name}.new")
    with output_errors(path):
        fs.remove(temporary)
        file = AppendFile(fs, temporary)
        try:
            file.append(data)
            file.sync()
        finally:
            file.close()
        fs.rename(temporary, path)
        fs.fsync_dir(path.parent)


def read_file(fs: FileSystem, path: Path) -> bytes | None:
    """The whole of a small file; None if there is none."""
    if not fs.exists(path):
        return None
    with output_errors(path):
        fd = fs.open_append(path)
        try:
            return fs.read(fd, fs.size(fd), 0)
        finally:
            fs.close(fd)


def make_folder(fs: FileSystem, folder: Path) -> None:
    """Makes a directory and those above it, each durable before anything stands in it.

    The one that is there already may have been made by a run that was killed before its sync: it is synced too.
    """
    missing = list(takewhile(lambda path: not fs.exists(path), (folder, *folder.parents)))
    there = missing[-1].parent if missing else folder
    with output_errors(folder):
        with suppress(PermissionError):  # a directory above that may be passed but not read is not this user's to make
            fs.fsync_dir(there.parent)
        for path in reversed(missing):
            with suppress(FileExistsError):  # two runs begin at once; the lock decides between them
                fs.make_dir(path)
            fs.fsync_dir(path.parent)
