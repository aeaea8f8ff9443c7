"""Files, standard input or a byte range of a file → batches of jobs, with back-pressure.

Reading, decompressing and parsing happen in a worker thread, a batch at a time, so that neither a slow disk nor a large
line blocks the loop; nothing is read ahead of the batch that was asked for, but the rest of its block.

A file is read as long as it was when it was opened: what is appended meanwhile, perhaps half a line, is for the next
run, and a file that has become shorter is an error, for its end was somebody's jobs.

Accepted: a byte range costs the reading of what stands before it, since ids without a custom_id count occurrences, and
the first line with an id keeps it. A named pipe is refused, since a file is read more than once. What is appended to a
compressed file meanwhile is read, and half a member of it an error.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import select
import stat
import sys
import zlib
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple, cast

import anyio.to_thread
import msgspec
import zstandard

from runner.errors import InputError
from runner.jobs import Job, Rejected
from runner.limits import MAX_LINE_BYTES, READ_BLOCK_BYTES, SOURCE_BATCH_BYTES, SOURCE_BATCH_JOBS
from runner.lines import Line, LineSplitter
from runner.parsing import JobParser

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

STDIN: Final = "-"
_POLL_S: Final = 0.2
"""How long a read of an idle pipe may last before it looks whether the run still wants it."""
OF_REJECTED: Final = "line-"
"""How the ids of lines that can't be jobs begin. No job may be given such a one."""
_ZSTD_READ_BYTES: Final = 512
"""Decompressed at once: a hostile file makes 128 KiB of 4 bytes, hence at most 16 MiB of this."""


class ByteRange(NamedTuple):
    """The lines that begin in it. Ranges that share their ends share no line and lose none."""

    start: int = 0
    end: int | None = None
    """Exclusive; None is the input's end. Of the decompressed bytes."""


class Scan(NamedTuple):
    """The input as a whole."""

    sha256: str  # of the decompressed bytes of all files
    lines: int  # that aren't blank
    size_bytes: int  # decompressed


class JobSource:
    """The jobs of some files, in order, as one input; line numbers are per file. `within` is for a single file."""

    def __init__(
        self, paths: Sequence[str], *, within: ByteRange | None = None, max_line_bytes: int = MAX_LINE_BYTES
    ) -> None:
        if within is not None and (len(paths) != 1 or STDIN in paths):
            raise ValueError("a byte range is one of a single file")
        self._paths = paths
        self._within = within or ByteRange()
        self._max_line_bytes = max_line_bytes
        self._stopped = False

    async def batches(self) -> AsyncGenerator[list[Job | Rejected], None]:
        """Batches: SOURCE_BATCH_JOBS jobs at most, and none after the one that makes it SOURCE_BATCH_BYTES of lines.

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
            with suppress(ValueError):  # "already executing", in the abandoned thread, which drops it when it ends
                items.close()

    def _batches(self) -> Generator[list[Job | Rejected], None, None]:
        batch: list[Job | Rejected] = []
        size = 0
        for item, size_bytes in self._items():
            if item is not None:
                batch.append(item)
                size += size_bytes
            # What a pipe has brought is run, whether or not more comes.
            if len(batch) >= SOURCE_BATCH_JOBS or size >= SOURCE_BATCH_BYTES or (batch and item is None):
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _items(self) -> Iterator[tuple[Job | Rejected | None, int]]:
        """Each job with the length of its line; None where standard input has no more for now."""
        start, end = self._within
        parser = JobParser(max_line_bytes=self._max_line_bytes)
        for path in self._paths:
            parser.source = "<stdin>" if path == STDIN else path
            for line in self._lines(path):
                if line is None:
                    yield None, 0
                    continue
                if end is not None and line.offset >= end:
                    return
                item = parser.parse(line)
                if line.offset >= start:
                    yield item, line.size_bytes

    def _lines(self, path: str) -> Iterator[Line | None]:
        splitter = LineSplitter(self._max_line_bytes)
        for block in self._blocks(path):
            yield from splitter.feed(block)
            if path == STDIN:
                yield None
        if not self._stopped:
            yield from splitter.finish()

    def _blocks(self, path: str) -> Iterator[bytes]:
        with open_input(path) as file:
            if path == STDIN:
                yield from self._pipe_blocks(file)
            else:
                yield from _file_blocks(path, file)

    def _pipe_blocks(self, file: BinaryIO) -> Iterator[bytes]:
        """Whatever has come, as soon as it comes."""
        while True:
            with input_errors(STDIN):
                fd = file.fileno()
                # Waits in short turns: nobody may want it any more.
                while not self._stopped and not select.select([fd], [], [], _POLL_S)[0]:
                    pass
                block = b"" if self._stopped else os.read(fd, READ_BLOCK_BYTES)
            if not block:
                return
            yield block


def _file_blocks(path: str, file: BinaryIO) -> Iterator[bytes]:
    while True:
        with input_errors(path):
            block = file.read(READ_BLOCK_BYTES)
        if not block:
            return
        yield block


class _AsLongAsItWas(io.RawIOBase):
    """A file up to the length that it had when it was opened."""

    def __init__(self, raw: io.BufferedReader) -> None:
        self._raw = raw
        self._left = os.fstat(raw.fileno()).st_size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fills the buffer with what there is; 0 is the end.

        Raises:
            EOFError: the file has become shorter.
        """
        count = self._raw.readinto(memoryview(buffer)[: self._left])
        if self._left and not count:
            raise EOFError(f"it became {self._left:,} bytes shorter while it was read")
        self._left -= count
        return count


