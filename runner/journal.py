"""The single writer of results.jsonl and deltas.jsonl, with group commit.

Records and deltas gather in memory while the disk is busy; one visit to a worker thread writes all that gathered:
deltas first, then the records in one write, then one fsync; then those who waited for their record go on. So the loop
never blocks on the disk, a record is acknowledged when it is durable, and a slow disk makes larger groups instead of
longer queues. A record goes at once, unless one went within GROUP_EVERY_S: a visit costs as much CPU as a fifth of a
request. Deltas are evidence: they are never synced, and reach the file within DELTA_FLUSH_S.

It is stopped by closing it, never by cancelling: what it was given is written. After a failure it writes nothing more,
and whoever waits or comes later gets the same error. The names of both files are durable before: recovery made them so.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Final, Literal, NamedTuple

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus

from runner.errors import OutputError
from runner.files import AppendFile, FileSystem
from runner.limits import DELTA_FLUSH_S, MAX_PENDING_OUTPUT_BYTES, MAX_RECORD_GROUP, PENDING_BYTES_PER_STREAM
from runner.recovery import DELTAS, RESULTS
from runner.wakeup import Wakeup

_FLUSH_BYTES: Final = 256 * 1024
"""Deltas are written before their time when so many have gathered."""


GROUP_EVERY_S: Final = 0.01
"""Groups of records are at least so far apart, but for full ones: a thousand short answers a second would otherwise be
hundreds of visits to the thread, of 100 µs each. What waits is a worker whose request has given back its slot."""


class JournalStatistics(NamedTuple):
    """What the journal has done."""

    records: int  # acknowledged
    groups: int  # fsyncs of results.jsonl, about
    delta_bytes: int  # handed to the system
    pending_bytes: int  # waiting for the disk now
    blocked_s: float  # how long streams waited for the disk


class Journal:
    """See the module. All methods are for one event loop."""

    def __init__(
        self,
        fs: FileSystem,
        folder: Path,
        *,
        durability: Literal["batch", "each", "none"] = "batch",
        deltas: bool = True,
        streams: int = 0,
    ) -> None:
        """`streams`: how many may write deltas at once."""
        self._fs = fs
        self._folder = folder
        self._wants_deltas = deltas
        self._most_pending = MAX_PENDING_OUTPUT_BYTES + streams * PENDING_BYTES_PER_STREAM
        self._group = 1 if durability == "each" else MAX_RECORD_GROUP
        self._sync = durability != "none"
        self._records: deque[tuple[bytes, asyncio.Future[None]]] = deque()
        self._lines: list[bytes] = []
        self._line_bytes = 0
        self._record_bytes = 0
        self._writing_bytes = 0  # deltas that a thread is writing now
        self._next_s = 0.0  # the earliest time of the next group of records
        self._closing = False
        self._hurried = False
        self._error: OutputError | None = None
        self._wake = Wakeup()
        self._room = anyio.Event()
        self._closed = anyio.Event()
        self._counts = [0, 0, 0]
        self._blocked_s = 0.0
        self._blocked_until = 0.0

    # ── For workers ──────────────────────────────────────────────────────────────────────────────────────────────

    async def finish(self, line: bytes) -> None:
        """Writes one record; returns when it is as durable as the setting says.

        Raises:
            OutputError: it is not, and won't be.
        """
        await self.hand_in(line)

    def hand_in(self, line: bytes) -> asyncio.Future[None]:
        """Takes one record; what it returns is done when `finish` would return, or has its error.

        Raises:
            OutputError: as `finish`.
        """
        self._raise_if_broken()
        acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._records.append((line, acknowledged))
        self._record_bytes += len(line)
        if len(self._records) in (1, self._group):
            self._wake.ring()
        return acknowledged

    def delta(self, line: bytes) -> None:
        """Takes one delta line."""
        if not self._wants_deltas:
            return
        if not self._lines or self._line_bytes > _FLUSH_BYTES:
            self._wake.ring()
        self._lines.append(line)
        self._line_bytes += len(line)

    def hurry(self) -> None:
        """What was handed over is written now: the name of something that is paid for, say."""
        self._hurried = True
        self._wake.ring()

    @property
    def has_room(self) -> bool:
        """Whether `room` would return at once and without an error."""
        pending = self._record_bytes + self._line_bytes + self._writing_bytes
        return pending <= self._most_pending and self._error is None

    async def room(self) -> None:
        """Returns at once, or when the disk has caught up.

        Raises:
            OutputError: it never will.
        """
        while self._pending_bytes > self._most_pending:
            self._raise_if_broken()
            start = anyio.current_time()
            await self._room.wait()
            # Time in which several waited counts once.
            self._blocked_s += anyio.current_time() - max(start, self._blocked_until)
            self._blocked_until = anyio.current_time()
        self._raise_if_broken()

    def close(self) -> None:
        """Ends `run` once everything is written."""
        self._closing = True
        self._wake.ring()

    async def wait_closed(self) -> None:
        """Returns when `run` has ended."""
        await self._closed.wait()

    def statistics(self) -> JournalStatistics:
        """A snapshot."""
        records, groups, delta_bytes = self._counts
        return JournalStatistics(records, groups, delta_bytes, self._pending_bytes, self._blocked_s)

    @property
    def _pending_bytes(self) -> int:
        return self._record_bytes + self._line_bytes + self._writing_bytes

    def _raise_if_broken(self) -> None:
        if self._error is not None:
            raise self._error

    # ── The writer ───────────────────────────────────────────────────────────────────────────────────────────────

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Writes until closed.

        Raises:
            OutputError: a write or fsync failed; everybody who waits gets it too.
        """
        # Shielded: cancelling the run must not lose what was handed over.
        with anyio.CancelScope(shield=True), ExitStack() as opened:
            opened.callback(self._closed.set)
            try:
                await self._write_all(opened, task_status)
                self._fail(OutputError("the journal is closed"))
            except OutputError as error:
                self._fail(error)
                raise

    async def _write_all(self, opened: ExitStack, task_status: TaskStatus[None]) -> None:
        results = opened.enter_context(closing(AppendFile(self._fs, self._folder / RESULTS)))
        deltas = None
        if self._wants_deltas:
            deltas = opened.enter_context(closing(AppendFile(self._fs, self._folder / DELTAS)))
        task_status.started()
        while not self._closing or self._records or self._lines:
            await self._gather()
            await self._commit(results, deltas)
        # Whatever the setting, a run's end is durable; where nothing was promised before, nothing is taken back.
        await anyio.to_thread.run_sync(partial(results.sync, cut=self._sync))

    async def _gather(self) -> None:
        """Waits for something to write: a record goes as soon as a group may, deltas wait for company."""
        flush_s: float | None = None
        while not (
            self._closing or self._hurried or self._line_bytes > _FLUSH_BYTES or len(self._records) >= self._group
        ):
            now_s, due_s = anyio.current_time(), math.inf
            if self._lines:
                flush_s = due_s = now_s + DELTA_FLUSH_S if flush_s is None else flush_s
            if self._records:
                due_s = min(due_s, self._next_s)
            if due_s <= now_s:
                return
            self._wake.forget()
            await self._wake.wait(due_s - now_s)

    async def _commit(self, results: AppendFile, deltas: AppendFile | None) -> None:
        """One group: takes what is there, writes it in a thread, wakes those who waited for it."""
        self._hurried = False
        lines, self._lines = self._lines, []
        self._writing_bytes, self._line_bytes = self._line_bytes, 0
        group = [self._records.popleft() for _ in range(min(len(self._records), self._group))]
        try:
            await anyio.to_thread.run_sync(self._write, results, deltas, lines, [line for line, _ in group])
        except OutputError as error:
            for _, acknowledged in group:
                _refuse(acknowledged, error)
            raise
        self._count(group)
        if group:
            self._next_s = anyio.current_time() + GROUP_EVERY_S
        for _, acknowledged in group:
            if not acknowledged.done():
                acknowledged.set_result(None)
        self._make_room()

    def _count(self, group: list[tuple[bytes, asyncio.Future[None]]]) -> None:
        self._counts[0] += len(group)
        self._counts[1] += bool(group)
        self._counts[2] += self._writing_bytes
        self._record_bytes -= sum(len(line) for line, _ in group)
        self._writing_bytes = 0

    def _make_room(self) -> None:
        """Wakes all who wait: each of them holds this event, so the next to come need another."""
        self._room.set()
        self._room = anyio.Event()

    def _write(self, results: AppendFile, deltas: AppendFile | None, lines: list[bytes], records: list[bytes]) -> None:
        """In the worker thread."""
        if lines and deltas is not None:
            deltas.append(b"".join(lines))
        if records:
            results.append(b"".join(records))
            if self._sync:
                results.sync()

    def _fail(self, error: OutputError) -> None:
        """The first error stays."""
        self._error = self._error or error
        while self._records:
            _refuse(self._records.popleft()[1], self._error)
        self._make_room()


def _refuse(acknowledged: asyncio.Future[None], error: OutputError) -> None:
    if not acknowledged.done():
        acknowledged.set_exception(error)
