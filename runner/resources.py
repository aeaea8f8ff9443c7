"""What the platform lends: file descriptors, the event loop it has, and the garbage collector's patience."""

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any


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


def event_loop() -> dict[str, Any]:
    """`backend_options` of `anyio.run`: uvloop where it is installed (it isn't made for Windows)."""
    return {"use_uvloop": find_spec("uvloop") is not None}


@contextmanager
def quiet_collector(thresholds: tuple[int, int, int]) -> Iterator[None]:
    """A full pass stops everything for as long as it lasts: what lives is frozen, and passes are made rare.

    The usual thresholds are 700, 10, 10.
    """
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*thresholds)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
