r"""Bytes → bounded lines. Pure.

Rules: only b"\n" ends a line (str.splitlines would break on U+2028 inside a JSON string); one trailing \r goes with
it; a leading byte-order mark is dropped; blank lines are counted and skipped. A line over the bound is never held: it
is hashed as it passes, and comes out as its size and digest.

Accepted: a carriage return counts towards the bound and belongs to the digest of a line over it.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

import msgspec

from runner.limits import MAX_LINE_BYTES

_BOM: Final = b"\xef\xbb\xbf"


class Line(msgspec.Struct, frozen=True, gc=False):
    """One line that isn't blank."""

    number: int
    """1-based, blank lines counted."""
    data: bytes | None
    """Without its end; None when it was over the bound."""
    size_bytes: int
    """Without its newline, with its carriage return."""
    digest: bytes = b""
    """BLAKE2b-128 of the line over the bound; empty otherwise."""
    offset: int = 0
    """Of its first byte in the input."""


class LineSplitter:
    """Incremental: any cutting of the input gives the same lines."""

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max = max_bytes
        self._number = 0
        self._offset = 0  # where the current line begins
        # A byte array and no list of pieces: a pipe may bring a long line byte by byte.
        self._held = bytearray()
        self._size = 0
        self._hash: blake2b | None = None  # of the line that is over the bound
        self._head = b""  # the first bytes of the input, until it is known whether they are a byte-order mark
        self._begun = False

    @property
    def held_bytes(self) -> int:
        """What is in memory of the line that hasn't ended; at most the bound."""
        return len(self._held)

    def feed(self, block: bytes) -> list[Line]:
        """The lines that end in this block."""
        if not self._begun:
            self._head += block
            if len(self._head) < len(_BOM) and _BOM.startswith(self._head):
                return []
            block = self._begin()
        *ends, rest = block.split(b"\n")
        lines = [line for end in ends if (line := self._end(end)) is not None]
        self._add(rest)
        return lines

    def finish(self) -> list[Line]:
        """The last line, if no newline ended it."""
        if not self._begun:
            self._add(self._begin())
        line = self._end(b"") if self._size else None
        return [] if line is None else [line]

    def _begin(self) -> bytes:
        """The first bytes, without the mark."""
        head, self._head, self._begun = self._head, b"", True
        body = head.removeprefix(_BOM)
        self._offset = len(head) - len(body)
        return body

    def _add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._hash is not None:
            self._hash.update(piece)
        elif self._size <= self._max:
            self._held += piece
        else:
            self._hash = blake2b(self._held, digest_size=16)
            self._hash.update(piece)
            self._held = bytearray()  # clear() would keep its memory

    def _end(self, piece: bytes) -> Line | None:
        self._number += 1
        offset = self._offset
        if self._size == 0 and len(piece) <= self._max:  # by far the most: the line lies whole within a block
            self._offset += len(piece) + 1
            return self._line(piece, len(piece), b"", offset)
        self._add(piece)
        size, digest = self._size, b"" if self._hash is None else self._hash.digest()
        data = bytes(self._held) if self._hash is None else None
        self._held, self._size, self._hash = bytearray(), 0, None
        self._offset += size + 1
        return self._line(data, size, digest, offset)

    def _line(self, data: bytes | None, size: int, digest: bytes, offset: int) -> Line | None:
        if data is None:
            return Line(self._number, None, size, digest, offset)
        data = data.removesuffix(b"\r")
        return Line(self._number, data, size, digest, offset) if data.strip() else None
