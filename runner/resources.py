"""What the platform lends: file descriptors, and the event loop it has."""

from __future__ import annotations

import resource
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
