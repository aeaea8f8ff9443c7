r"""Bytes → bounded lines. Pure.

Rules: only b"\n" ends a line (str.splitlines would break on U+2028 inside a JSON string); one trailing \\r goes with
it; a leading byte-order mark is dropped; blank lines are counted and skipped. A line over the bound is never held: it
is hashed as it passes, and comes out as its size and digest.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, NamedTuple

from runner.limits import MAX_LINE_BYTES

_BOM: Final = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """One line that isn't blank."""

    number: int
    """1-based, blank lines counted."""
    data: bytes | None
    """Without its end; None when it was over the bound."""
    size_bytes: int
    digest: bytes
    """BLAKE2b-128 of the line over the bound; empty otherwise."""


class LineSplitter:
    """Incremental: any cutting of the input gives the same lines."""

    def __init__(self, max_bytes: int = MAX_LINE_BYTES) -> None:
        self._max = max_bytes
        self._number = 0
        self._parts: list[bytes] = []
        self._size = 0
        self._hash: blake2b | None = None  # of the line that is over the bound
        self._head = b""  # the first bytes of the input, until it is known whether they are a byte-order mark
        self._begun = False

    def feed(self, block: bytes) -> list[Line]:
        """The lines that end in this block."""
        if not self._begun:
            self._head += block
            if len(self._head) < len(_BOM) and _BOM.startswith(self._head):
                return []
            block, self._begun, self._head = self._head.removeprefix(_BOM), True, b""
        *ends, rest = block.split(b"\n")
        lines = [line for end in ends if (line := self._end(end)) is not None]
        self._add(rest)
        return lines

    def finish(self) -> list[Line]:
        """The last line, if no newline ended it."""
        lines = []
        if not self._begun:
            self._begun = True
            self._add(self._head.removeprefix(_BOM))
        if self._size:
            line = self._end(b"")
            lines = [] if line is None else [line]
        return lines

    def _add(self, piece: bytes) -> None:
        if not piece:
            return
        self._size += len(piece)
        if self._hash is not None:
            self._hash.update(piece)
            return
        self._parts.append(piece)
        if self._size > self._max:
            self._hash = blake2b(b"".join(self._parts), digest_size=16)
            self._parts.clear()

    def _end(self, piece: bytes) -> Line | None:
        self._number += 1
        self._add(piece)
        size, digest = self._size, b"" if self._hash is None else self._hash.digest()
        data = None if self._hash is not None else b"".join(self._parts).removesuffix(b"\r")
        self._parts.clear()
        self._size, self._hash = 0, None
        if data is not None and not data.strip():
            return None
        return Line(self._number, data, size, digest)
