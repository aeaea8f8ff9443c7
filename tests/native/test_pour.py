"""Blocks are taken where they arrive: the same bytes as reading gives, without a task switch for each."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from contextlib import asynccontextmanager

import httpx2
import pytest
from hypothesis import given, strategies

from runner.limits import GATHER_BYTES, SOCKET_BLOCK_BYTES
from tests.native.fed import Wire
from tests.native.servers import chunked, head, sized, turns

LONG = b"".join(b"data: %d\n\n" % i for i in range(80))
ANSWERS = {
    "sized": sized(LONG),
    "chunked": chunked(*(LONG[i : i + 70] for i in range(0, len(LONG), 70))),
    "until close": head("content-type: text/event-stream") + LONG,
}


@asynccontextmanager
async def asked(head_bytes=b""):
    """A body whose headers have come in `head_bytes`, on a connection that is fed by hand."""
    wire = Wire()
    try:
        exchange = asyncio.ensure_future(wire.connection.exchange(b"", b"", 0))
        await turns()
        wire.feed(head_bytes)
        yield wire, await exchange
    finally:
        wire.close()


def split(answer):
    """The head, and what follows it."""
    end = answer.index(b"\r\n\r\n") + 4
    return answer[:end], answer[end:]


class Taken:
    """A function that keeps what it is given; it has enough when the `enough`-th block is among it."""

    def __init__(self, enough=None):
        self.blocks = []
        self.at_ns = []
        self._enough = enough

    def __call__(self, blocks, arrived_ns):
        before = len(self.blocks)
        self.blocks += blocks
        self.at_ns += arrived_ns
        return self._enough is not None and before < self._enough <= len(self.blocks)

    @property
    def content(self):
        return b"".join(self.blocks)


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
@given(places=strategies.lists(strategies.integers(0, 1_500)))
def test_what_is_poured_is_what_would_be_read_however_it_is_cut(answer, places):
    async def main():
        first, rest = split(answer)
        taken = Taken()
        async with asked(first) as (wire, body):
            pouring = asyncio.ensure_future(body.pour(taken))
            await turns()
            for start, end in zip([0, *sorted(places)], [*sorted(places), len(rest)], strict=True):
                if rest[start:end]:
                    wire.feed(rest[start:end])
            if answer is ANSWERS["until close"]:
                wire.connection.eof_received()
            assert await pouring is False
            assert body.at_end
        return taken.content

    assert asyncio.run(main()) == LONG


async def test_a_block_is_taken_before_any_task_gets_its_turn():
    first, rest = split(ANSWERS["chunked"])
    taken = Taken()
    async with asked(first) as (wire, body):
        pouring = asyncio.ensure_future(body.pour(taken))
        await turns()
        wire.feed(rest[:100])
        assert len(taken.blocks) == 1
        wire.feed(rest[100:])
        assert taken.content == LONG
        assert not pouring.done()
        assert await pouring is False
    assert body.sent_ns < taken.at_ns[0] <= taken.at_ns[1]


async def test_what_came_before_is_poured_first():
    first, rest = split(ANSWERS["sized"])
    async with asked(first + rest) as (_, body):
        taken = Taken()
        assert await body.pour(taken) is False
    assert taken.content == LONG


async def test_who_has_enough_is_given_no_more_and_may_go_on_later():
    first, rest = split(ANSWERS["sized"])
    taken = Taken(enough=1)
    async with asked(first) as (wire, body):
        pouring = asyncio.ensure_future(body.pour(taken))
        await turns()
        wire.feed(rest[:100])
        wire.feed(rest[100:200])
        assert await pouring is True
        assert taken.blocks == [LONG[:100]]
        wire.feed(rest[200:])
        assert await body.pour(taken) is False
    assert taken.content == LONG


async def test_who_has_enough_with_the_last_block_is_told_so():
    first, rest = split(ANSWERS["sized"])
    async with asked(first) as (wire, body):
        pouring = asyncio.ensure_future(body.pour(Taken(enough=1)))
        await turns()
        wire.feed(rest)
        assert await pouring is True
        assert body.at_end


async def test_what_is_raised_while_a_block_is_taken_is_raised_in_the_task_and_nowhere_else():
    def take(blocks, arrived_ns):
        raise KeyError("x")

    unhandled = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unhandled.append(context))
    first, rest = split(ANSWERS["chunked"])
    async with asked(first) as (wire, body):
        pouring = asyncio.ensure_future(body.pour(take))
        await turns()
        wire.feed(rest[:100])
        wire.feed(rest[100:200])
        with pytest.raises(KeyError):
            await pouring
        await body.aclose()
        assert wire.transport.aborted
    assert unhandled == []


async def test_what_was_read_when_it_was_raised_is_free_at_once():
    class Answer:
        pass

    kept = []

    def take(blocks, arrived_ns):
        answer = Answer()
        kept.append(weakref.ref(answer))
        raise KeyError("x")

    async def attempt(body):
        with contextlib.suppress(KeyError):
            await body.pour(take)

    first, rest = split(ANSWERS["chunked"])
    async with asked(first) as (wire, body):
        gc.disable()
        try:
            pouring = asyncio.ensure_future(attempt(body))
            await turns()
            wire.feed(rest[:100])
            await pouring
            assert kept[0]() is None, "it waits for the garbage collector"
        finally:
            gc.enable()


async def test_when_the_connection_breaks_what_came_before_has_been_poured():
    first, rest = split(ANSWERS["chunked"])
    taken = Taken()
    async with asked(first) as (wire, body):
        pouring = asyncio.ensure_future(body.pour(taken))
        await turns()
        wire.feed(rest[:100])
        wire.connection.connection_lost(ConnectionResetError())
        with pytest.raises(httpx2.RemoteProtocolError):
            await pouring
    assert LONG.startswith(taken.content)
    assert taken.content


async def test_after_a_cancellation_nothing_more_is_taken():
    first, rest = split(ANSWERS["chunked"])
    taken = Taken()
    async with asked(first) as (wire, body):
        pouring = asyncio.ensure_future(body.pour(taken))
        await turns()
        pouring.cancel()
        wire.feed(rest[:100])
        with pytest.raises(asyncio.CancelledError):
            await pouring
        wire.feed(rest[100:])
        assert taken.blocks == []
        assert (await body.read()) == LONG  # it wasn't lost either


async def test_a_burst_on_top_of_what_has_gathered_does_not_stop_the_socket():
    """What is taken where it arrives has no reader who would start the socket again."""
    gathered, burst = b"x" * (GATHER_BYTES - 1), b"y" * SOCKET_BLOCK_BYTES
    first, rest = split(sized(gathered + burst + LONG))
    async with asked(first) as (wire, body):
        taken = Taken()
        pouring = asyncio.ensure_future(body.pour(taken))
        await turns()
        body.gathers = True
        wire.feed(rest[: len(gathered)])
        assert taken.blocks == []
        wire.feed(rest[len(gathered) : len(gathered + burst)])
        assert taken.content == gathered + burst
        assert not wire.transport.paused
        wire.feed(rest[len(gathered + burst) :])
        assert await pouring is False


async def test_a_body_that_nobody_reads_stops_the_socket_and_pouring_starts_it_again():
    body_bytes = b"x" * 600_000
    answer = sized(body_bytes)
    first, rest = split(answer)
    async with asked(first) as (wire, body):
        wire.feed(rest[:500_000])
        assert wire.transport.paused
        taken = Taken()
        pouring = asyncio.ensure_future(body.pour(taken))
        await turns()
        assert not wire.transport.paused
        wire.feed(rest[500_000:])
        assert await pouring is False
    assert taken.content == body_bytes
