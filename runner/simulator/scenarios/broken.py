"""Connections and bodies that end too early, or bodies that aren't what they should be."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from typing import Final

import orjson
from aiohttp import web

from runner.limits import MIB
from runner.simulator import sse
from runner.simulator.exchange import JSON, Exchange
from runner.simulator.refusals import error_object
from runner.simulator.sse import Event, Kind

_BOMB_BYTES: Final = 1_200 * MIB
_HALF_CHARACTER: Final = "漢".encode()[:2]


async def reset_before_headers(ex: Exchange) -> web.StreamResponse:
    """RST in place of an answer."""
    ex.reset()


async def _to_the_middle(ex: Exchange) -> bytes:
    """Sends the answer up to the cut; returns the event behind it."""
    cut = ex.cut()
    await ex.open()
    await ex.play(cut)
    assert cut.victim is not None  # every answer ends in an event that no cut goes beyond
    return cut.victim.data


async def reset_mid_stream(ex: Exchange) -> web.StreamResponse:
    """RST in the middle."""
    await _to_the_middle(ex)
    ex.reset()


async def fin_mid_stream(ex: Exchange) -> web.StreamResponse:
    """A clean end in the middle."""
    await _to_the_middle(ex)
    return await ex.close()


async def cut_chunk(ex: Exchange) -> web.StreamResponse:
    """The socket is closed inside a chunk of the HTTP body."""
    victim = await _to_the_middle(ex)
    ex.raw(b"%x\r\n%b" % (len(victim), victim[: len(victim) // 2]))
    ex.drop()


async def half_event(ex: Exchange) -> web.StreamResponse:
    """A clean end in the middle of an event."""
    victim = await _to_the_middle(ex)
    await ex.put(victim[: len(victim) // 2])
    return await ex.close()


async def half_utf8(ex: Exchange) -> web.StreamResponse:
    """A clean end in the middle of a character."""
    victim = await _to_the_middle(ex)
    await ex.put(victim[: len(victim) // 2].decode(errors="ignore").encode() + _HALF_CHARACTER)
    return await ex.close()


async def no_finish(ex: Exchange) -> web.StreamResponse:
    """All of the content, but no finish reason, no usage, no [DONE]."""
    await ex.open()
    await ex.play(sse.without(ex.plan.events(), Kind.FINISH, Kind.USAGE, Kind.DONE))
    return await ex.close()


async def done_without_finish(ex: Exchange) -> web.StreamResponse:
    """All of the content and [DONE], but no finish reason."""
    await ex.open()
    await ex.play(sse.without(ex.plan.events(), Kind.FINISH, Kind.DONE))
    if ex.plan.stream:
        await ex.put(sse.DONE.data)
    return await ex.close()


async def finish_without_done(ex: Exchange) -> web.StreamResponse:
    """Everything but [DONE]."""
    await ex.open()
    await ex.play(sse.without(ex.plan.events(), Kind.DONE))
    return await ex.close()


async def html_200(ex: Exchange) -> web.StreamResponse:
    """A login page of a proxy."""
    return ex.whole(200, b"<!doctype html><html><body><h1>Sign in (simulated)</h1></body></html>", "text/html")


async def json_error_200(ex: Exchange) -> web.StreamResponse:
    """An error object under a 200."""
    error = error_object("The server had an error (simulated).", "server_error")
    return ex.whole(200, orjson.dumps({"error": error}), JSON)


async def empty_200(ex: Exchange) -> web.StreamResponse:
    """Headers and nothing else."""
    await ex.open()
    return await ex.close()


def _all(events: Iterator[Event]) -> bytes:
    return b"".join(event.data for event in events)


async def wrong_content_type(ex: Exchange) -> web.StreamResponse:
    """The right body, called something else."""
    await ex.open("application/octet-stream")
    await ex.play(ex.plan.events())
    return await ex.close()


async def gzip_200(ex: Exchange) -> web.StreamResponse:
    """The right body, compressed, whatever the client accepts."""
    await ex.open(headers={"content-encoding": "gzip"})
    await ex.put(gzip.compress(_all(ex.plan.events()), mtime=0))
    return await ex.close()


async def gzip_bomb(ex: Exchange) -> web.StreamResponse:
    """A compressed body that grows a thousandfold: 1.2 GB, or `bytes`, of one line."""
    await ex.open(headers={"content-encoding": "gzip"})
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = packer.compress(b"data: ") + packer.flush(zlib.Z_FULL_FLUSH)
    # After a full flush nothing refers to what came before: one block can be sent again and again. The trailer with
    # the checksum is never sent; who reads so far has had the bomb.
    block = packer.compress(b"a" * MIB) + packer.flush(zlib.Z_FULL_FLUSH)
    await ex.put(head)
    await ex.pour(block for _ in range((ex.plan.rehearsal.bytes or _BOMB_BYTES) // MIB))
    return await ex.close()


async def split_bytes(ex: Exchange) -> web.StreamResponse:
    """The right answer, every byte in a write of its own."""
    await ex.open()
    await ex.until(ex.ttft_s)
    await ex.pour(bytes([byte]) for byte in _all(ex.plan.events()))
    return await ex.close()


async def coalesced(ex: Exchange) -> web.StreamResponse:
    """The right answer in one write."""
    await ex.open()
    await ex.until(ex.duration_s)
    await ex.put(_all(ex.plan.events()))
    return await ex.close()
