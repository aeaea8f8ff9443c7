"""What a growing answer keeps, in few bytes, and how many they are.

An answer is bounded by what it holds, not by what passed by: an event is 200 bytes round a token of 4. So whatever
stays in memory is counted when it is kept, and reading the count costs nothing.

- `Text`: a string that grows. A str of 4 characters takes 53 bytes, a token of a long answer 60 with its place in a
  list; joined a batch at a time and kept as UTF-8 it takes its own length, and one emoji doesn't make the rest of an
  answer four times as wide.
- `Entries`: a list that grows. Kept as JSON: an entry of log probabilities with 20 alternatives is 1.2 KB so, and 10 KB
  and a hundred objects for the garbage collector to visit otherwise.
- Objects that are merged key by key stay objects; a key counts NODE_BYTES.

What is replaced is counted off again where that is simple, so the count may be too high by what a strange server sends
twice; it is too low by no more than a few objects.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from runner.accumulate.parsing import clean
from runner.limits import BYTES_PER_VALUE

NODE_BYTES: Final = 256
"""A key of an object with a small value of any kind: an empty dict is 64 bytes, one with a key 184."""
_PART_BYTES: Final = 60
"""What a str takes beside its characters."""
_LOOSE_BYTES: Final = 4_096
"""Parts are joined when they take more: about 64 tokens."""
_BLOCK_BYTES: Final = 48
"""What a bytes takes beside its bytes. Blocks, because buffers that grow side by side leave holes behind that nothing
fits into: 32 endless streams of 768 KiB each peaked 15 MB higher with them."""
_TEXT_BYTES: Final = NODE_BYTES + _LOOSE_BYTES
"""What a Text or an Entries counts from the first, so that loose parts need not be counted one by one."""


class Held:
    """The bytes that one answer holds."""

    __slots__ = ("bytes", "shown")

    def __init__(self) -> None:
        self.bytes = 0
        self.shown: int | None = None
        """Bytes of each text that a body shows, where it is to show only the beginning; long lists it leaves out."""


class Text:
    """A string in parts. Halves of a surrogate pair stay halves, whichever parts they came in: see `mend`."""

    __slots__ = ("_held", "_joined", "_loose_bytes", "_parts")

    def __init__(self, held: Held, text: str = "") -> None:
        self._held = held
        self._joined: list[bytes] = []
        self._parts: list[str] = []
        self._loose_bytes = 0
        held.bytes += _TEXT_BYTES
        if text:
            self.add(text)

    def add(self, text: str) -> None:
        """Appends."""
        if not text:
            return
        self._parts.append(text)
        self._loose_bytes += len(text) + _PART_BYTES
        if self._loose_bytes > _LOOSE_BYTES:
            self._join()

    def _join(self) -> None:
        new = "".join(self._parts).encode("utf-8", "surrogatepass")
        self._joined.append(new)
        self._held.bytes += len(new) + _BLOCK_BYTES
        self._parts.clear()
        self._loose_bytes = 0

    def drop(self) -> None:
        """Counts it off: it is about to be replaced."""
        self._held.bytes -= _TEXT_BYTES + sum(map(len, self._joined)) + _BLOCK_BYTES * len(self._joined)

    def __str__(self) -> str:
        if not self._joined:
            return "".join(self._parts)
        self._join()
        if self._held.shown is not None:
            return self._beginning(self._held.shown)
        return b"".join(self._joined).decode("utf-8", "surrogatepass")

    def _beginning(self, size: int) -> str:
        blocks: list[bytes] = []
        for block in self._joined:
            blocks.append(block[:size])
            size -= len(block)
            if size <= 0:
                break
        return b"".join(blocks).decode("utf-8", "ignore")


class Entries:
    """A list of JSON values. What orjson can't write in them is cleaned at once, as it would be at the end."""

    __slots__ = ("_blocks", "_held", "_recent")

    def __init__(self, held: Held) -> None:
        self._held = held
        self._blocks: list[bytes] = []  # each entry with a comma before it
        self._recent = bytearray()  # not the bytes that orjson made: they keep 4 KiB, however short they are
        held.bytes += _TEXT_BYTES

    def add(self, entry: Any) -> None:
        """Appends."""
        try:
            new = orjson.dumps(entry)
        except TypeError:  # a lone surrogate, or an integer beyond 64 bits
            new = orjson.dumps(clean(entry))
        recent = self._recent
        recent += b","
        recent += new
        if len(recent) > _LOOSE_BYTES:
            self._blocks.append(bytes(recent))
            self._held.bytes += len(recent) + _BLOCK_BYTES
            recent.clear()

    def json(self) -> bytes:
        """The list as it stands in a record."""
        blocks = [*self._blocks, bytes(self._recent)]
        blocks[0] = blocks[0][1:]
        return b"".join((b"[", *blocks, b"]"))

    def body(self) -> Any:
        """The list for a body: ready for orjson. To read 20,000 entries again would stop the loop for 0.7 s."""
        if self._held.shown is not None and self._blocks:
            return None
        return orjson.Fragment(self.json()) if self._blocks or self._recent else []

    def drop(self) -> None:
        """Counts it off: it is about to be replaced."""
        self._held.bytes -= _TEXT_BYTES + sum(map(len, self._blocks)) + _BLOCK_BYTES * len(self._blocks)


def weigh(value: Any) -> int:
    """The bytes that a JSON value takes as objects, beside its place in what holds it. Linear in its values."""
    total = 0
    nodes = [value]
    for node in nodes:  # more come while it goes on
        kind = type(node)
        if kind is str:
            total += len(node) if node.isascii() else 4 * len(node)
        elif kind is dict:
            total += NODE_BYTES * len(node) + 4 * len("".join(node))
            nodes += node.values()
        elif kind is list:
            total += BYTES_PER_VALUE * len(node)
            nodes += node
        elif kind is int:
            total += node.bit_length() // 8  # thousands of digits may come
    return total


def plain(body: dict[str, Any]) -> dict[str, Any]:
    """A body as plain values, for those who read it; those who write it need no such copy."""
    read: dict[str, Any] = orjson.loads(orjson.dumps(body))
    return read
