"""The lock of an output folder: one run at a time.

flock, not lockf: a POSIX lock is lost when any descriptor of the file closes. The lock file is never unlinked, or two
runs could hold two files of one name.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from runner.errors import LockedError
from runner.files import OsFiles, make_folder, open_own, output_errors

_LOCK_TRIES: Final = 5
_LOCK_PAUSE_S: Final = 0.01


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Makes the folder and holds its lock; the lock goes with the process, however that ends.

    Raises:
        LockedError: another run holds it.
        OutputError: the folder can't be made or written.
        UsageError: its lock file isn't a file.
    """
    make_folder(OsFiles(), folder)
    with output_errors(folder):
        fd = open_own(folder / ".lock")
    try:
        with output_errors(folder / ".lock"):
            _take(fd, folder)
        yield
    finally:
        with suppress(OSError):  # the lock goes with the descriptor, which is gone whatever close says
            os.close(fd)


def _take(fd: int, folder: Path) -> None:
    if not _try_lock(fd):
        holder = os.pread(fd, 200, 0).decode("utf-8", "replace").strip()
        raise LockedError(f"{folder} is in use by another run ({holder or 'unknown'})")
    os.ftruncate(fd, 0)
    os.write(fd, f"pid {os.getpid()} on {socket.gethostname()}\n".encode())


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
