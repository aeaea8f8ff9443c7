"""Scenarios that take their time: what is sent before the stall, and that the answer after it is the right one.

The hour that a stall lasts is nothing here: what is asked is what stands on the wire before and after it.
"""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

import orjson
import pytest

from runner.simulator import Ledger, exchange, expected_text, running_app
from runner.simulator.scenarios import stalled
from tests.simulator.simulator_client import FAST, chat, post
from tests.simulator.simulator_reference import BODIES, DELIVERIES, STREAMS, rehearse

EVERY = pytest.mark.parametrize(("endpoint", "stream"), DELIVERIES)


@pytest.fixture
def no_patience(monkeypatch):
    """A stall ends at once, as it else does after an hour."""
    monkeypatch.setattr(exchange, "SIMULATOR_STALL_S", 0.0)


async def both(name, endpoint, stream, **more):
    path, body = BODIES[endpoint]
    async with running_app(FAST) as url:
        return await post(url, path, {**body, "stream": stream}), await post(
            url, path, rehearse(name, body, stream, **more)
        )


@EVERY
async def test_slow_headers_send_nothing_before_the_end(no_patience, endpoint, stream):
    _, bad = await both("slow_headers", endpoint, stream)
    assert (bad.status, bad.body, bad.ending) == (None, b"", "eof")


@EVERY
async def test_a_stall_before_the_first_token_sends_headers_alone(no_patience, endpoint, stream):
    _, bad = await both("stall_first", endpoint, stream)
    assert (bad.status, bad.body, bad.ending) == (200, b"", "eof")
    assert bad.headers["transfer-encoding"] == "chunked"


@EVERY
async def test_a_stall_in_the_middle_sends_half(no_patience, endpoint, stream):
    good, bad = await both("stall_mid", endpoint, stream)
    assert (bad.status, bad.ending) == (200, "eof")
    assert good.body.startswith(bad.body)
    assert 0 < len(bad.body) < len(good.body)


@EVERY
@pytest.mark.parametrize("name", ["slow_headers", "stall_first", "stall_mid"])
async def test_a_stall_of_a_given_length_delays_an_answer_that_is_whole(endpoint, stream, name):
    good, late = await both(name, endpoint, stream, delay_s=0)
    assert (late.body, late.ending) == (good.body, "whole")


@EVERY
async def test_comments_bring_nothing_for_as_long_as_one_listens(monkeypatch, endpoint, stream):
    monkeypatch.setattr(stalled, "SIMULATOR_STALL_S", 0.0105)
    _, bad = await both("comments_forever", endpoint, stream, delay_s=0.001)
    assert (bad.status, bad.ending) == (200, "eof")
    assert bad.body == (b": keep-alive\n\n" if stream else b" ") * 11


@EVERY
async def test_one_byte_at_a_time_is_the_right_answer(monkeypatch, endpoint, stream):
    monkeypatch.setattr(stalled, "SIMULATOR_STALL_S", 0.0505)
    good, bad = await both("one_byte_per_s", endpoint, stream, delay_s=0.001)
    assert (bad.status, bad.ending) == (200, "eof")
    assert bad.body == good.body[:51]


async def test_one_byte_at_a_time_comes_to_an_end():
    body = {"model": "m", "input": "x", "dimensions": 1}
    async with running_app(FAST) as url:
        slow = await post(url, "/embeddings", body | {"simulate": {"fault": "one_byte_per_s", "delay_s": 0}})
        assert (slow.body, slow.ending) == ((await post(url, "/embeddings", body)).body, "whole")


@EVERY
async def test_an_endless_answer_goes_on_until_the_client_leaves(endpoint, stream):
    path, body = BODIES[endpoint]
    ledger = Ledger()
    async with running_app(FAST, ledger) as url:
        taken = await take(url, path, rehearse("endless", body, stream), 2_000_000)
        await until(lambda: not ledger.in_flight)
    assert len(taken) >= 2_000_000
    assert taken.count(b" again") > 1_000 if stream else not taken.strip()
    assert (ledger.by_fault["endless"], ledger.disconnects) == (1, 1)
    assert ledger.log[0].disconnected


@pytest.mark.parametrize("endpoint", [name for name, _ in STREAMS])
async def test_an_endless_answer_keeps_the_pace_that_is_asked_for(endpoint):
    path, body = BODIES[endpoint]
    ledger = Ledger()
    async with running_app(FAST, ledger) as url:
        taken = await take(url, path, rehearse("endless", body, tokens_per_s=2_000), 20_000)
        await until(lambda: not ledger.in_flight)
    assert taken.count(b" again") > 20
    assert ledger.log[0].disconnected


async def take(base_url, path, body, size):
    """The first bytes of an answer's body, HTTP's chunk sizes taken off; then the client is gone."""
    url, data = urlsplit(base_url), orjson.dumps(body)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(f"POST {url.path}{path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)
    await reader.readuntil(b"\r\n\r\n")
    taken = b""
    while len(taken) < size:
        taken += (await reader.readexactly(int(await reader.readuntil(b"\r\n"), 16) + 2))[:-2]
    writer.close()
    await writer.wait_closed()
    return taken


async def until(true):
    """Lets the simulator, which runs in this loop, go on until it has noticed."""
    while not true():  # noqa: ASYNC110 - the ledger is a plain record, and has no event to wait for
        await asyncio.sleep(0)


@pytest.mark.parametrize("name", ["slow_headers", "stall_first", "stall_mid", "comments_forever", "one_byte_per_s"])
async def test_a_client_that_leaves_during_a_stall_is_entered_as_gone(name):
    ledger = Ledger()
    async with running_app(FAST, ledger) as base_url:
        url, data = urlsplit(base_url), orjson.dumps(rehearse(name, chat()))
        _, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.write(
            f"POST {url.path}/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(data)}\r\n\r\n".encode()
        )
        writer.write(data)
        await until(lambda: ledger.in_flight)
        writer.close()
        await until(lambda: not ledger.in_flight)
    assert (ledger.requests, ledger.disconnects) == (1, 1)
    assert (ledger.log[0].fault, ledger.log[0].disconnected) == (name, True)


@pytest.mark.parametrize("name", ["slow_headers", "stall_first", "stall_mid", "comments_forever", "endless"])
async def test_the_server_ends_without_waiting_for_a_stall_and_blames_no_client(name):
    ledger = Ledger()
    async with running_app(FAST, ledger) as url:
        asking = asyncio.create_task(post(url, "/chat/completions", rehearse(name, chat(), tokens_per_s=10)))
        await until(lambda: ledger.log and ledger.log[0].fault)
    await asking
    assert ledger.in_flight == ledger.disconnects == 0


def test_a_rehearsal_says_the_same_as_the_request_without_it():
    assert expected_text(rehearse("stall_mid", chat())) == expected_text(chat())
