"""Files or standard input → batches of jobs, with back-pressure.

Reading, decompressing and parsing happen in a worker thread, a batch at a time, so that neither a slow disk nor a large
line blocks the loop; nothing is read ahead of the batch that was asked for.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import select
import sys
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple, cast

import anyio.to_thread
import zstandard

from runner.errors import InputError
from runner.jobs import Job, Rejected
from runner.limits import MAX_LINE_BYTES, READ_BLOCK_BYTES, SOURCE_BATCH_BYTES, SOURCE_BATCH_JOBS
from runner.lines import LineSplitter
from runner.parsing import JobParser

STDIN = "-"
_POLL_S = 0.2
"""How long a read of an idle pipe may last before it looks whether the run still wants it."""


class Scan(NamedTuple):
    """The input as a whole."""

    sha256: str  # of the decompressed bytes of all files
    lines: int  # that aren't blank
    size_bytes: int  # decompressed


class JobSource:
    """The jobs of some files, in order, as one input; line numbers are per file."""

    def __init__(self, paths: Sequence[str], *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._paths = paths
        self._max_line_bytes = max_line_bytes
        self._stopped = False

    async def batches(self) -> AsyncIterator[list[Job | Rejected]]:
        """Batches of at most SOURCE_BATCH_JOBS jobs or SOURCE_BATCH_BYTES of lines.

        Raises:
            InputError: a file can't be opened, read or decompressed; it names the file.
        """
        items = self._batches()
        try:
            # An idle pipe is polled, so an abandoned thread ends by itself soon after.
            while batch := await anyio.to_thread.run_sync(next, items, None, abandon_on_cancel=True):
                yield batch
        finally:
            self._stopped = True

    def _batches(self) -> Iterator[list[Job | Rejected]]:
        parser = JobParser()
        batch: list[Job | Rejected] = []
        size = 0
        for path in self._paths:
            parser.source = "<stdin>" if path == STDIN else path
            splitter = LineSplitter(self._max_line_bytes)
            for block in self._blocks(path):
                for line in splitter.feed(block) if block else splitter.finish():
                    batch.append(parser.parse(line))
                    size += line.size_bytes
                    if len(batch) >= SOURCE_BATCH_JOBS or size >= SOURCE_BATCH_BYTES:
                        yield batch
                        batch, size = [], 0
                if batch and path == STDIN:
                    # What a pipe has brought is run, whether or not more comes.
                    yield batch
                    batch, size = [], 0
        if batch:
            yield batch

    def _blocks(self, path: str) -> Iterator[bytes]:
        """Blocks of bytes, then one that is empty."""
        with open_input(path) as file:
            fd = file.fileno() if path == STDIN else None
            while True:
                if fd is not None and not self._readable(fd):
                    return
                with input_errors(path):
                    block = os.read(fd, READ_BLOCK_BYTES) if fd is not None else file.read(READ_BLOCK_BYTES)
                yield block
                if not block:
                    return

    def _readable(self, fd: int) -> bool:
        """Waits until the pipe has something; False when nobody wants it any more."""
        while not self._stopped:
            if select.select([fd], [], [], _POLL_S)[0]:
                return True
        return False


@contextmanager
def open_input(path: str) -> Iterator[BinaryIO]:
    """A file as plain bytes, decompressed by its suffix; "-" is standard input, which is left open."""
    if path == STDIN:
        yield sys.stdin.buffer
        return
    with input_errors(path):
        raw = open(path, "rb")  # noqa: SIM115 - closed below, whatever wraps it
    with raw:
        if path.endswith(".gz"):
            yield cast(BinaryIO, gzip.GzipFile(fileobj=raw))
        elif path.endswith(".zst"):
            yield io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True))
        else:
            yield raw


def check_readable(paths: Sequence[str]) -> None:
    """Opens every file and reads its first byte, before anything else is begun.

    Raises:
        InputError: one is missing, a directory, not readable, or not what its suffix says.
    """
    for path in paths:
        if path != STDIN:
            with open_input(path) as file, input_errors(path):
                file.read(1)


@contextmanager
def input_errors(path: str) -> Iterator[None]:
    """What reading and decompressing raise → InputError that names the file."""
    try:
        yield
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def scan(paths: Sequence[str], *, max_line_bytes: int = MAX_LINE_BYTES) -> Scan | None:
    """Reads the whole input once; None for standard input, which can't be read twice. Blocks: run it in a thread.

    Raises:
        InputError: a file can't be read to its end.
    """
    if STDIN in paths:
        return None
    digest = hashlib.sha256()
    lines = size = 0
    for path in paths:
        splitter = LineSplitter(max_line_bytes)
        with open_input(path) as file:
            while True:
                with input_errors(path):
                    block = file.read(READ_BLOCK_BYTES)
                digest.update(block)
                size += len(block)
                lines += len(splitter.feed(block) if block else splitter.finish())
                if not block:
                    break
    return Scan(digest.hexdigest(), lines, size)
