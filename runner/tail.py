"""`python -m runner tail DIR [CUSTOM_ID]`: follows a run, or one job's text, as it arrives.

It reads the files and nothing else, so it works beside any run, and on a finished folder.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Final

import anyio
import orjson

from runner.errors import UsageError
from runner.escape import for_line, for_terminal
from runner.terminal import Outlet

_POLL_S: Final = 0.2


class _Growing:
    """The whole lines of a file that may not exist yet, may grow, and may be replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._inode = 0
        self._rest = b""

    def lines(self) -> Iterator[dict[str, Any]]:
        """What has been added since the last call, parsed; what isn't an object is passed over."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        with file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._inode, self._offset, self._rest = status.st_ino, 0, b""
            file.seek(self._offset)
            while block := file.read(1 << 20):
                self._offset += len(block)
                *ends, self._rest = (self._rest + block).split(b"\n")
                for end in ends:
                    try:
                        line = orjson.loads(end)
                    except orjson.JSONDecodeError:  # a fragment that a crash left
                        continue
                    if isinstance(line, dict):
                        yield line


async def tail(folder: Path, custom_id: str | None, stream: IO[str], *, follow: bool = True) -> int:
    """Prints until the job has its record, the run is over or nobody reads any more; returns the exit code.

    1: `custom_id` has no record and no run is going on that could write one.

    Raises:
        UsageError: `folder` is not that of a run.
    """
    if not any((folder / name).exists() for name in ("results.jsonl", "deltas.jsonl", ".lock")):
        raise UsageError(f"{folder}: there is no run in it")
    out = Outlet(stream, waits=True)
    deltas, results = _Growing(folder / "deltas.jsonl"), _Growing(folder / "results.jsonl")
    begun: set[str] = set()
    while True:
        # Asked before reading: what a run wrote before it let go of the lock is then read in this very round.
        running = _is_running(folder)
        # Records first: a run writes a job's deltas before its record, so all of them are there when it is.
        ended = list(results.lines())
        for line in deltas.lines():
            if custom_id is None:
                _announce(line, begun, out)
            elif line.get("custom_id") == custom_id:
                out.write(_shown(line))
        for record in ended:
            if custom_id is None or _name(record) == custom_id:
                begun.discard(_name(record))
                out.write(_ending(record, alone=custom_id is not None))
                if custom_id is not None:
                    return 0
        if out.gone:
            return 0
        if not running or not follow:
            return 0 if custom_id is None else 1
        await anyio.sleep(_POLL_S)


def _announce(line: dict[str, Any], begun: set[str], out: Outlet) -> None:
    """For all jobs: beginnings and restarts. `begun` is bounded by what is in flight."""
    name = line.get("custom_id")
    if not isinstance(name, str):
        return
    if line.get("event") == "void":
        out.write(f"{for_line(name)}  again: {for_line(str(line.get('reason')))}\n")
    elif name not in begun:
        begun.add(name)
        out.write(f"{for_line(name)}  answering\n")


def _shown(line: dict[str, Any]) -> str:
    if line.get("event") == "void":
        return f"\n[again: {for_line(str(line.get('reason')))}]\n"
    delta = line.get("delta")
    if not isinstance(delta, dict):
        return ""
    if delta.get("type") in ("response.output_text.delta", "response.refusal.delta"):
        text = delta.get("delta")
    elif "type" in delta:
        text = None
    else:
        text = delta.get("content") or delta.get("refusal") or delta.get("text")
    return for_terminal(text) if isinstance(text, str) else ""


def _ending(record: dict[str, Any], *, alone: bool) -> str:
    error = record.get("error")
    runner = record.get("runner") or {}
    end = str(runner.get("finish")) if error is None else f"failed: {error.get('code')}: {error.get('message')}"
    return f"\n[{for_line(end)}]\n" if alone else f"{for_line(_name(record))}  {for_line(end)}\n"


def _name(record: dict[str, Any]) -> str:
    """A line that can't be a job may have no custom_id."""
    return str(record.get("custom_id") or record.get("id"))


def _is_running(folder: Path) -> bool:
    """Whether a run holds the folder. A shared lock that is let go at once disturbs nobody for long."""
    try:
        fd = os.open(folder / ".lock", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
