"""Background jobs in virtual time: the real worker, admission and attempts; a server that counts what it generates."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, cast

import anyio
import httpx2
import openai
import orjson
import pytest

from runner.background import Text
from runner.client import Client
from runner.deltas import Delta, DeltaKind
from runner.earlier import EarlierDeltas
from runner.files import OsFiles
from runner.recovery import DELTAS
from tests.scripted import FOREVER, ScriptedBody
from tests.test_client import listening
from tests.test_pipeline import World, inline_threads  # noqa: F401 - a fixture

WORDS = ["Once ", "upon ", "a ", "time ", "there ", "was ", "a ", "queue."]
TEXT = "".join(WORDS)
USAGE = {"input_tokens": 3, "output_tokens": len(WORDS), "total_tokens": 3 + len(WORDS)}
BROKEN = httpx2.ReadError("reset")


def refused(status: int, message: str = "no", code: str | None = None) -> openai.APIStatusError:
    content = orjson.dumps({"error": {"message": message, "type": "invalid_request_error", "code": code}})
    request = httpx2.Request("GET", "http://server/v1/responses/r")
    return openai.APIStatusError(message, response=httpx2.Response(status, content=content, request=request), body=None)


def numbered(name: str, *, numbers: bool = True) -> list[dict[str, Any]]:
    response = {"id": name, "object": "response", "status": "in_progress", "background": True, "output": []}
    item = {"id": "msg", "type": "message", "role": "assistant", "content": []}
    where = {"item_id": "msg", "output_index": 0, "content_index": 0}
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": response},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        *({"type": "response.output_text.delta", **where, "delta": word} for word in WORDS),
        {"type": "response.completed", "response": finished(name)},
    ]
    return [event | ({"sequence_number": n} if numbers else {}) for n, event in enumerate(events)]


def finished(name: str) -> dict[str, Any]:
    content = [{"type": "output_text", "text": TEXT, "annotations": []}]
    output = [{"id": "msg", "type": "message", "role": "assistant", "content": content}]
    return {"id": name, "object": "response", "status": "completed", "output": output, "usage": USAGE}


def encoded(events) -> bytes:
    return b"".join(b"data: %b\n\n" % orjson.dumps(event) for event in events)


@dataclass
class Server:
    """What each request meets, in turn (the last one again and again): how many events, and then what."""

    meets: list[Any]
    numbers: bool = True
    posts: list[str] = field(default_factory=list)
    """Ids of what was generated: each POST that was not refused is paid for."""
    gets: list[tuple[str, bool, int | None]] = field(default_factory=list)
    at: list[float] = field(default_factory=list)
    bodies: list[ScriptedBody] = field(default_factory=list)

    def serving(self, model):
        return self

    def _next(self) -> Any:
        self.at.append(anyio.current_time())
        return self.meets.pop(0) if len(self.meets) > 1 else self.meets[0]

    async def post(self, api, content, *, stream):
        meets = self._next()
        if isinstance(meets, Exception):
            raise meets
        self.posts.append(f"r{len(self.posts)}")
        return self._answer(meets, self.posts[-1], 0)

    async def get(self, response_id, *, stream, after=None):
        self.gets.append((response_id, stream, after))
        meets = self._next()
        if isinstance(meets, Exception):
            raise meets
        return self._answer(meets, response_id, 0 if after is None else after + 1)

    def _answer(self, meets, name, first):
        if isinstance(meets, dict):
            body = ScriptedBody([orjson.dumps({"id": name} | meets)])
            kind = "application/json"
        else:
            count, *then = meets if isinstance(meets, tuple) else (meets,)
            events = numbered(name, numbers=self.numbers)[first:][: len(WORDS) + 3 if count is ... else count]
            body, kind = ScriptedBody([encoded([event]) for event in events] + then), "text/event-stream"
        self.bodies.append(body)
        return body.announcing({"content-type": kind})


PENDING = {"status": "queued", "background": True, "output": []}


@pytest.fixture
def world(tmp_path, inline_threads) -> World:  # noqa: F811
    return World(tmp_path / "jobs.jsonl")


def meeting(world: World, *meets: Any, stream: bool = True, numbers: bool = True, jobs: int = 1, **more: Any) -> Server:
    server = Server(list(meets), numbers)
    world.server = cast(Any, server)
    body = {"input": "Tell me a story", "background": True, "stream": stream}
    body |= {key: more.pop(key) for key in ("max_output_tokens",) if key in more}
    lines = [{"custom_id": f"j{i}", "method": "POST", "url": "/v1/responses", "body": body} | more for i in range(jobs)]
    world.path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
    return server


def check(world: World, server: Server, *, posts: int = 1, name: str = "j0") -> dict[str, Any]:
    """The right answer, as often generated as said; every request is in the record."""
    record = world.records[name]
    assert record["error"] is None, record["error"]
    assert record["response"]["body"]["output"][0]["content"][0]["text"] == TEXT
    assert record["runner"]["usage"]["output_tokens"] == len(WORDS)
    assert len(server.posts) == posts
    assert record["runner"]["attempts"] + record["runner"].get("polls", 0) == len(server.at)
    return record


def story(deltas) -> str:
    """What deltas.jsonl holds behind the last void; its seqs are whole."""
    said, seq = "", 0
    for line in deltas:
        if line.get("event") == "void":
            said, seq = "", 0
            continue
        assert line["seq"] == seq
        seq += 1
        if line["delta"]["type"] == "response.output_text.delta":
            said += line["delta"]["delta"]
    return said


def voids(world) -> list[str]:
    return [line["reason"] for line in world.journal.deltas if line.get("event") == "void"]


# ── Within a run ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", range(1, len(WORDS) + 3))
def test_a_broken_stream_is_gone_on_with_behind_its_last_event(world, count):
    server = meeting(world, (count, BROKEN), ...)
    world.run()
    record = check(world, server)
    assert server.gets == [("r0", True, count - 1)]
    assert voids(world) == []
    assert story(world.journal.deltas) == TEXT
    assert {line["attempt"] for line in world.journal.deltas} == {1}
    times = [line["t"] for line in world.journal.deltas]
    assert times == sorted(times)
    assert record["runner"]["chunks"] == len(WORDS)
    assert [(retry["attempt"], retry["reason"]) for retry in record["runner"]["retries"]] == [(1, "connection_broken")]


@pytest.mark.parametrize(
    "failure",
    [
        BROKEN,
        httpx2.ConnectError("refused"),
        openai.APIConnectionError(request=httpx2.Request("GET", "http://s")),
        refused(429, code="rate_limit_exceeded"),
        refused(500),
        refused(503),
        FOREVER,
    ],
    ids=["reset", "connect", "sdk", "429", "500", "503", "silence"],
)
def test_whatever_happens_on_the_way_to_it_the_response_is_asked_for_again(world, failure):
    in_the_way = (0, failure) if isinstance(failure, float) else failure
    server = meeting(world, (5, BROKEN), in_the_way, ...)
    world.run()
    check(world, server)
    assert server.gets == [("r0", True, 4)] * 2
    assert story(world.journal.deltas) == TEXT


def test_a_stream_that_ends_without_its_end_is_gone_on_with(world):
    server = meeting(world, 5, 2, ...)
    world.run()
    check(world, server)
    assert server.gets == [("r0", True, 4), ("r0", True, 6)]


def test_a_stream_that_brings_nothing_new_is_given_up_for_the_responses_state(world):
    server = meeting(world, 5, 0, PENDING, finished("r0"))
    world.run()
    record = check(world, server)
    assert server.gets == [("r0", True, 4), ("r0", False, None), ("r0", False, None)]
    assert record["runner"]["polls"] == 1


def test_attempts_that_bring_more_of_the_text_do_not_use_up_the_maximum(world):
    world.settings = {"max_attempts": 2}
    server = meeting(world, (3, BROKEN), *[(1, BROKEN)] * (len(WORDS) - 1), ...)
    world.run()
    check(world, server)
    assert len(server.at) > 2


def test_without_progress_the_maximum_holds(world):
    world.settings = {"max_attempts": 3}
    server = meeting(world, (3, BROKEN), BROKEN)
    world.run()
    record = world.records["j0"]
    assert record["error"]["code"] == "connection_broken"
    assert record["error"]["partial"]["output"][0]["content"][0]["text"] == WORDS[0]
    assert record["runner"]["attempts"] == len(server.at) <= 6


def test_a_maximum_of_one_means_one_request(world):
    world.settings = {"max_attempts": 1}
    server = meeting(world, (3, BROKEN), ...)
    world.run()
    assert world.records["j0"]["error"]["code"] == "connection_broken"
    assert len(server.at) == 1


def test_a_response_that_failed_by_itself_is_posted_again(world):
    failed = {
        "type": "response.failed",
        "response": {"id": "r0", "status": "failed", "error": {"code": "server_error"}},
    }
    server = meeting(world, (5, encoded([failed | {"sequence_number": 5}])), ...)
    world.run()
    check(world, server, posts=2)
    assert server.gets == []
    assert voids(world) == ["server_error"]
    assert story(world.journal.deltas) == TEXT


def test_a_response_that_has_expired_is_posted_again(world):
    server = meeting(world, (5, BROKEN), refused(404), ...)
    world.run()
    record = check(world, server, posts=2)
    assert [retry["reason"] for retry in record["runner"]["retries"]] == ["connection_broken", "truncated"]
    assert story(world.journal.deltas) == TEXT


def test_a_response_that_is_too_old_to_be_streamed_is_asked_for_in_one_piece(world):
    """The API streams a response for five minutes: https://github.com/openai/openai-python/issues/2828."""
    server = meeting(world, (5, BROKEN), refused(400, "no longer streamed"), PENDING, finished("r0"))
    world.run()
    check(world, server)
    assert [stream for _, stream, _ in server.gets] == [True, False, False]


