r"""Bytes of an event stream in, events out: the WHATWG algorithm, incremental and bounded.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation

- Lines end in LF, CR or CRLF; a CR at the end of one block and an LF at the start of the next are one line end.
- A leading byte order mark is dropped, comments and unknown fields are ignored.
- Several `data` lines are joined with LF. A blank line dispatches the event if it has data; without data it only
  forgets the event's name. What no blank line closes by the end of the stream was never an event.
- `id` and `retry` are read over: they serve a reconnecting GET, and a prompt is never sent again behind our back.
- Data stays bytes, and so may hold bad UTF-8: whoever parses it says so.

However the bytes are cut, the events are the same. Work is linear in the bytes and memory is bounded by the limit: a
line is searched once, when its bytes arrive.

Where openai's SSEDecoder (3.52) differs: it keeps the byte order mark; raises on bad UTF-8; dispatches an event with a
name, an `id` or a `retry` but no data; and goes on dispatching at every blank line once it has seen an `id`.
"""

from __future__ import annotations

from itertools import repeat

from runner.limits import MAX_SSE_LINE_BYTES, SLICE_BYTES

Frame = tuple[bytes, bytes]
"""What stands before an event's data, and behind it, its blank line included."""
FRAME: Frame = (b"data: ", b"\n\n")
"""The usual one."""

_BOM = b"\xef\xbb\xbf"
_CR = 13


Event = tuple[str, bytes]
"""One dispatched event: its `event` field, empty where the server named none (which a browser calls "message"), and
its data. A NamedTuple's constructor is a Python function, which costs as much as finding the event."""


class LineTooLong(Exception):
    """Raised when one line, or the joined data of one event, passes the limit. The decoder can't go on after it."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"a line or an event of the stream is longer than {limit} bytes")
        self.limit = limit


class Decoder:
    """The state between two blocks: half a line, and the fields of an event that is not closed yet."""

    __slots__ = ("_after_cr", "_blocks", "_blocks_size", "_data", "_head", "_limit", "_line", "_name", "is_idle")

    def __init__(self, limit: int = MAX_SSE_LINE_BYTES) -> None:
        self._limit = limit
        self._head: bytes | None = b""  # bytes that may begin a byte order mark; None once that is settled
        self._line = bytearray()  # the end of the line that has no end yet…
        self._blocks: list[bytes] = []  # …and what stands before: one array that grows would break up the heap
        self._blocks_size = 0
        self._after_cr = False  # the last byte was a CR: an LF next belongs to it
        self._name = ""
        self._data: bytes | bytearray | None = None  # bytes while there is one line of it, so that it isn't copied
        self.is_idle = True
        """Nothing is held: the next byte begins a line, and an event."""

    @property
    def held(self) -> int:
        """Bytes of what has no end yet."""
        if self.is_idle:
            return 0
        return self._blocks_size + len(self._line) + len(self._name) + len(self._data or b"")

    def feed(self, data: bytes) -> list[Event]:
        """Takes the next block and returns the events that it completes.

        Raises LineTooLong as soon as what is pending passes the limit. Events that the same block completed before
        are lost with it; a line that grows block by block meets no such company.
        """
        if (
            self.is_idle
            and data.startswith(b"data: ")
            and data.endswith(b"\n\n")
            and data.find(b"\r") < 0  # `in` would first take it for a number, and raise
            and len(data) <= self._limit
        ):
            if data.find(b"\n") == len(data) - 2:  # one event, of one line: what nearly every read brings
                self._head = None
                return [("", data[6:-2])]
            parts = data[6:-2].split(b"\n\ndata: ")
            if b"".join(parts).find(b"\n") < 0:
                self._head = None
                return list(zip(repeat(""), parts))
        events = self._feed(data)
        held = self._head or self._after_cr or self._line or self._blocks or self._name or self._data is not None
        self.is_idle = not held
        return events

    def _feed(self, data: bytes) -> list[Event]:
        if self._head is not None:
            data = self._without_bom(data, self._head)
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if not data:
            return []
        lines = data.splitlines()  # of bytes: at LF, CR and CRLF, and nowhere else
        last = data[-1]
        rest = b"" if last in b"\r\n" else lines.pop()
        self._after_cr = last == _CR
        if lines and (self._line or self._blocks):
            self._bound(self._blocks_size + len(self._line) + len(lines[0]))
            lines[0] = b"".join([*self._blocks, self._line, lines[0]])
            self._line, self._blocks, self._blocks_size = bytearray(), [], 0
        if len(data) > self._limit:
            self._bound(max(map(len, lines), default=0))
        events = self._take(lines)
        self._bound(self._blocks_size + len(self._line) + len(rest))
        self._line += rest
        if len(self._line) >= SLICE_BYTES:
            self._blocks.append(bytes(self._line))
            self._blocks_size += len(self._line)
            self._line = bytearray()
        return events

    def _without_bom(self, data: bytes, head: bytes) -> bytes:
        data = head + data
        if len(data) < len(_BOM) and _BOM.startswith(data):
            self._head = data
            return b""
        self._head = None
        return data.removeprefix(_BOM)

    def _take(self, lines: list[bytes]) -> list[Event]:
        """Interprets whole lines, each without its end."""
        events: list[Event] = []
        for line in lines:
            if line.startswith(b"data: ") and self._data is None:
                self._data = line[6:]  # what nearly every line is
            elif line:
                self._field(line)
            else:
                if self._data is not None:
                    events.append((self._name, bytes(self._data)))
                    self._data = None
                self._name = ""
        return events

    def _field(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._add_data(value)
        elif field == b"event":
            self._name = value.decode("utf-8", "replace")

    def _add_data(self, value: bytes) -> None:
        if self._data is None:
            self._data = value
            return
        self._bound(len(self._data) + 1 + len(value))
        if isinstance(self._data, bytes):
            self._data = bytearray(self._data)
        self._data += b"\n"
        self._data += value

    def _bound(self, size: int) -> None:
        if size > self._limit:
            self._line, self._blocks, self._blocks_size = bytearray(), [], 0
            self._data = None
            raise LineTooLong(self._limit)
