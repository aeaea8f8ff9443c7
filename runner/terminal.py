r"""Streams that people look at. They may be closed, full or unable to show a character: that is no matter of the run's.

- A closed terminal, a reader that has gone, a full disk, a descriptor that was never open: the text is dropped.
- A reader that doesn't read (a pager, Ctrl-S, a hung collector of logs) must not stop the event loop, where all writing
  is done: what it can't take now waits here, up to a bound, and what is beyond it is counted and said.
- A character that the stream's encoding lacks is shown escaped, as `\xe9` or `\u65e5`; Python would refuse all of the
  text that it stands in.

Accepted: a terminal that stops in the middle of one write of a few kilobytes blocks until it goes on.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from collections import deque
from typing import IO, TYPE_CHECKING, Any, Final

from runner.limits import MAX_ECHO_CHARS

if TYPE_CHECKING:
    from rich.console import Console

_PIECE_BYTES: Final = select.PIPE_BUF
"""A pipe that is ready takes this much at once."""
_PATIENCE_S: Final = 5.0
"""How long the end of a program waits for a reader that takes nothing."""


def stream_may_be_gone() -> contextlib.suppress:
    """Around every write to a terminal or pipe: EPIPE, EIO and a closed file end the writing and nothing else."""
    return contextlib.suppress(OSError, ValueError)


class Outlet:
    """A stream behind `write` and `flush` that never raise, and never block unless the writer `waits` for its reader.

    `stream`: None is one that was never open. `gone` says that the last write failed: nobody will read the next.
    """

    _backlogs: Final[set[Outlet]] = set()  # those that hold text when the program ends

    def __init__(self, stream: IO[str] | None, *, waits: bool = False) -> None:
        self.gone = stream is None
        self._stream = stream
        self._patience_s = None if waits else 0.0
        self.encoding = getattr(stream, "encoding", None) or "utf-8"
        self._fd: int | None = None
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._dropped = 0
        with stream_may_be_gone():
            # A notebook's stream may name the descriptor of the terminal that the notebook was started from.
            if isinstance(stream, io.TextIOWrapper):
                stream.flush()  # what others wrote comes first
                self._fd = stream.fileno()

    def isatty(self) -> bool:
        """Whether a person looks at it."""
        with stream_may_be_gone():
            return self._stream is not None and self._stream.isatty()
        return False

    def fileno(self) -> int:
        """Its descriptor.

        Raises:
            io.UnsupportedOperation: it has none.
        """
        if self._fd is None:
            raise io.UnsupportedOperation("fileno")
        return self._fd

    def write(self, text: str) -> int:
        """Writes what can be written now; the rest waits for the next call."""
        if self._fd is None:
            self._write_through(text)
            return len(text)
        if self._waiting_bytes > MAX_ECHO_CHARS:
            self._dropped += len(text)
        elif text:
            self._add(text)
        self.flush()
        return len(text)

    def flush(self) -> None:
        """Writes what waits, as far as the reader takes it."""
        self._pump(self._patience_s)

    @property
    def behind(self) -> bool:
        """Whether the reader has not taken yet what was written."""
        self._pump(0.0)
        return bool(self._waiting)

    def drain(self) -> int:
        """Writes what waits, at the pace of a reader that goes on reading; the bytes that nobody took are dropped."""
        self._pump(_PATIENCE_S)
        left = self._waiting_bytes
        self._forget()
        return left

    def _add(self, text: str) -> None:
        data = text.encode(self.encoding, "backslashreplace")
        self._waiting.extend(data[at : at + _PIECE_BYTES] for at in range(0, len(data), _PIECE_BYTES))
        self._waiting_bytes += len(data)
        self._backlogs.add(self)

    def _pump(self, patience_s: float | None) -> None:
        try:
            if self._stream is None or self._stream.closed:
                raise ValueError("closed")  # its descriptor may be another file's by now
            self._write_waiting(patience_s)
        except (OSError, ValueError):
            self.gone = True
            self._forget()

    def _write_waiting(self, patience_s: float | None) -> None:
        while self._fd is not None and self._waiting and _is_ready(self._fd, patience_s):
            piece = self._waiting.popleft()
            written = os.write(self._fd, piece)
            self._waiting_bytes -= written
            if written < len(piece):
                self._waiting.appendleft(piece[written:])
            if not self._waiting and self._dropped:
                self._add(f"\n[{self._dropped:,} characters are not shown: the reader was too slow]\n")
                self._dropped = 0
        if not self._waiting:
            self._backlogs.discard(self)

    def _forget(self) -> None:
        self._waiting.clear()
        self._waiting_bytes = self._dropped = 0
        self._backlogs.discard(self)

    def _write_through(self, text: str) -> None:
        """To a stream without a descriptor: a notebook's, or a test's."""
        if self._stream is None:
            return
        try:
            self._stream.write(text.encode(self.encoding, "backslashreplace").decode(self.encoding))
            self._stream.flush()
        except (OSError, ValueError):
            self.gone = True

    @classmethod
    def drain_all(cls) -> None:
        """Writes what waits anywhere, the program ends; and says what nobody took."""
        for outlet in list(cls._backlogs):
            if left := outlet.drain():
                cls(sys.stderr).write(f"runner: {left:,} bytes for the standard output were not read\n")
        cls._backlogs.clear()


def _is_ready(fd: int, patience_s: float | None) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(None if patience_s is None else patience_s * 1000))


def console(stream: Any) -> Console:
    """Rich's console on `stream`; a broken pipe is an OSError of the caller's, where rich would end the program."""
    from rich.console import Console

    class _Console(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return _Console(file=stream, highlight=False)


def open_standard_streams() -> None:
    """Opens on /dev/null what the caller closed (`2>&-`): a results file would become descriptor 2 otherwise.

    To be called before any file is opened.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            with contextlib.suppress(OSError):
                fd = os.open(os.devnull, os.O_RDWR)
                if fd != number:
                    os.dup2(fd, number)
                    os.close(fd)
                setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def flush_standard_streams() -> None:
    """What is left for a reader that is gone is dropped: Python would turn it into an exit code of its own, 120."""
    Outlet.drain_all()
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with stream_may_be_gone():
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
