"""Reader, workers, drain and abort in virtual time, with real admission and attempts; server and disk are fakes."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar

import anyio
import httpx2
import openai
import orjson
import pytest

from runner.admission import Admission
from runner.concurrency import FixedConcurrency
from runner.digests import DigestMap, id_key
from runner.drain import Drain
from runner.errors import OutputError
from runner.faults import Fault, FaultKind
from runner.limits import BACKOFF_ROOM, SOURCE_BATCH_JOBS
from runner.metrics import RunMetrics
from runner.pipeline import Pipeline
from runner.primers import Primers
from runner.redact import Redactor
from runner.reservation import Reservation
from runner.settings import ModelLimits, Settings
from runner.testing.virtual_time import run_virtual
from runner.worker import Bench
from tests.scripted import FOREVER, HELLO, ScriptedBody, chat_chunk, sse

START = sse(chat_chunk("Hel"))
REST = sse(chat_chunk("lo"), chat_chunk(finish="stop"), "[DONE]")
OVERLOADED = sse({"error": {"message": "busy", "type": "server_error", "code": "server_error"}})


@dataclass
class ListJournal:
    """Keeps records and deltas; `disk_s` is how long a record takes to become durable."""

    disk_s: float = 0.0
    full_after: int | None = None
    records: list[dict[str, Any]] = field(default_factory=list)
    deltas: list[dict[str, Any]] = field(default_factory=list)
    _closed: anyio.Event = field(default_factory=anyio.Event)

    async def run(self, *, task_status):
        task_status.started()
        await self._closed.wait()

    async def finish(self, line: bytes) -> None:
        await anyio.sleep(self.disk_s)
        if self.full_after is not None and len(self.records) >= self.full_after:
            raise OutputError("no space left")
        self.records.append(orjson.loads(line))

    def hand_in(self, line: bytes) -> asyncio.Future[None]:
        return asyncio.ensure_future(self.finish(line))

    def delta(self, line: bytes) -> None:
        self.deltas.append(orjson.loads(line))

    def hurry(self) -> None:
        pass

    has_room: ClassVar[bool] = True

    async def room(self) -> None:
        await anyio.lowlevel.checkpoint()

    def close(self) -> None:
        self._closed.set()

    async def wait_closed(self) -> None:
        await self._closed.wait()


@dataclass
class Server:
    """Answers by prompt: the scripts of its requests one after the other, the last one again and again."""

    scripts: dict[str, list[Any]] = field(default_factory=dict)
    default: list[Any] = field(default_factory=lambda: [[0.5, HELLO]])
    requests: list[tuple[float, str]] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)
    bodies: list[ScriptedBody] = field(default_factory=list)
    in_flight: int = 0
    most: int = 0

    def serving(self, model):
        return self

    async def post(self, api, content, *, stream):
        sent = orjson.loads(content)
        self.sent.append(sent)
        prompt = sent["messages"][0]["content"]
        self.requests.append((asyncio.get_running_loop().time(), prompt))
        scripts = self.scripts.setdefault(prompt, list(self.default))
        script = scripts.pop(0) if len(scripts) > 1 else scripts[0]
        if isinstance(script, BaseException):
            raise script
        body = _CountedBody(self, script)
        self.bodies.append(body)
        return body.announcing({"content-type": "text/event-stream"})


class _CountedBody(ScriptedBody):
    def __init__(self, server, script):
        super().__init__(script)
        self._server = server
        server.in_flight += 1
        server.most = max(server.most, server.in_flight)

    async def aclose(self):
        if not self.closed:
            self._server.in_flight -= 1
        await super().aclose()


@dataclass
class World:
    """One run and all that can be looked at afterwards."""

    path: Any
    server: Server = field(default_factory=Server)
    concurrency: int = 4
    settings: dict[str, Any] = field(default_factory=dict)
    disk_s: float = 0.0
    full_after: int | None = None
    resumed: bool = False
    done: dict[str, int] = field(default_factory=dict)
    at: dict[float, Any] = field(default_factory=dict)
    """Virtual time → what happens then, given the drain."""

    def jobs(self, *prompts: str) -> World:
        self.path.write_bytes(b"".join(orjson.dumps({"id": p, "prompt": p}) + b"\n" for p in prompts))
        return self

    def run(self) -> World:
        run_virtual(self._run)
        assert self.admission.statistics().in_flight == 0
        assert self.admission.statistics().waiting == 0
        assert all(body.closed for body in self.server.bodies)
        return self

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        settings = Settings(**self.settings)
        self.admission = Admission.of_one(
            rpm=settings.rpm,
            tpm=settings.tpm,
            concurrency=FixedConcurrency(self.concurrency),
            clock=clock,
            limits=settings.limits,
        )
        self.drain = Drain(self.admission, settings.grace)
        self.journal = ListJournal(self.disk_s, self.full_after)
        self.metrics = RunMetrics(clock, total=None)
        bench = Bench(
            settings=settings,
            clients={"endpoint": self.server},  # type: ignore[dict-item]
            admission=self.admission,
            journal=self.journal,  # type: ignore[arg-type]
            metrics=self.metrics,
            redactor=Redactor(),
            reservation=Reservation(),
            rng=random.Random(1),
            sleep=self.drain.sleep,
            primers=Primers(clock) if settings.primer_first else None,
            resumed=self.resumed,
        )
        done = DigestMap()
        for name, digest in self.done.items():
            done.set(id_key(name), digest)
        pipeline = Pipeline(bench, self.drain, [str(self.path)], done, handle_signals=False)
        async with anyio.create_task_group() as tasks:
            for at, act in self.at.items():
                tasks.start_soon(self._later, at, act)
            await pipeline.run()
            tasks.cancel_scope.cancel()
        self.ended_at = clock()

    async def _later(self, at, act):
        await anyio.sleep(at)
        act(self.drain)

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        named = {record["id"]: record for record in self.journal.records}
        assert len(named) == len(self.journal.records)
        return named


@pytest.fixture
def world(tmp_path, inline_threads):
    return World(tmp_path / "jobs.jsonl")


@pytest.fixture
def inline_threads(monkeypatch):
    """In virtual time there are no threads: what one would do is done in its place."""

    async def inline(function, *args, **_):
        result = function(*args)
        await anyio.lowlevel.checkpoint()
        return result

    monkeypatch.setattr(anyio.to_thread, "run_sync", inline)


def names(count):
    return [f"p{i}" for i in range(count)]


def kinds(world, job):
    return [retry["reason"] for retry in world.records[job]["runner"]["retries"]]


def test_every_job_has_one_record_and_never_more_streams_than_allowed(world):
    world.jobs(*names(50)).run()
    assert world.records.keys() == set(names(50))
    assert world.server.most == 4
    assert len(world.server.requests) == 50


def test_a_job_in_backoff_holds_no_slot(world):
    world.concurrency = 1
    world.server.scripts["a"] = [[OVERLOADED], [HELLO]]
    world.jobs("a", "b", "c").run()
    order = [prompt for _, prompt in world.server.requests]
    assert order[0] == "a"
    assert order[1] == "b"  # while a waits out its backoff
    assert kinds(world, "a") == ["server_error"]


def test_attempts_are_bounded_and_each_is_told(world):
    world.settings = {"max_attempts": 3}
    world.server.scripts["a"] = [[START]]
    world.jobs("a").run()
    record = world.records["a"]
    assert record["error"]["code"] == "truncated"
    assert record["runner"]["attempts"] == 3 == len(world.server.requests)
    assert record["error"]["partial"]["choices"][0]["message"]["content"] == "Hel"
    voids = [line["attempt"] for line in world.journal.deltas if line.get("event") == "void"]
    assert voids == [1, 2]
    assert [line["seq"] for line in world.journal.deltas if "seq" in line] == [0, 0, 0]


def test_a_refused_job_has_one_attempt(world):
    error = {"error": {"message": "no", "type": "invalid_request_error", "code": "invalid_prompt"}}
    world.server.scripts["a"] = [[sse(error)]]
    world.jobs("a").run()
    assert len(world.server.requests) == 1
    assert world.records["a"]["error"]["code"] == "bad_request"


def test_a_resumed_run_voids_what_an_interrupted_one_may_have_left(world):
    world.resumed = True
    world.jobs("a").run()
    assert world.journal.deltas[0] == {"custom_id": "a", "attempt": 0, "event": "void", "reason": "resumed"}


def test_jobs_that_are_done_are_passed_over(world):
    world.jobs("a", "b")
    from runner.lines import LineSplitter
    from runner.parsing import JobParser

    splitter = LineSplitter()
    job = JobParser().parse(splitter.feed(world.path.read_bytes())[0])
    world.done = {"a": job.digest}  # type: ignore[union-attr]
    world.run()
    assert world.records.keys() == {"b"}
    assert world.metrics.resumed == 1


def test_a_changed_job_that_could_not_be_looked_for_stops_the_run(world):
    world.done = {"a": 12345}
    world.jobs("b", "a", "c").run()
    assert world.drain.reason is not None
    assert world.drain.reason.exit_code == 2
    assert "c" not in world.records


def test_a_first_request_to_stop_lets_streams_finish_and_leaves_the_rest(world):
    world.at = {1.2: lambda drain: drain.ask(130, "SIGINT")}
    world.jobs(*names(50)).run()
    assert all(record["error"] is None for record in world.records.values())
    assert len(world.records) == 12  # three rounds of four, half a second each
    assert world.ended_at < 2


def test_a_second_request_cuts_what_would_never_end(world):
    world.server.default = [[START, FOREVER, REST]]
    world.settings = {"idle_timeout": 1e6, "grace": 3600}
    world.at = {1.0: lambda drain: drain.ask(130, "SIGINT"), 2.0: lambda drain: drain.cut()}
    world.jobs(*names(20)).run()
    assert world.records == {}
    assert world.ended_at == pytest.approx(2, abs=0.1)


def test_grace_is_how_long_streams_may_go_on(world):
    world.server.default = [[START, 30, REST]]
    world.settings = {"grace": 5}
    world.at = {1.0: lambda drain: drain.ask(143, "SIGTERM")}
    world.jobs("a").run()
    assert world.records == {}
    assert world.ended_at == pytest.approx(6, abs=0.1)


def test_a_job_that_waits_out_a_backoff_is_given_up_at_once_by_a_stop(world):
    world.server.default = [[OVERLOADED]]
    world.settings = {"grace": 3600, "max_attempts": 100}
    world.at = {30.0: lambda drain: drain.ask(130, "SIGINT")}
    world.jobs("a").run()
    assert world.records == {}
    assert world.ended_at == pytest.approx(30, abs=0.1)


@pytest.mark.parametrize("kind", [kind for kind in FaultKind if Fault(kind, "").row.stops_run])
def test_a_fault_that_every_job_would_meet_stops_the_run(world, kind, monkeypatch):
    world.concurrency = 1
    world.server.scripts["b"] = [[sse({"error": {"message": "x", "code": "x"}})]]
    monkeypatch.setattr("runner.streaming.faults.from_in_stream", lambda error: Fault(kind, "x"))
    world.jobs("a", "b", "c").run()
    assert world.records.keys() == {"a"}
    assert world.drain.reason is not None
    assert world.drain.reason.exit_code == 4


def test_a_defect_of_ours_in_one_job_does_not_take_the_others_with_it(world):
    world.server.scripts["b"] = [[ZeroDivisionError("ours")]]
    world.jobs("a", "b", "c").run()
    assert world.records.keys() == {"a", "b", "c"}
    assert world.records["b"]["error"]["code"] == "internal"
    assert "ZeroDivisionError" in world.records["b"]["error"]["message"]


def test_a_job_that_cannot_even_be_prepared_does_not_take_the_others_with_it(world, monkeypatch):
    from runner.wire import encode_body

    def broken(job, **kwargs):
        if job.id == "b":
            raise ZeroDivisionError("ours")
        return encode_body(job, **kwargs)

    monkeypatch.setattr("runner.worker.encode_body", broken)
    world.jobs("a", "b", "c").run()
    assert world.records["b"]["error"]["code"] == "internal"
    assert len(world.records) == 3


def test_a_disk_that_is_full_ends_the_run_with_its_error(world):
    world.full_after = 7
    world.jobs(*names(50))
    with pytest.raises(BaseExceptionGroup) as raised:
        world.run()
    assert raised.group_contains(OutputError)
    assert len(world.records) == 7
    assert all(body.closed for body in world.server.bodies)


def test_the_reader_runs_ahead_of_the_workers_by_no_more_than_its_bound(world):
    world.server.default = [[FOREVER, HELLO]]
    world.settings = {"total_timeout": 1e6, "idle_timeout": 1e6, "first_token_timeout": 1e6}
    read = []
    import runner.parsing

    original = runner.parsing.JobParser.parse

    def counted(self, line):
        read.append(line.number)
        return original(self, line)

    world.at = {100.0: lambda drain: drain.cut()}
    world.jobs(*names(5_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.parsing.JobParser, "parse", counted)
        world.run()
    # One batch that is being handed out, one that is being read.
    assert len(read) <= 4 * BACKOFF_ROOM + 1 + 2 * SOURCE_BATCH_JOBS


def test_a_slow_disk_stops_the_reader(world):
    world.disk_s = 1_000.0
    world.at = {500.0: lambda drain: drain.cut()}
    world.jobs(*names(5_000)).run()
    assert len(world.server.requests) <= 4 * BACKOFF_ROOM + 1


def test_lines_that_are_no_jobs_wait_for_no_worker_and_for_no_disk_one_by_one(world):
    """A hundred thousand of them took five minutes at a concurrency of 2."""
    world.disk_s = 1.0
    world.concurrency = 1
    world.jobs("a")
    world.path.write_bytes(b"x\n" * 1_000 + world.path.read_bytes())
    world.run()
    assert Counter(record["error"] is None for record in world.records.values()) == {False: 1_000, True: 1}
    assert world.metrics.failed == 1_000
    assert world.ended_at <= 10


def test_lines_that_are_no_jobs_count_as_failures_when_their_records_are_written(world):
    world.settings = {"max_failures": 5}
    world.path.write_bytes(b"x\n" * 5)
    world.run()
    assert (world.drain.reason and world.drain.reason.exit_code, len(world.records)) == (4, 5)


@pytest.mark.parametrize("cut_at", [i * 0.17 for i in range(40)])
def test_cut_at_any_moment_nothing_is_left_open_and_no_job_has_two_records(world, cut_at):
    world.settings = {"rpm": 600, "tpm": 100_000, "max_attempts": 3}
    world.disk_s = 0.05
    world.server.default = [[0.1, START, 0.2, OVERLOADED], [0.1, START, 0.3, REST], [START, 0.2]]
    world.at = {cut_at: lambda drain: drain.cut()}
    world.jobs(*names(30)).run()
    assert len(world.records) <= 30


def test_what_the_user_counts_as_failure_keeps_its_answer(world):
    world.settings = {"fail_on": frozenset({"length"})}
    world.server.scripts["a"] = [[sse(chat_chunk("cut"), chat_chunk(finish="length"), "[DONE]")]]
    world.jobs("a").run()
    record = world.records["a"]
    assert record["error"]["code"] == "unwanted_finish"
    assert record["response"]["body"]["choices"][0]["message"]["content"] == "cut"


def test_a_run_deadline_stops_it(world):
    world.settings = {"deadline": 2.0}
    world.jobs(*names(5_000)).run()
    assert world.drain.reason is not None
    assert world.drain.reason.exit_code == 4
    assert world.ended_at < 3


def test_a_run_that_drains_does_not_wait_for_an_idle_pipe(world, monkeypatch):
    """The reader of standard input may never hear of anything again."""
    from runner.source import JobSource

    original = JobSource.batches

    async def idle(self):
        async for batch in original(self):
            yield batch
        await anyio.sleep_forever()

    monkeypatch.setattr(JobSource, "batches", idle)
    world.settings = {"grace": 3600}
    world.at = {5.0: lambda drain: drain.ask(130, "SIGINT")}
    world.jobs("a", "b").run()
    assert world.records.keys() == {"a", "b"}
    assert world.ended_at == pytest.approx(5, abs=0.1)


def test_a_record_that_cannot_be_written_is_that_jobs_failure_alone(world, monkeypatch):
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]
    fault = Fault(FaultKind.BAD_REQUEST, "x", status=400, body=deep)
    monkeypatch.setattr("runner.streaming.faults.from_in_stream", lambda error: fault)
    world.server.scripts["b"] = [[sse({"error": {"message": "x", "code": "x"}})]]
    world.jobs("a", "b", "c").run()
    assert world.records["b"]["error"]["code"] == "internal"
    assert world.records["a"]["error"] is world.records["c"]["error"] is None


def test_a_disk_that_is_behind_is_not_the_servers_fault(world, monkeypatch):
    async def room(self):
        await anyio.sleep(10)

    monkeypatch.setattr(ListJournal, "room", room)
    monkeypatch.setattr(ListJournal, "has_room", False)
    world.settings = {"idle_timeout": 1, "first_token_timeout": 1, "total_timeout": 5}
    world.server.default = [[0.1, START, 0.2, REST]]
    world.jobs("a").run()
    assert world.records["a"]["error"] is None
    assert world.records["a"]["runner"]["attempts"] == 1


def flex_without_room():
    answer = httpx2.Response(
        429,
        json={"error": {"message": "no room", "code": "resource_unavailable"}},
        request=httpx2.Request("POST", "http://h/v1"),
    )
    return openai.RateLimitError("no room", response=answer, body=answer.json()["error"])


@pytest.mark.parametrize(("allowed", "tiers"), [(True, ["flex", "default"]), (False, ["flex", "flex"])])
def test_flex_without_room_falls_back_to_the_default_tier_where_that_is_allowed(world, allowed, tiers):
    world.settings = {"flex_fallback": allowed, "seed": 1}
    world.server.scripts["hi"] = [flex_without_room(), [0.1, HELLO]]
    world.path.write_bytes(
        orjson.dumps({"id": "a", "messages": [{"role": "user", "content": "hi"}], "service_tier": "flex"})
    )
    world.run()
    assert [body["service_tier"] for body in world.server.sent] == tiers
    record = world.records["a"]
    assert record["error"] is None
    assert [retry["reason"] for retry in record["runner"]["retries"]] == ["capacity_unavailable"]


def with_key(i, key):
    messages = [{"role": "user", "content": f"p{i}"}]
    return orjson.dumps({"id": f"p{i}", "messages": messages, "prompt_cache_key": key}) + b"\n"


def test_with_primer_first_the_fan_out_waits_for_the_first_answer_of_its_key(world):
    world.settings, world.concurrency = {"primer_first": True}, 10
    world.server.default = [[2.0, START, 3.0, REST]]
    world.path.write_bytes(b"".join(with_key(i, "k") for i in range(5)) + with_key(5, "other"))
    world.run()
    sent = {prompt: at - world.server.requests[0][0] for at, prompt in world.server.requests}
    assert sent["p0"] == 0
    assert sent["p5"] == pytest.approx(0, abs=0.1)
    assert [sent[f"p{i}"] for i in range(1, 5)] == [pytest.approx(2.0, abs=0.1)] * 4
    assert len(world.records) == 6


def test_a_primer_that_fails_for_good_keeps_nobody_waiting(world):
    world.settings, world.concurrency = {"primer_first": True, "max_attempts": 1}, 10
    world.server.scripts["p0"] = [[0.5, OVERLOADED]]
    world.path.write_bytes(b"".join(with_key(i, "k") for i in range(5)))
    world.run()
    assert sum(record["error"] is None for record in world.records.values()) == 4


def test_a_slow_model_does_not_hold_up_a_fast_one_that_stands_behind_it_in_the_file(world):
    world.concurrency = 2
    world.settings = {"limits": {"slow": ModelLimits(rpm=6), "fast": ModelLimits(rpm=6000)}}
    lines = [{"id": "first", "prompt": "first", "model": "fast"}]
    lines += [{"id": f"slow{i}", "prompt": f"slow{i}", "model": "slow"} for i in range(12)]
    lines += [{"id": f"fast{i}", "prompt": f"fast{i}", "model": "fast"} for i in range(40)]
    world.path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    world.run()
    sent = {prompt: at - world.server.requests[0][0] for at, prompt in world.server.requests}
    assert max(at for prompt, at in sent.items() if prompt.startswith("fast")) < 15
    assert max(sent.values()) == pytest.approx(110, rel=0.05)