@pytest.mark.parametrize("numbers", [True, False])
def test_after_garbage_or_without_numbers_the_stream_is_had_from_its_first_event(world, numbers):
    server = meeting(world, (5, b"data: {garbage\n\n" if numbers else BROKEN), ..., numbers=numbers)
    world.run()
    check(world, server)
    assert server.gets == [("r0", True, None)]
    assert len(voids(world)) == 1
    assert story(world.journal.deltas) == TEXT


def test_after_garbage_twice_it_is_posted_again(world):
    server = meeting(world, (5, b"data: {garbage\n\n"), (5, b"data: {garbage\n\n"), ...)
    world.run()
    check(world, server, posts=2)


@pytest.mark.parametrize("wanted", [{"chunks": 4}, {"chars": len("".join(WORDS[:4]))}])
def test_stop_after_counts_what_came_before_the_connection_broke(world, wanted):
    server = meeting(world, (4, BROKEN), ..., stop_after=wanted)
    world.run()
    record = world.records["j0"]
    assert record["runner"]["finish"] == "stop_after"
    assert record["runner"]["chunks"] == 4
    assert story(world.journal.deltas) == "".join(WORDS[:4])
    assert len(server.posts) == 1


def test_a_post_that_never_showed_an_id_is_posted_again(world):
    server = meeting(world, BROKEN, (0, BROKEN), refused(500), ...)
    world.run()
    check(world, server, posts=2)
    assert server.gets == []