@contextmanager
def open_input(path: str) -> Iterator[BinaryIO]:
    """A file as plain bytes, decompressed by its suffix; "-" is standard input, which is left open.

    Raises:
        InputError: it can't be opened, or isn't a regular file.
    """
    if path == STDIN:
        if sys.stdin is None:  # as Python has it after `<&-`
            raise InputError(f"{STDIN}: standard input is closed")
        yield sys.stdin.buffer
        return
    with input_errors(path):
        raw = _open_regular(path)
    with raw:
        if path.lower().endswith(".gz"):
            yield cast(BinaryIO, gzip.GzipFile(fileobj=raw))
        elif path.lower().endswith(".zst"):
            yield io.BufferedReader(_ZstdFile(raw), READ_BLOCK_BYTES)
        else:
            yield io.BufferedReader(_AsLongAsItWas(raw), READ_BLOCK_BYTES)


def _open_at_once(path: str, flags: int) -> int:
    """To open a named pipe would otherwise wait for its writer, perhaps for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def _open_regular(path: str) -> io.BufferedReader:
    raw = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 - open_input closes it, whatever wraps it
    mode = os.fstat(raw.fileno()).st_mode
    if not stat.S_ISREG(mode):
        raw.close()
        # A first reading would take from it what a second one then lacks, without a word.
        raise InputError(f"{path}: not a regular file, and a file is read more than once: pipe it in and name it -")
    return raw


class _ZstdFile(io.RawIOBase):
    """Zstandard frames, one after another. zstandard's own reader takes a file that was cut short for its end."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame: zstandard.ZstdDecompressionObj | None = None  # None between frames
        self._compressed = b""
        self._plain = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fills the buffer with what there is; 0 is the end.

        Raises:
            EOFError: the last frame was cut short.
        """
        while not self._plain:
            if not self._step():
                return 0
        target = memoryview(buffer)
        count = min(len(target), len(self._plain))
        target[:count], self._plain = self._plain[:count], self._plain[count:]
        return count

    def _step(self) -> bool:
        """Decompresses one piece; False at the end."""
        self._compressed = self._compressed or self._raw.read(_ZSTD_READ_BYTES)
        if not self._compressed:
            if self._frame is not None:
                raise EOFError("Compressed file ended before the end of its last frame")
            return False
        frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
        self._plain = memoryview(frame.decompress(self._compressed))
        self._compressed = frame.unused_data if frame.eof else b""
        self._frame = None if frame.eof else frame
        return True


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
    """What opening, reading and decompressing raise → InputError that names the file."""
    try:
        yield
    except (OSError, EOFError, ValueError, zlib.error, zstandard.ZstdError) as error:
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
        counter = _LineCounter(max_line_bytes)
        with open_input(path) as file:
            for block in _file_blocks(path, file):
                digest.update(block)
                size += len(block)
                counter.feed(block)
        lines += counter.finish()
    return Scan(digest.hexdigest(), lines, size)


class _LineCounter:
    """Counts what a LineSplitter finds, which gets only the lines at the edges of the blocks: a quarter of the time."""

    def __init__(self, max_bytes: int) -> None:
        self._max = max_bytes
        self._splitter = LineSplitter(max_bytes)
        self._lines = 0
        self._begun = False

    def feed(self, block: bytes) -> None:
        first, *inner = block.split(b"\n")
        # The first bytes may be a byte-order mark, and a line over the bound counts even if it is blank.
        if not inner or not self._begun or max(map(len, inner)) > self._max:
            self._lines += len(self._splitter.feed(block))
            self._begun = True
            return
        self._lines += len(self._splitter.feed(first + b"\n" + inner.pop()))
        self._lines += sum(map(bool, map(bytes.strip, inner)))

    def finish(self) -> int:
        return self._lines + len(self._splitter.finish())


class _Named(msgspec.Struct, gc=False):
    custom_id: str


_named = msgspec.json.Decoder(_Named).decode_lines


def given_ids(paths: Sequence[str]) -> Iterator[list[str] | None]:
    """The custom_id of every line, a block's at a time; None, and no more, where a line has none that a job may have.

    It is no parser: of a file with lines that can't be jobs it may name fewer or other ids than the parser would.

    Raises:
        InputError: a file can't be read to its end.
    """
    for path in paths:
        with open_input(path) as file:
            for block in _whole_lines(path, file):
                try:
                    names = [named.custom_id for named in _named(block)]
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    names = [OF_REJECTED]
                if any(name.startswith(OF_REJECTED) for name in names):
                    yield None
                    return
                yield names


def _whole_lines(path: str, file: BinaryIO) -> Iterator[bytes]:
    """Blocks that end where a line does, or where it has become too long to be a job."""
    rest = bytearray()
    for block in _file_blocks(path, file):
        lines, newline, begun = block.rpartition(b"\n")
        if newline:
            yield bytes(rest) + lines
            rest = bytearray(begun)
        else:
            rest += block
        if len(rest) > MAX_LINE_BYTES:
            yield bytes(rest)
            rest = bytearray()
    yield bytes(rest)
