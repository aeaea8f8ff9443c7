"""What has arrived of one answer, and the one task that waits for it.

The connection puts in blocks where they arrive; the reader takes all that is there, without a task switch, or waits; or
it leaves a function that takes them where they arrive (`pour`), and no task is woken for a chunk. Where that allows it
(`gathers`), small blocks wait for each other: all that an answer consists of is then touched once for several tokens.
A body outlives its connection's interest in it: when the last byte is in, the connection serves another request while
the blocks are still being read.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import ClassVar, Protocol

import httpx2

from runner.limits import GATHER_BYTES, GATHER_S, GATHERED_PER_S, MAX_GATHER_S
from runner.transport import ResponseBody, Take

_DONE = (b"[DONE]\n\n", b"[DONE]\r\n\r\n")
_SHARES = itertools.cycle([1 - 0.4 * (number * 13 % 32) / 32 for number in range(32)])
"""Of the time for which blocks may gather, body after body: 200 streams that began together would be taken together,
for ten ms, in which nobody would notice what arrives."""


class Source(Protocol):
    """What a body asks of its connection."""

    def resume(self) -> None:
        """The reader has caught up: read the socket again."""

    def abort(self) -> None:
        """Nobody wants the rest."""


class Body(ResponseBody):
    """A body whose blocks are put in where they arrive at the socket."""

    __slots__ = (
        "_blocks",
        "_ended",
        "_error",
        "_is_ripe",
        "_source",
        "_take",
        "_timer",
        "_times",
        "_waiter",
        "size",
    )

    _poured: ClassVar[int] = 0  # bodies of this process that are being poured

    def __init__(self, source: Source, sent_ns: int) -> None:
        super().__init__(sent_ns)
        self._source = source
        self._blocks: list[bytes] = []
        self._times: list[int] = []  # when each arrived: two lists, since a tuple for each would be the collector's
        self._is_ripe = False  # what waits need wait no longer
        self._ended = False
        self._error: httpx2.TransportError | None = None
        self._take: Take | None = None
        self._waiter: asyncio.Future[bool] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.size = 0
        """Bytes that have arrived and not been read."""

    # ── The connection's side ────────────────────────────────────────────────────────────────────────────────────

    def open(self, status: int, headers: list[tuple[bytes, bytes]], now_ns: int) -> None:
        """The answer's headers are in."""
        self.status = status
        self.headers = headers
        self.headers_ns = now_ns

    def put(self, block: bytes, now_ns: int) -> bool:
        """A piece of the body is in; True where it waits with others, so that `wake` has nothing to do."""
        self._blocks.append(block)
        self._times.append(now_ns)
        size = self.size = self.size + len(block)
        # Most streams end so, though the connection may have more to say.
        is_ripe = self._is_ripe = size >= GATHER_BYTES or block.endswith(_DONE)
        return not is_ripe and self._timer is not None and self.gathers

    def end(self, error: httpx2.TransportError | None = None) -> None:
        """The last piece is in, or nothing more will come."""
        self._ended = True
        self._error = error

    def wake(self) -> None:
        """Lets the waiting task see what has come, or what it left behind."""
        if self._waiter is None or self._waiter.done():
            return
        if self._take is None:
            self._waiter.set_result(False)
        elif self.gathers and self._blocks and not self._is_ripe and not self._ended:
            if self._timer is None:
                self._timer = self._waiter.get_loop().call_later(self.gather_s * next(_SHARES), self._due)
        else:
            self._give(self._take, self._waiter)

    @property
    def gather_s(self) -> float:
        """See `ResponseBody`."""
        return min(max(GATHER_S, Body._poured / GATHERED_PER_S), MAX_GATHER_S)

    def _due(self) -> None:
        self._timer = None
        self.catch_up()

    def catch_up(self) -> None:
        """See `ResponseBody`."""
        if self._blocks and self._take is not None and self._waiter is not None and not self._waiter.done():
            self._give(self._take, self._waiter)

    def _give(self, take: Take, waiter: asyncio.Future[bool]) -> None:
        try:
            enough = bool(self._blocks) and take(*self._all())
        except Exception as error:  # the task's, not the connection's
            waiter.set_exception(error)
            del waiter  # or the error, its traceback, this frame and the future would hold each other, and the answer;
            # so may no frame above hold it
        else:
            if enough or self._ended:
                waiter.set_result(enough)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self._ended

    async def wait(self) -> bool:
        """Returns after the next `wake`; True if `pour`'s function has had enough."""
        assert self._waiter is None, "two tasks read one body"
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None

    async def opened(self) -> None:
        """Returns when the headers are in.

        Raises:
            httpx2.TransportError: they won't come.
        """
        while not self.status and not self._ended:
            await self.wait()
        if self._error is not None and not self.status:
            raise self._error

    # ── The reader's side ────────────────────────────────────────────────────────────────────────────────────────

    async def read(self) -> bytes:
        """See `ResponseBody`."""
        while not self._blocks:
            if self._ended:
                if self._error is not None:
                    raise self._error
                return b""
            await self.wait()
        if not self._ended:
            self._source.resume()
        blocks, _ = self._all()
        return b"".join(blocks)

    async def pour(self, take: Take) -> bool:
        """See `ResponseBody`."""
        Body._poured += 1
        self._take = take
        try:
            while self._blocks or not self._ended:
                if not self._ended:
                    self._source.resume()
                if self._blocks:
                    if take(*self._all()):
                        return True
                elif await self.wait():
                    return True
        finally:
            Body._poured -= 1
            self._take = None
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        if self._error is not None:
            raise self._error
        return False

    def _all(self) -> tuple[list[bytes], list[int]]:
        taken = self._blocks, self._times
        self.arrived_ns = self._times[0]
        self._blocks, self._times = [], []
        self.size = 0
        return taken

    @property
    def at_end(self) -> bool:
        """See `ResponseBody`."""
        return self._ended and self._error is None and not self._blocks

    async def aclose(self) -> None:
        """Closes the connection unless the body is whole; the connection was given back when its last byte came."""
        if not self._ended:
            self.end(httpx2.ReadError("the body was closed before its end"))
            self.wake()
            self._source.abort()
