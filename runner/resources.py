"""What the platform lends: file descriptors, the event loop it has, and the garbage collector's patience."""

from __future__ import annotations

import gc
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Final

from runner.errors import ResourceError

LEAST_DESCRIPTORS: Final = 24
"""A run with one stream was seen to need 20: the event loop's 10, the folder's 5, a socket, a simulator's pipes."""
LEAST_THREADS: Final = 8
"""Four of the event loop's for names of hosts, and those that read and sync."""
_THRESHOLDS: Final = (10_000, 100, 1_000)
"""Of the garbage collector; the usual ones are 700, 10, 10. Nothing that is made again and again is left in a ring, so
there is next to nothing to find. A pass over 10,000 new objects stops everything for 2 ms, one over the next generation
for 40 ms when 5,000 streams have begun."""


def raise_descriptor_limit() -> int:
    """Raises the soft limit of open files to the hard one; returns what is allowed now.

    A stream takes a descriptor, the usual soft limit is 1,024, and running out of them looks like a connection error.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):  # macOS refuses "unlimited"; what was allowed before stays allowed
            return soft
    return hard


def check_descriptors() -> None:
    """Looks whether one stream can be had, before anything is opened for it.

    Raises:
        ResourceError: it can't.
    """
    allowed, taken = raise_descriptor_limit(), _open_descriptors()
    if allowed != resource.RLIM_INFINITY and allowed - taken < LEAST_DESCRIPTORS:
        raise ResourceError(
            f"too few files may be open: `ulimit -n` is {allowed}, {taken} are open, "
            f"and at least {LEAST_DESCRIPTORS} more are needed"
        )


def _open_descriptors() -> int:
    try:
        return len(os.listdir("/dev/fd")) - 1  # without the one that lists them
    except OSError:  # there is no such folder, or not even a descriptor for it
        return 3


def check_threads() -> None:
    """Starts as many threads as a run needs: where there are too few the event loop would abort the process.

    Raises:
        ResourceError: they can't be had.
    """
    done = threading.Event()
    threads = [threading.Thread(target=done.wait, daemon=True) for _ in range(LEAST_THREADS)]
    try:
        for thread in threads:
            thread.start()
    except RuntimeError:
        raise ResourceError(
            f"the system gives no more threads, and a run needs {LEAST_THREADS}: "
            "`ulimit -u`, `ulimit -v` or a container's limit is too low"
        ) from None
    finally:
        done.set()


def event_loop() -> dict[str, Any]:
    """`backend_options` of `anyio.run`: uvloop where it is installed (it isn't made for Windows).

    Raises:
        ResourceError: it, or what runs on it, could not be had.
    """
    check_descriptors()
    check_threads()
    return {"use_uvloop": find_spec("uvloop") is not None}


@contextmanager
def quiet_collector() -> Iterator[None]:
    """A full pass stops everything for as long as it lasts: what lives is frozen, and passes are made rare.

    No pass before: it would take a tenth of the start to find next to nothing.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
