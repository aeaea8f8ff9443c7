"""Streams that people look at and that may be gone at any time: a closed terminal takes the view, not the run."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def stream_may_be_gone() -> contextlib.suppress:
    """Around every write to a terminal or pipe: EPIPE, EIO and a closed file end the writing and nothing else."""
    return contextlib.suppress(OSError, ValueError)


def console(stream: IO[str]) -> Console:
    """Rich's console on `stream`; a broken pipe is an OSError of the caller's, where rich would end the program."""
    from rich.console import Console

    class _Console(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return _Console(file=stream, highlight=False)


def flush_standard_streams() -> None:
    """What is left for a reader that is gone is dropped: Python would turn it into an exit code of its own, 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with stream_may_be_gone():
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
