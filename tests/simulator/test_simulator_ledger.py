"""The ledger, which tests use as their oracle: every request once, and no more memory than is said."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import aiohttp
import orjson
import pytest

from runner.errors import UsageError
from runner.simulator import Ledger, prompt_key, running_app, serve
from runner.simulator import ledger as ledgers
from tests.simulator.simulator_client import FAST, Clock, chat, post
from tests.simulator.simulator_reference import BODIES, rehearse


def lines(path):
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


async def test_the_file_has_a_line_for_each_arrival_and_one_with_everything_for_each_end(tmp_path):
    with Ledger(file=tmp_path / "log") as ledger:
        async with running_app(FAST, ledger) as url:
            for path, body in BODIES.values():
                await post(url, path, body)
            await post(url, "/chat/completions", b"{")
            await post(url, "/chat/completions", rehearse("http_500", chat()))
            await post(url, "/chat/completions", rehearse("reset_before_headers", chat()))
    arrivals = [line for line in lines(tmp_path / "log") if line["event"] == "arrive"]
    ends = [line for line in lines(tmp_path / "log") if line["event"] == "end"]
    count = len(BODIES) + 3
    assert [line["n"] for line in arrivals] == [line["n"] for line in ends] == list(range(1, count + 1))
    assert set(ends[0]) == {"event", "n", "t", "end", "endpoint", "key", "status", "tokens", "fault", "disconnected"}
    assert all(line["end"] >= line["t"] for line in ends)
    assert [line["key"] for line in ends[:-3]] == [prompt_key(body) for _, body in BODIES.values()]
    assert [line["endpoint"] for line in ends[:-3]] == [path for path, _ in BODIES.values()]
    assert [line["status"] for line in ends] == [200] * len(BODIES) + [400, 500, None]
    assert all(line["tokens"] > 0 for line in ends[:-3] if line["endpoint"] != "/embeddings")
    # a reset is the simulator's own doing
    assert not any(line["disconnected"] for line in ends)
    assert [line["fault"] for line in ends[-3:]] == [None, "http_500", "reset_before_headers"]
    assert [line["key"] for line in ends[-3:]] == [None, prompt_key(chat()), prompt_key(chat())]


async def test_a_request_is_in_the_file_before_its_answer_begins(tmp_path):
    with Ledger(file=tmp_path / "log") as ledger:
        async with (
            running_app(FAST, ledger) as url,
            aiohttp.ClientSession() as session,
            session.post(url + "/chat/completions", json=rehearse("stall_first", chat())),
        ):
            assert [line["event"] for line in lines(tmp_path / "log")] == ["arrive"]


async def test_a_second_server_adds_to_the_file_of_the_first(tmp_path):
    for _ in range(2):
        with Ledger(file=tmp_path / "log") as ledger:
            async with running_app(FAST, ledger) as url:
                await post(url, "/chat/completions", chat())
    assert [line["event"] for line in lines(tmp_path / "log")] == ["arrive", "end"] * 2


async def test_a_file_that_cannot_be_had_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="can't write"):
        await serve(FAST, "127.0.0.1", 0, ready=lambda _: None, stop=asyncio.Event(), log=tmp_path / "no" / "log")


async def test_a_client_that_leaves_in_the_middle_is_entered_as_gone():
    ledger = Ledger()
    async with running_app(FAST, ledger) as url, aiohttp.ClientSession() as session:
        body = rehearse("endless", chat(), tokens_per_s=1_000)
        async with session.post(url + "/chat/completions", json=body) as response:
            await response.content.readany()
        while ledger.in_flight:  # noqa: ASYNC110 - a plain record, without an event to wait for
            await asyncio.sleep(0)
    assert (ledger.disconnects, ledger.log[0].disconnected, ledger.log[0].status) == (1, True, 200)


async def test_stats_show_counts_and_as_many_entries_as_are_asked_for():
    async with running_app(FAST) as url, aiohttp.ClientSession() as session:
        for number in range(5):
            await post(url, "/chat/completions", chat(str(number % 2)))
        stats = []
        for query in ("", "?log=2", "?log=0", "?log=99", "?log=x"):
            async with session.get(f"{url.removesuffix('/v1')}/stats{query}") as response:
                stats.append(orjson.loads(await response.read()))
    assert stats[0]["synthetic"] is True
    assert (stats[0]["requests"], stats[0]["by_status"], stats[0]["in_flight"]) == (5, {"200": 5}, 0)
    assert stats[0]["by_key"] == {prompt_key(chat("0")): 3, prompt_key(chat("1")): 2}
    assert [len(one["log"]) for one in stats] == [5, 2, 0, 5, 5]
    assert [entry["n"] for entry in stats[1]["log"]] == [4, 5]


async def test_what_is_beside_the_api_needs_no_key_and_counts_for_nothing():
    ledger = Ledger()
    async with running_app(replace(FAST, seed=7, api_key="sk-x"), ledger) as url, aiohttp.ClientSession() as session:
        root = url.removesuffix("/v1")
        async with session.get(root + "/health") as response:
            assert (response.status, await response.json()) == (200, {"status": "ok", "synthetic": True, "seed": 7})
        async with session.get(root + "/stats") as response:
            assert response.status == 200
        async with session.put(root + "/anything") as response:
            assert (response.status, (await response.json())["error"]["message"]) == (
                404,
                "Invalid URL (PUT /anything)",
            )
    assert ledger.requests == 0


async def test_every_answer_says_that_it_is_synthetic():
    async with running_app(FAST) as url:
        for path, body in BODIES.values():
            assert "synthetic" in (await post(url, path, body)).headers["server"]
        async with aiohttp.ClientSession() as session, session.get(url + "/models") as response:
            model = orjson.loads(await response.read())["data"][0]
    assert model["owned_by"] == "synthetic"
    assert model["id"].startswith("synthetic")


def test_the_ledger_forgets_the_oldest_entries_and_keys(monkeypatch):
    monkeypatch.setattr(ledgers, "SIMULATOR_KEYS", 10)
    monkeypatch.setattr(ledgers, "SIMULATOR_LOG_ENTRIES", 20)
    ledger = Ledger(clock=Clock())
    for number in range(1_000):
        entry = ledger.arrive("/chat/completions", f"{number:032x}")
        ledger.let_in(entry)
        ledger.leave(entry)
    assert (len(ledger.by_key), len(ledger.served), len(ledger.log)) == (10, 10, 20)
    assert (ledger.requests, ledger.in_flight, ledger.log[-1].n) == (1_000, 0, 1_000)
