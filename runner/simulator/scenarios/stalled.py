"""Answers that take their time: each for another deadline of the client's."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator

from aiohttp import web

from runner.limits import SIMULATOR_STALL_S
from runner.simulator.exchange import Exchange

_COMMENT_S = 0.1
_BYTE_S = 1.0


async def slow_headers(ex: Exchange) -> web.StreamResponse:
    """Nothing at all."""
    await ex.stall()
    return await ex.answer()


async def stall_first(ex: Exchange) -> web.StreamResponse:
    """Headers, and then nothing."""
    await ex.open()
    await ex.stall()
    await ex.play(ex.plan.events())
    return await ex.close()


async def stall_mid(ex: Exchange) -> web.StreamResponse:
    """Half of the answer, and then nothing."""
    events = ex.plan.events()
    cut = ex.cut(events)
    await ex.open()
    await ex.play(cut)
    await ex.stall()
    assert cut.victim is not None  # every answer ends in an event that no cut goes beyond
    await ex.play(itertools.chain([cut.victim], events))
    return await ex.close()


async def comments_forever(ex: Exchange) -> web.StreamResponse:
    """Keep-alive comments and nothing else; white space before a body that isn't streamed."""
    await ex.open()
    return await _drip(ex, itertools.repeat(b": keep-alive\n\n" if ex.plan.stream else b" "), _COMMENT_S)


async def one_byte_per_s(ex: Exchange) -> web.StreamResponse:
    """The right answer, a byte a second."""
    await ex.open()
    return await _drip(ex, (bytes([b]) for event in ex.plan.events() for b in event.data), _BYTE_S)


async def _drip(ex: Exchange, drops: Iterator[bytes], every_s: float) -> web.StreamResponse:
    """Sends one drop after another, for an hour at most."""
    delay_s = ex.plan.rehearsal.delay_s
    every_s = every_s if delay_s is None else max(delay_s, 0.001)
    for number, drop in enumerate(drops):
        if number * every_s > SIMULATOR_STALL_S:
            ex.drop()
        await ex.put(drop)
        await asyncio.sleep(every_s)
    return await ex.close()