@pytest.mark.parametrize("name", ["", ".", "..", "x" * 513, None, 7])
def test_what_is_no_id_is_not_asked_for(world, name):
    created = {"type": "response.created", "sequence_number": 0, "response": {"id": name, "status": "queued"}}
    server = meeting(world, (0, encoded([created]), BROKEN), ...)
    world.run()
    check(world, server, posts=2)
    assert server.gets == []


async def test_an_id_is_one_segment_of_the_path_and_the_request_has_no_body():
    async with listening() as (base_url, seen):
        for transport in ("aiohttp", "native"):
            client = Client(base_url=base_url, api_key="sk-1", trust_env=False, transport=transport)
            for after in (None, 0, 41):
                body = await client.get("re/sp?a=b&c#d %2e", stream=True, after=after)
                await body.aclose()
            body = await client.get("resp_1", stream=False)
            await body.aclose()
            await client.aclose()
    paths = [(method, path, body) for method, path, _, body in seen]
    odd = "/v1/responses/re%2Fsp%3Fa%3Db%26c%23d%20%252e?stream=true"
    wanted = [odd, f"{odd}&starting_after=0", f"{odd}&starting_after=41", "/v1/responses/resp_1"]
    assert paths == [("GET", path, b"") for path in wanted] * 2
    assert {headers["Authorization"] for _, _, headers, _ in seen} == {"Bearer sk-1"}


def test_a_get_costs_a_request_and_no_tokens(world):
    world.settings = {"tpm": 100_000, "rpm": 600}
    server = meeting(world, (5, BROKEN), (1, BROKEN), (1, BROKEN), ...)
    world.run()
    check(world, server)
    statistics = world.admission.statistics()
    assert statistics.rpm_used == len(server.at) == 4
    charged = statistics.tpm_used
    world.settings |= {"max_attempts": 2}
    meeting(world, (5, BROKEN), BROKEN)  # no answer says what it used: the POST's estimate is all that is charged
    world.run()
    assert world.admission.statistics().tpm_used == charged


