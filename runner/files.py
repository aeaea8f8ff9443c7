"""The file seam: the few operations that durability rests on, small enough to model and to crash at each of them.

Rules, each paid for by an incident:
- O_APPEND and one os.write a group: a buffered file lost 194 acknowledged records in 29 kills.
- A short write returns less than was asked and raises nothing (a full disk wrote 186 of 1,520 bytes): what arrived is
  cut off again, or the next record would be glued to the fragment.
- After a failed fsync the kernel may have dropped the pages and report success the next time: never sync again.
- flock, not lockf: a POSIX lock is lost when any descriptor of the file closes. The lock file is never unlinked.
- A created or renamed name is durable when its directory is synced.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from runner.errors import LockedError, OutputError, UsageError

_LOCK_TRIES = 5
_LOCK_PAUSE_S = 0.01
_PRIVATE = 0o600  # prompts and answers are nobody else's


class FileSystem(Protocol):
    """What the output needs of an operating system. Descriptors are ints, offsets and sizes are bytes."""

    def open_append(self, path: Path) -> int:
        """Opens for reading and appending, creating it; refuses symbolic links."""

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
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(path, flags, _PRIVATE)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise UsageError(f"{path} is a symbolic link: output is written only to files of the folder") from None
            raise

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
        finally:
            os.close(fd)

    def exists(self, path: Path) -> bool:
        """See `FileSystem`."""
        return os.path.lexists(path)


class AppendFile:
    """A file that only grows by whole writes.

    Raises OutputError for every failure; after a failed fsync, or a failed write that could not be cut back, it is
    broken and every further use raises.
    """

    def __init__(self, fs: FileSystem, path: Path) -> None:
        self._fs = fs
        self.path = path
        self._broken: str | None = None
        with output_errors(path):
            self._fd = fs.open_append(path)
            self._good = fs.size(self._fd)

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
            self._cut_back()
            raise OutputError(self._broken) from error
        self._good += len(data)

    def _cut_back(self) -> None:
        try:
            self._fs.truncate(self._fd, self._good)
        except OSError as error:
            # The fragment stays; recovery moves it aside before anything is written behind it.
            self._broken = f"{self._broken} (and it could not be cut back: {error.strerror})"

    def last_byte(self) -> bytes:
        """The file's last byte; b"" of an empty file."""
        return self._fs.read(self._fd, 1, self._good - 1) if self._good else b""

    def sync(self) -> None:
        """Makes it durable."""
        self._refuse_if_broken()
        try:
            self._fs.fsync(self._fd)
        except OSError as error:
            self._broken = f"{self.path}: fsync: {error.strerror or error}"
            raise OutputError(self._broken) from error

    def _refuse_if_broken(self) -> None:
        if self._broken is not None:
            raise OutputError(self._broken)

    def close(self) -> None:
        """Closes it; what was written stays as durable as it is."""
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


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Holds the folder's lock; it goes with the process, however that ends.

    Raises:
        LockedError: another run holds it.
        OutputError: the folder can't be made or written.
    """
    path = folder / ".lock"
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, _PRIVATE)
    try:
        if not _try_lock(fd):
            holder = os.pread(fd, 200, 0).decode("utf-8", "replace").strip()
            raise LockedError(f"{folder} is in use by another run ({holder or 'unknown'})")
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    """A few tries within 50 ms: `tail` holds a shared lock for an instant, to see whether a run is going on."""
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_S)
        else:
            return True
    return False
