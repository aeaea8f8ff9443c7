"""What sends: a request leaves at its moment, not before it, and never after a stop."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager

import anyio
import orjson
import pytest

from runner.load.crew import Alone
from runner.load.engine import Engine, Request
from runner.load.pacer import Pacer
from runner.load.sender import Workload
from runner.load.spec import LevelSpec
from runner.redact import Redactor
from runner.settings import Price, Settings
from runner.wiring import targets_of
from tests.load.fakes import supply
from tests.raw_server import listening

LEVEL = {"level": "x", "repeat": 0, "run": 0}
ANSWER = b'{"object": "chat.completion", "model": "m", "choices": [{"index": 0, "message": {"role": "assistant", '
ANSWER += b'"content": "hello"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}'
UNCOUNTED = ANSWER[: ANSWER.index(b', "usage"')] + b"}"
FOUND, WITHOUT_USAGE = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    for body in (ANSWER, UNCOUNTED)
)
FORBIDDEN = b"HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n"
REFUSED = b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n"


class Gate(Pacer):
    """A pacer whose moments come when the test says so."""

    def __init__(self, lets_through=0):
        self.lets_through = lets_through
        self.waits = 0
        self.waited_for = anyio.Event()
        self.come = anyio.Event()

    async def until(self, moment_s):
        if self.lets_through > 0:
            self.lets_through -= 1
            return
        self.waits += 1
        self.waited_for.set()
        await self.come.wait()

    def close(self):
        """Has nothing to give back."""


class Noting:
    """Answers every request, with the first of these or the last; notes when each arrived."""

    def __init__(self, *answers):
        self.answers = answers or (FOUND,)
        self.arrived = []

    async def __call__(self, reader, writer):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            self.arrived.append(time.monotonic())
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
            writer.write(self.answers[min(len(self.arrived), len(self.answers)) - 1])
            await writer.drain()


@asynccontextmanager
async def sending(server, folder, **settings):
    """An engine that sends to it."""
    async with listening(server) as port:
        made = Settings(base_url=f"http://127.0.0.1:{port}/v1", model="m", **({"max_attempts": 1} | settings))
        async with targets_of(made, None) as targets:
            engine = Engine(made, targets, folder, Redactor())
            async with engine.running():
                yield engine


def request(number, scheduled):
    return Request(supply().job(number), scheduled)


async def many(engine, *requests, zero_s):
    """Their answers, by number."""
    answers = {}

    async def one(number, wanted):
        answers[number] = await engine.send(wanted, LEVEL, zero_s)

    async with anyio.create_task_group() as tasks:
        for number, wanted in enumerate(requests):
            tasks.start_soon(one, number, wanted)
    return [answers[number] for number in range(len(requests))]


def stamps(folder):
    return [orjson.loads(line)["runner"]["load"] for line in (folder / "results.jsonl").read_bytes().splitlines()]


ORDER = ("scheduled_s", "admitted_s", "sent_s", "headers_s", "end_s")


async def test_a_request_is_not_posted_before_its_moment_however_early_it_is_handed_in(tmp_path):
    server = Noting()
    async with sending(server, tmp_path) as engine:
        zero_s = time.monotonic()
        moments = (0.03, 0.01, 0.02, 0.0)
        answers = await many(engine, *(request(k, moment) for k, moment in enumerate(moments)), zero_s=zero_s)
    assert all(found is not None and found.sample.ok for found in answers)
    for moment, arrived in zip(sorted(moments), sorted(server.arrived), strict=True):
        assert arrived >= zero_s + moment
    for said in stamps(tmp_path):
        times = [said[name] for name in ORDER]
        assert times == sorted(times)


async def test_a_request_without_an_answer_was_sent_when_it_was_posted_and_not_when_it_was_made(tmp_path):
    async with sending(Noting(REFUSED), tmp_path) as engine:
        found = await engine.send(request(0, 0.01), LEVEL, time.monotonic())
    assert found is not None
    sample = found.sample
    assert sample.ending == "failed"
    assert 0.01 < sample.sent < sample.end
    (record,) = (orjson.loads(line) for line in (tmp_path / "results.jsonl").read_bytes().splitlines())
    assert record["runner"]["duration_s"] == pytest.approx(sample.end - sample.sent, abs=2e-6)


@pytest.mark.parametrize(
    ("answer", "model", "stops"), [(FOUND, "m", False), (FOUND, "x", True), (WITHOUT_USAGE, "m", True)]
)
async def test_an_answer_of_unknown_cost_stops_a_test_that_may_not_cost_more_than_so_much(
    tmp_path, answer, model, stops
):
    prices = {model: Price(input=1.0, output=1.0)}
    async with sending(Noting(answer), tmp_path, prices=prices, max_cost=1.0) as engine:
        found = await engine.send(request(0, 0.0), LEVEL, time.monotonic())
        assert found is not None
        assert found.sample.ok
        assert engine.drain.asked == stops


async def test_a_failure_that_names_no_cost_stops_nothing(tmp_path):
    prices = {"m": Price(input=1.0, output=1.0)}
    async with sending(Noting(REFUSED), tmp_path, prices=prices, max_cost=1.0) as engine:
        await engine.send(request(0, 0.0), LEVEL, time.monotonic())
        assert not engine.drain.asked


async def test_a_request_whose_answer_stops_the_test_was_sent_when_it_was_posted(tmp_path):
    async with sending(Noting(FORBIDDEN), tmp_path) as engine:
        found = await engine.send(request(0, 0.01), LEVEL, time.monotonic())
        assert engine.drain.asked
    assert found is not None
    assert found.sample.ending == "failed"
    assert 0.01 < found.sample.sent < found.sample.end
    assert stamps(tmp_path) == []


async def test_one_that_is_stopped_before_its_moment_is_not_sent_and_leaves_no_record(tmp_path):
    server = Noting()
    async with sending(server, tmp_path) as engine:
        gate = engine.pacer = Gate()

        async def stop():
            await gate.waited_for.wait()
            assert engine.early == 1
            engine.drain.ask(130, "SIGINT")
            gate.come.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stop)
            assert await engine.send(request(0, 1e6), LEVEL, time.monotonic()) is None
    assert (server.arrived, engine.early) == ([], 0)
    assert stamps(tmp_path) == []


async def test_one_of_a_closed_loop_that_can_never_be_sent_was_due_when_it_was_asked_for(tmp_path):
    server = Noting()
    async with sending(server, tmp_path, tpm=1) as engine:
        found = await engine.send(request(0, None), LEVEL, time.monotonic() - 5.0)
    assert found is not None
    assert found.sample.ending == "dropped"
    assert found.sample.due is not None
    assert found.sample.due >= 5.0
    assert server.arrived == []
    assert stamps(tmp_path) == [{**LEVEL, "asked_s": pytest.approx(found.sample.due, abs=1e-6)}]


async def test_one_of_a_closed_loop_that_waits_for_limits_at_the_end_was_due_when_it_was_asked_for(tmp_path):
    async with sending(Noting(), tmp_path) as engine:
        engine.drain.ask(130, "SIGINT")
        found = await engine.send(request(0, None), LEVEL, time.monotonic() - 5.0)
    assert found is not None
    assert found.sample.ending == "waiting"
    assert found.sample.due is not None
    assert found.sample.due >= 5.0


@pytest.mark.parametrize("is_due", [True, False])
async def test_one_that_the_door_turns_away_counts_as_waiting_only_where_it_was_due(tmp_path, is_due):
    server = Noting()
    async with sending(server, tmp_path) as engine:
        engine.drain.ask(130, "SIGINT")
        found = await engine.send(request(0, 0.0 if is_due else 1e6), LEVEL, time.monotonic())
    assert (found is not None and found.sample.ending == "waiting") == is_due
    assert server.arrived == []


async def test_one_that_is_cancelled_before_its_moment_is_not_sent_and_the_next_one_is(tmp_path):
    server = Noting()
    async with sending(server, tmp_path) as engine:
        pacer = engine.pacer
        gate = engine.pacer = Gate()

        async def cut():
            await gate.waited_for.wait()
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cut)
            await engine.send(request(0, 1e6), LEVEL, time.monotonic())
        assert (server.arrived, engine.early) == ([], 0)
        engine.pacer = pacer
        found = await engine.send(request(0, 0.01), LEVEL, time.monotonic())
    assert found is not None
    assert len(server.arrived) == 1


async def test_what_waits_for_its_moment_is_neither_in_flight_nor_sent_and_after_a_stop_was_never_offered(tmp_path):
    server = Noting()
    async with sending(server, tmp_path) as engine:
        gate = engine.pacer = Gate(lets_through=2)  # the level's start, and the time to make the request
        crew = Alone(engine, Workload(supply()), None)
        measured = []

        async def level():
            spec = LevelSpec("open", 1.0, "x", arrivals="constant", requests=1)
            measured.append(await crew.run(spec, time.monotonic() + 1e6))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(level)
            await gate.waited_for.wait()
            live = crew.live
            assert (live.in_flight, live.waiting, live.sent) == (0, 0, 0)
            crew.stop()
            gate.come.set()
    assert not measured[0].complete
    assert measured[0].statistics.counts["offered"] == 0
    assert server.arrived == []


async def test_a_repeated_attempt_waits_for_its_backoff_and_for_no_moment(tmp_path):
    server = Noting(REFUSED, FOUND)
    async with sending(server, tmp_path, max_attempts=2) as engine:
        gate = engine.pacer = Gate()
        gate.come.set()
        engine._bench.sleep = lambda seconds: asyncio.sleep(0)
        moment_s = time.monotonic() + 1e6
        # Its first attempt has to wait; by the second its moment has passed.
        engine.clock = lambda: moment_s + (1.0 if gate.waits else -1.0)
        found = await engine.send(request(0, 1e6), LEVEL, moment_s - 1e6)
    assert found is not None
    assert found.sample.ok
    assert found.sample.attempts == 2
    assert (gate.waits, len(server.arrived)) == (1, 2)


async def test_what_was_waited_for_limits_before_the_moment_is_no_wait(tmp_path):
    server = Noting()
    async with sending(server, tmp_path) as engine:
        acquire = engine._bench.admission.acquire

        async def slowly(*args, **kwargs):
            ticket = await acquire(*args, **kwargs)
            ticket.limiter_wait_s = 5.0
            return ticket

        engine._bench.admission.acquire = slowly
        answers = await many(engine, *(request(k, 0.02) for k in range(4)), zero_s=time.monotonic())
    for found in answers:
        waited_s = found.sample.value("queue_wait")
        assert waited_s is not None
        assert 0.0 <= found.sample.limiter_wait_s <= waited_s
    records = [orjson.loads(line)["runner"] for line in (tmp_path / "results.jsonl").read_bytes().splitlines()]
    assert sorted(record["limiter_wait_s"] for record in records) == pytest.approx(
        sorted(found.sample.limiter_wait_s for found in answers), abs=1e-6
    )