def test_a_get_does_not_wait_for_the_tokens_that_its_post_has_paid(world):
    world.settings = {"tpm": 1_000}
    server = meeting(world, (5, BROKEN), (1, BROKEN), ..., max_output_tokens=900)
    world.run()
    check(world, server)
    assert server.at[-1] - server.at[0] < 10  # another 900 tokens would take a minute


def test_each_broken_connection_is_noted_in_the_gaps(world, monkeypatch):
    cuts = []
    monkeypatch.setattr(Text, "cut", lambda text: cuts.append(text.chunks))
    meeting(world, (5, BROKEN), (1, BROKEN), ...)
    world.run()
    assert cuts == [3, 4]


def test_the_time_between_two_connections_is_no_gap():
    text = Text()
    for number, t_s in enumerate((1.0, 1.5)):
        text.note(Delta(DeltaKind.TEXT, {"sequence_number": number}, "x"), t_s)
    text.cut()
    for number, t_s in enumerate((9.0, 9.25)):
        text.note(Delta(DeltaKind.TEXT, {"sequence_number": number + 2}, "x"), t_s)
    assert (text.chunks, text.chars, text.last, text.ttft_s, text.t_s) == (4, 4, 3, 1.0, 9.25)
    assert text.gaps.count == 2
    assert text.gaps.max == pytest.approx(0.5)


# ── In one piece ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_is_not_streamed_is_asked_for_until_it_is_finished(world):
    server = meeting(world, PENDING, PENDING | {"status": "in_progress"}, PENDING, finished("r0"), stream=False)
    world.run()
    record = check(world, server)
    assert (record["runner"]["attempts"], record["runner"]["polls"]) == (1, 3)
    pauses = [later - sooner for sooner, later in zip(server.at, server.at[1:], strict=False)]
    assert pauses[0] == pytest.approx(2.0, abs=0.1)
    assert pauses == sorted(pauses)


def test_between_two_questions_a_job_holds_no_slot(world):
    world.concurrency = 1
    meeting(world, PENDING, PENDING, PENDING, PENDING, finished("r0"), stream=False, jobs=2)
    world.run()
    assert all(record["error"] is None for record in world.records.values())
    assert world.ended_at < 12


def test_a_question_that_fails_is_asked_again_and_nothing_is_posted(world):
    server = meeting(world, PENDING, BROKEN, refused(500), PENDING, finished("r0"), stream=False)
    world.run()
    record = check(world, server)
    assert [retry["reason"] for retry in record["runner"]["retries"]] == ["connection_broken", "server_error"]


def test_an_answer_that_is_never_finished_is_bounded_by_the_total_timeout(world):
    world.settings = {"total_timeout": 60, "max_attempts": 2}
    server = meeting(world, PENDING, stream=False)
    world.run()
    assert world.records["j0"]["error"]["code"] == "total_timeout"
    assert len(server.posts) == 1
    assert world.ended_at < 130


def test_a_drain_ends_the_waiting_and_leaves_the_job_for_the_next_run(world):
    server = meeting(world, PENDING, stream=False)
    world.at = {5.0: lambda drain: drain.ask(130, "SIGINT")}
    world.run()
    assert world.records == {}
    assert len(server.posts) == 1


# ── Over two runs ────────────────────────────────────────────────────────────────────────────────────────────────────


def killed(world: World, tmp_path, lines: list[bytes]) -> None:
    """The world as the next run finds it, with this in deltas.jsonl."""
    path = tmp_path / DELTAS
    path.write_bytes(b"".join(lines))
    world.resumed = cast(Any, EarlierDeltas(OsFiles(), path, lambda key: False))


def first_run(world: World, count: int, *, stream: bool = True) -> list[bytes]:
    """What a run leaves that was killed after so many events."""
    meeting(world, (count, FOREVER) if stream else PENDING, stream=stream)
    world.at = {1.0: lambda drain: drain.cut()}
    world.run()
    assert world.records == {}
    return [orjson.dumps(line) + b"\n" for line in world.journal.deltas]


