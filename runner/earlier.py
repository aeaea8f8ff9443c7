"""What deltas.jsonl of earlier runs says of background responses: read once, and only when such a job turns up.

Steps: one pass over the file as it was when this run began notes where the lines of each background response stand that
has no record yet; a job that asks has its lines read and its answer rebuilt from them. Both happen in a thread.

The line with which such a text begins names the digest of what was asked, and the endpoint that has the response
(`marks`): an id is only gone back to by the job that asked the same. A void ends a text, but the response may be there
still: its id is kept, where its stream stands is not.

Accepted: a file that is torn, missing or unreadable costs at most the tokens of the answers that were on their way.
Memory is bounded: beyond MAX_PLACES lines a response is asked for from its first event, beyond MAX_RESPONSES it isn't.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import anyio
import anyio.to_thread
import orjson

from runner.background import Stored, id_of, replay
from runner.digests import id_key
from runner.errors import RunnerError
from runner.files import FileSystem
from runner.jobs import Job
from runner.limits import KIB, MAX_SSE_LINE_BYTES

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_RESPONSES: Final = 100_000
"""Unfinished background responses that are found again: more than any run has in flight."""
MAX_PLACES: Final = 4_000_000
"""Lines of their texts whose places are kept, 8 bytes each."""
_BLOCK_BYTES: Final = 512 * KIB
_PIECE_BYTES: Final = 2 * KIB
"""Of one line, what is read first: most are shorter."""
_MAX_LINE_BYTES: Final = 2 * MAX_SSE_LINE_BYTES
_ID_AT: Final = len(b'{"custom_id":')
_AFTER_ID: Final = b',"attempt":'
_MARK: Final = b',"digest":"'
_VOID: Final = b',"event":"void"'
_NEAR: Final = 40
"""Behind an id, as far as the attempt's number and the key that follows it reach."""


class Found(NamedTuple):
    """A response that an earlier run began."""

    id: str
    endpoint: str
    attempt: int  # the number under which its text stands
    stored: Stored | None  # None: its text isn't whole


@dataclass(slots=True)
class _Place:
    """Where a text stands."""

    first: int
    """Offset of the line that names the response."""
    lines: array[int] | None = field(default_factory=lambda: array("Q"))
    """Offsets of all of them; None: void, or too many."""


def marks(job: Job, endpoint: str) -> bytes:
    """What the head of the line says with which a text begins, between its attempt and its seq."""
    return b'"digest":"%016x","endpoint":%b,' % (job.digest, orjson.dumps(endpoint))


def _key(name: bytes) -> int:
    """The key of an id that stands there as JSON."""
    try:
        return id_key(str(orjson.loads(name)))
    except orjson.JSONDecodeError:
        return 0


class EarlierDeltas:
    """The deltas.jsonl that a run found. `is_done` is asked about keys of ids, when the file is read."""

    def __init__(self, fs: FileSystem, path: Path, is_done: Callable[[int], bool]) -> None:
        self._fs = fs
        self._path = path
        self._is_done = is_done
        self._once = anyio.Lock()
        self._places: dict[bytes, _Place] | None = None
        self._kept = 0

    async def of(self, job: Job) -> Found | None:
        """The response that an earlier run began for this job, if there is one."""
        async with self._once:
            places = self._places
            if places is None:
                nothing: dict[bytes, _Place] = {}
                places = await anyio.to_thread.run_sync(partial(self._reading, self._scan, nothing))
                self._places = places
            place = places.pop(orjson.dumps(job.id), None)
        if place is None:
            return None
        return await anyio.to_thread.run_sync(partial(self._reading, partial(self._found, place, job), None))

    def _reading(self, read: Callable[[int], T], nothing: T) -> T:
        """Evidence that can't be read is no reason to stop."""
        try:
            fd = self._fs.open_append(self._path)
            try:
                return read(fd)
            finally:
                self._fs.close(fd)
        except (OSError, RunnerError) as error:
            log.warning("deltas can't be read", extra={"error": str(error)})
            return nothing

    # ── One pass over the file ───────────────────────────────────────────────────────────────────────────────────

    def _scan(self, fd: int) -> dict[bytes, _Place]:
        places: dict[bytes, _Place] = {}
        for start, lines in self._whole_lines(fd):
            if not places and _MARK not in lines:
                continue  # by far the most: files without any background response
            offset = start
            for line in lines.split(b"\n"):
                # In a string every quote is escaped: this is the end of the id.
                end = line.find(_AFTER_ID, _ID_AT)
                if end > 0:
                    name = line[_ID_AT:end]
                    if line.find(_MARK, end, end + _NEAR) > 0:
                        self._begin(places, name, offset)
                    elif name in places:
                        self._add(places[name], offset, void=line.find(_VOID, end, end + _NEAR) > 0)
                offset += len(line) + 1
        return places

    def _begin(self, places: dict[bytes, _Place], name: bytes, offset: int) -> None:
        self._forget(places.pop(name, None))
        if len(places) < MAX_RESPONSES and not self._is_done(_key(name)):
            places[name] = _Place(offset)
            self._add(places[name], offset, void=False)

    def _add(self, place: _Place, offset: int, *, void: bool) -> None:
        if void or self._kept >= MAX_PLACES:
            self._forget(place)
            place.lines = None
        elif place.lines is not None:
            place.lines.append(offset)
            self._kept += 1

    def _forget(self, place: _Place | None) -> None:
        self._kept -= 0 if place is None or place.lines is None else len(place.lines)

    def _whole_lines(self, fd: int) -> Iterator[tuple[int, bytes]]:
        """Blocks that end where a line ends, and their offsets; a last line without an end is none."""
        offset, rest = 0, b""
        while block := self._fs.read(fd, _BLOCK_BYTES, offset):
            start, offset = offset - len(rest), offset + len(block)
            end = block.rfind(b"\n") + 1
            if end:
                yield start, rest + block[:end]
                rest = block[end:]
            else:
                rest += block
            if len(rest) > _MAX_LINE_BYTES:
                return  # no line of ours: what follows isn't to be trusted

    # ── One job ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _found(self, place: _Place, job: Job, fd: int) -> Found | None:
        try:
            first = orjson.loads(self._line(fd, place.first))
            name, endpoint = id_of(first["delta"]["response"]), first["endpoint"]
            if name is None or int(first["digest"], 16) != job.digest or not isinstance(endpoint, str):
                return None
            stored = replay(self._parsed(fd, place.lines)) if place.lines and job.stream else None
            return Found(name, endpoint, int(first["attempt"]), stored)
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            return None

    def _parsed(self, fd: int, places: array[int]) -> Iterator[dict[str, Any]]:
        for offset in places:
            try:
                yield orjson.loads(self._line(fd, offset))
            except orjson.JSONDecodeError:
                yield {}  # torn: `replay` finds that it is missing

    def _line(self, fd: int, offset: int) -> bytes:
        size = _PIECE_BYTES
        while True:
            piece = self._fs.read(fd, size, offset)
            end = piece.find(b"\n")
            if end >= 0 or len(piece) < size or size > _MAX_LINE_BYTES:
                return piece if end < 0 else piece[:end]
            size *= 8
