"""A stream that is taken where its bytes arrive ends as the same stream does when a task reads it."""

from __future__ import annotations

import random
import time

import anyio
import httpx2
import pytest

from runner.attempt import run_attempt
from runner.deadlines import Deadlines
from runner.faults import FaultKind
from runner.jobs import StopAfter
from runner.limits import SLICE_BYTES
from runner.outcome import Completed, Failed
from runner.testing.virtual_time import run_virtual
from tests.scripted import FOREVER, HELLO, ListSink, ScriptedBody, ScriptedClient, chat_chunk, chat_job, sse

LONG = sse(*(chat_chunk(f"w{i} " * 40) for i in range(2_000)), chat_chunk(finish="stop"), "[DONE]")


class PouringBody(ScriptedBody):
    """A body that calls for each block, as one does whose bytes arrive in a callback of the loop."""

    async def pour(self, take):
        while block := await self.read():
            if take([block], [time.monotonic_ns()]):
                return True
        return False


class PouringClient(ScriptedClient):
    async def post(self, api, content, *, stream):
        body = await super().post(api, content, stream=stream)
        return PouringBody(body._script).announcing(self.headers)


class FullDisk(ListSink):
    """Has room again a second after each `every` deltas."""

    def __init__(self, every):
        super().__init__()
        self._every = every
        self._taken = 0
        self.waited = 0

    @property
    def has_room(self):
        return len(self.deltas) - self._taken < self._every

    async def room(self):
        await anyio.sleep(1)
        self.waited += 1
        self._taken = len(self.deltas)


def attempt(client, sink, *, deadlines=None, **job):
    async def main():
        return await run_attempt(
            client,
            chat_job(**job),
            b"{}",
            choices=1,
            deadlines=deadlines or Deadlines(),
            sink=sink,
            on_headers=lambda response: None,
        )

    return run_virtual(main)


def cut(stream, seed, pieces=40):
    print(f"seed {seed}")
    places = sorted(random.Random(seed).sample(range(1, len(stream)), min(pieces, len(stream) - 1)))
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]


ENDINGS = {
    "whole": [HELLO],
    "pieces": cut(HELLO, 1),
    "truncated": [HELLO[: len(HELLO) // 2]],
    "broken": [HELLO[:200], httpx2.ReadError("reset")],
    "no JSON": [sse(chat_chunk("a")), b"data: {\n\n"],
    "an error inside": [sse(chat_chunk("a"), {"error": {"code": "server_error", "message": "m"}})],
    "much at once": [LONG],
    "much in pieces": cut(LONG, 2),
    "silent": [HELLO[:200], FOREVER],
}


@pytest.mark.parametrize("script", ENDINGS.values(), ids=ENDINGS)
def test_poured_and_read_end_alike(script):
    seen = []
    for kind in (ScriptedClient, PouringClient):
        sink = ListSink()
        attempted = attempt(kind([script]), sink, deadlines=Deadlines(idle_s=5.0))
        seen.append((attempted.outcome, attempted.chunks, attempted.status, [delta.payload for delta in sink.deltas]))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("kind", [ScriptedClient, PouringClient])
def test_a_disk_that_is_behind_stops_a_stream_in_the_middle_of_a_block_and_nothing_is_lost_or_doubled(kind):
    assert len(LONG) > 3 * SLICE_BYTES
    sink, free = FullDisk(every=100), ListSink()
    behind = attempt(kind([[LONG]]), sink, deadlines=Deadlines(idle_s=0.5))
    at_once = attempt(kind([[LONG]]), free)
    assert sink.waited >= len(LONG) // SLICE_BYTES
    assert isinstance(behind.outcome, Completed)
    assert behind.outcome == at_once.outcome
    assert [delta.payload for delta in sink.deltas] == [delta.payload for delta in free.deltas]


@pytest.mark.parametrize("kind", [ScriptedClient, PouringClient])
def test_a_stream_that_is_stopped_on_purpose_takes_no_more(kind):
    sink = ListSink()
    attempted = attempt(kind([[LONG[:5_000], LONG[5_000:]]]), sink, stop_after=StopAfter(chunks=3, chars=None))
    assert isinstance(attempted.outcome, Completed)
    assert (attempted.outcome.finish, attempted.chunks, len(sink.deltas)) == ("stop_after", 3, 3)


def test_a_fault_while_a_block_is_taken_is_the_attempts_own():
    attempted = attempt(PouringClient([[sse(chat_chunk("a")), b"data: []\n\n", FOREVER]]), ListSink())
    assert isinstance(attempted.outcome, Failed)
    assert attempted.outcome.fault.kind is FaultKind.MALFORMED


def test_a_body_that_can_only_be_read_is_poured_by_a_loop():
    async def main():
        taken: list[bytes] = []

        def take(blocks, arrived_ns):
            assert len(arrived_ns) == len(blocks)
            taken.extend(blocks)
            return taken[-1] == b"b"

        body = ScriptedBody([b"a", b"b", b"c"])
        assert await body.pour(take) is True
        assert await body.pour(take) is False
        return taken

    assert run_virtual(main) == [b"a", b"b", b"c"]