@pytest.mark.parametrize("count", range(1, len(WORDS) + 3))
def test_the_next_run_goes_on_where_deltas_jsonl_ends(world, tmp_path, count):
    lines = first_run(world, count)
    server = meeting(world, ...)
    killed(world, tmp_path, lines)
    world.run()
    server.posts.append("r0")  # of the first run
    record = check(world, server)
    assert server.gets == [("r0", True, count - 1)]
    assert story([*map(orjson.loads, lines), *world.journal.deltas]) == TEXT
    assert record["runner"]["chunks"] == len(WORDS)
    assert record["runner"]["attempts"] == 1


def test_a_text_whose_last_event_has_come_is_not_asked_for_again(world, tmp_path):
    meeting(world, ...)
    world.run()
    lines = [orjson.dumps(line) + b"\n" for line in world.journal.deltas]
    server = meeting(world, finished("r0"))
    killed(world, tmp_path, lines)
    world.run()
    server.posts.append("r0")
    check(world, server)
    assert server.gets == [("r0", False, None)]
    assert world.journal.deltas == []


def test_a_text_that_ended_otherwise_is_not_gone_back_to(world, tmp_path):
    """Its record was put aside, by --retry-failed for instance: the same again isn't wanted."""
    ended = {"type": "response.incomplete", "response": {"id": "r0", "status": "incomplete", "output": []}}
    meeting(world, (5, encoded([ended | {"sequence_number": 5}])))
    world.run()
    lines = [orjson.dumps(line) + b"\n" for line in world.journal.deltas]
    server = meeting(world, ...)
    killed(world, tmp_path, lines)
    world.run()
    check(world, server)
    assert server.gets == []


def test_torn_deltas_cost_no_token_as_long_as_the_id_is_there(world, tmp_path):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    whole = first_run(world, 8)
    for _ in range(30):
        lines = list(whole)
        if rng.random() < 0.5:
            del lines[rng.randrange(1, len(lines))]
        at = rng.randrange(1, len(lines))
        lines[at] = lines[at][: rng.randrange(len(lines[at]))] + b"\n" * (rng.random() < 0.5)
        server = meeting(world, ...)
        killed(world, tmp_path, lines)
        world.at = {}
        world.run()
        assert server.posts == []
        assert world.records["j0"]["response"]["body"]["output"][0]["content"][0]["text"] == TEXT


@pytest.mark.parametrize("lines", [[], [b"\0" * 100], [b'{"custom_id":"j0","attempt":1,"digest":"zz","endp\n']])
def test_deltas_that_say_nothing_of_the_job_are_no_matter(world, tmp_path, lines):
    server = meeting(world, ...)
    killed(world, tmp_path, lines)
    world.run()
    check(world, server)
    assert server.gets == []


def test_another_question_under_the_same_id_is_posted(world, tmp_path):
    lines = first_run(world, 5)
    server = meeting(world, ...)
    world.path.write_bytes(world.path.read_bytes().replace(b"story", b"joke!"))
    killed(world, tmp_path, lines)
    world.run()
    check(world, server)
    assert server.gets == []
    assert voids(world) == ["resumed"]


def test_a_response_at_an_endpoint_that_is_no_more_is_posted(world, tmp_path):
    lines = [line.replace(b'"endpoint":"endpoint"', b'"endpoint":"gone"') for line in first_run(world, 5)]
    server = meeting(world, ...)
    killed(world, tmp_path, lines)
    world.run()
    check(world, server)


def test_a_void_ends_a_text_but_its_response_may_be_there(world, tmp_path):
    lines = first_run(world, 5)
    lines.append(orjson.dumps({"custom_id": "j0", "attempt": 1, "event": "void", "reason": "malformed"}) + b"\n")
    server = meeting(world, ...)
    killed(world, tmp_path, lines)
    world.run()
    assert server.gets == [("r0", True, None)]
    assert story([*map(orjson.loads, lines), *world.journal.deltas]) == TEXT


def test_what_is_not_streamed_is_found_again_too(world, tmp_path):
    lines = first_run(world, 0, stream=False)
    server = meeting(world, PENDING, finished("r0"), stream=False)
    killed(world, tmp_path, lines)
    world.at = {}
    world.run()
    server.posts.append("r0")
    record = check(world, server)
    assert (record["runner"]["attempts"], record["runner"]["polls"]) == (1, 1)


def test_a_run_without_background_jobs_reads_no_deltas(world, tmp_path):
    killed(world, tmp_path, [b"x" * 100])
    earlier = cast(Any, world.resumed)
    from tests.test_pipeline import Server as ChatServer

    world.server = ChatServer()
    world.jobs("a", "b").run()
    assert earlier._places is None
