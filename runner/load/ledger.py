"""The journal of a load test: a record is handed in and its request is over, the disk comes later.

A run waits until a record is durable; here that wait would lie between two requests of a closed loop, and a group
commit's thread would compete with the streams being timed. So records gather, and reach the file a few times a second.

Accepted: a kill takes the records of the last moment with it. The statistics of that level are lost with them anyway.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import anyio

from runner.files import FileSystem
from runner.journal import Journal
from runner.limits import MAX_PENDING_OUTPUT_BYTES

EVERY_S: Final = 0.25


class Ledger(Journal):
    """See the module."""

    def __init__(self, fs: FileSystem, folder: Path, *, deltas: bool, streams: int = 0) -> None:
        super().__init__(fs, folder, durability="none", deltas=deltas, streams=streams)
        self._lines_of_records: list[bytes] = []
        self._gathered_bytes = 0

    async def finish(self, line: bytes) -> None:
        """Takes a record; waits for the disk only where it is far behind.

        Raises:
            OutputError: what was taken before could not be written.
        """
        self._lines_of_records.append(line)
        self._gathered_bytes += len(line)
        if self._gathered_bytes > MAX_PENDING_OUTPUT_BYTES:
            await self.write()

    async def write(self) -> None:
        """Writes what has gathered.

        Raises:
            OutputError: it can't be written.
        """
        lines, self._lines_of_records, self._gathered_bytes = self._lines_of_records, [], 0
        if lines:
            await super().finish(b"".join(lines))

    async def write_now_and_then(self) -> None:
        """Runs until it is cancelled."""
        while True:
            await anyio.sleep(EVERY_S)
            await self.write()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Writes for as long as it lasts; all is in the file when it ends."""
        async with anyio.create_task_group() as tasks:
            await tasks.start(self.run)
            try:
                async with anyio.create_task_group() as relay:
                    relay.start_soon(self.write_now_and_then)
                    yield
                    relay.cancel_scope.cancel()
            finally:
                # Whatever ended it: what was handed in is written.
                with anyio.CancelScope(shield=True):
                    await self._write_the_rest()

    async def _write_the_rest(self) -> None:
        try:
            await self.write()
        finally:
            self.close()
            await self.wait_closed()
