"""When events are sent, in virtual time: on a schedule counted from the request, whatever happened in between."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from runner.simulator import pacing
from runner.simulator.exchange import bare
from runner.simulator.pacing import Pace, Player, factors
from runner.simulator.sse import Event, Kind
from runner.testing.virtual_time import run_virtual


class Wire:
    """A socket's transport and aiohttp's writer in one; notes when each write was made."""

    def __init__(self):
        self.writes = []
        self.waiting_bytes = 0
        self.drains = 0
        self.closed = False

    @property
    def transport(self):
        return self

    def write(self, data):
        self.writes.append((round(asyncio.get_running_loop().time(), 6), data))

    def is_closing(self):
        return self.closed

    def get_write_buffer_size(self):
        return self.waiting_bytes

    async def drain(self):
        self.drains += 1
        self.waiting_bytes = 0


def content(count, first=0):
    return [Event(Kind.CONTENT, b"%d," % number) for number in range(first, first + count)]


END = [Event(Kind.FINISH, b"finish"), Event(Kind.DONE, b"done")]


def played(pace, *plays, wire=None, before=None):
    """What was written when; `before` is awaited before each but the first play."""
    wire = wire or Wire()

    async def main():
        player = Player(wire, bare, asyncio.get_running_loop().time(), pace)
        for number, events in enumerate(plays):
            if number and before is not None:
                await before()
            await player.play(iter(events))

    run_virtual(main)
    return wire


def test_each_token_comes_on_time_and_the_end_with_the_last():
    role = Event(Kind.OPEN, b"role")
    wire = played(Pace(0.5, 0.02), [role, *content(4), *END])
    assert wire.writes == [(0, b"role"), (0.5, b"0,"), (0.52, b"1,"), (0.54, b"2,"), (0.56, b"3,finishdone")]


def test_jitter_moves_tokens_but_not_the_rate():
    table = factors(0.3, seed=4)
    assert sum(table) / len(table) == pytest.approx(1)
    assert min(table) > 0
    wire = played(Pace(0, 0.01, table, 7), content(len(table) + 1))
    times = [at_s for at_s, _ in wire.writes]
    assert times[-1] == pytest.approx(0.01 * len(table), abs=1e-4)
    gaps = [after - before for before, after in pairwise(times)]
    assert gaps[:3] == pytest.approx([0.01 * table[7], 0.01 * table[8], 0.01 * table[9]], abs=2e-6)


def test_a_pause_delays_what_was_due_and_nothing_after_it():
    wire = played(Pace(0.1, 0.1), content(2), [*content(6, 2), *END], before=lambda: asyncio.sleep(0.25))
    # due at 0.3 and 0.4: the pause was from 0.2 to 0.45
    assert wire.writes[2:] == [(0.45, b"2,3,"), (0.5, b"4,"), (0.6, b"5,"), (0.7, b"6,"), (0.8, b"7,finishdone")]


def test_without_pacing_all_is_written_in_batches_between_which_others_have_their_turn():
    wire: Any = Wire()
    turns = []

    async def main():
        player = Player(wire, bare, 0.0, Pace(0, 0))
        playing = asyncio.create_task(player.play(iter(content(1_000))))
        while not playing.done():
            turns.append(len(wire.writes))
            await asyncio.sleep(0)

    run_virtual(main)
    assert b"".join(data for _, data in wire.writes) == b"".join(event.data for event in content(1_000))
    assert len(wire.writes) == -(-1_000 // pacing._BATCH)
    assert len(set(turns)) > 5


def test_a_slow_reader_is_waited_for():
    wire: Any = Wire()
    write = wire.write

    def fill(data):
        write(data)
        wire.waiting_bytes = 10**6

    wire.write = fill
    played(Pace(0.1, 0.1), [*content(5), *END], wire=wire)
    assert len(wire.writes) == 5
    assert wire.drains == 5


def test_a_client_that_is_gone_ends_the_play():
    wire: Any = Wire()
    wire.closed = True
    with pytest.raises(ConnectionResetError):
        played(Pace(0, 0), content(1), wire=wire)
    assert wire.writes == []


def test_an_error_among_the_events_ends_the_play_rather_than_hanging_it():
    def broken():
        yield Event(Kind.CONTENT, b"x")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        played(Pace(0.1, 0.1), broken())


def test_a_play_that_is_cancelled_sets_no_further_timer():
    wire: Any = Wire()

    async def main():
        player = Player(wire, bare, 0.0, Pace(0.1, 0.1))
        playing = asyncio.create_task(player.play(iter(content(10))))
        await asyncio.sleep(0.35)
        playing.cancel()
        await asyncio.sleep(5)
        assert playing.cancelled()

    run_virtual(main)
    assert [data for _, data in wire.writes] == [b"0,", b"1,", b"2,"]
