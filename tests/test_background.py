"""Background responses with real processes: connections that break, kill -9, Ctrl-C; the server's log is the oracle."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
from anyio.from_thread import start_blocking_portal

from runner.simulator import expected_text, prompt_key, simulator_process
from tests.conftest import FAST
from tests.killed import by_fork
from tests.process import by_id, end, environment, records, run, start, write_jobs

MODEL = "synthetic-1"
PACED = replace(FAST, ttft_s=0.05, tokens_per_s=60.0)
POST, GET = "/responses", "/responses/{id}"
pytestmark = pytest.mark.slow


class Server(NamedTuple):
    """A simulator and its log."""

    base_url: str
    log: Path

    def requests(self) -> list[dict[str, Any]]:
        """Every request that arrived, in order."""
        lines = map(orjson.loads, self.log.read_bytes().splitlines())
        return [line for line in lines if line["event"] == "arrive"]

    def counts(self) -> dict[str, Counter[str]]:
        """Requests by key and endpoint."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for line in self.requests():
            counts[line["key"]][line["endpoint"]] += 1
        return counts


@pytest.fixture
def serving(tmp_path):
    """Starts simulators, each with a log of its own."""
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())

        def serve(name="server", profile=PACED):
            log = tmp_path / f"{name}.log"
            started = portal.wrap_async_context_manager(simulator_process(profile, log=log))
            return Server(stack.enter_context(started).base_url, log)

        yield serve


def body_of(number: int, *, stream: bool = True, **simulate: Any) -> dict[str, Any]:
    """A line's body."""
    body = {"model": MODEL, "input": f"question {number}", "background": True, "stream": stream}
    return body | ({"simulate": simulate} if simulate else {})


def jobs_of(path: Path, bodies: list[dict[str, Any]]) -> Path:
    lines = [{"custom_id": f"j{i}", "method": "POST", "url": "/v1/responses", "body": b} for i, b in enumerate(bodies)]
    return write_jobs(path, lines)


def to(server: Server, *more: object) -> tuple[object, ...]:
    return ("--base-url", server.base_url, "--progress", "none", "--concurrency", 16, "--rpm", 60_000, *more)


def check_texts(folder: Path, bodies: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each job has its one record, with the right text in it."""
    found = by_id(folder)
    assert len(found) == len(bodies)
    for i, body in enumerate(bodies):
        record = found[f"j{i}"]
        assert record["error"] is None, record["error"]
        content = record["response"]["body"]["output"][-1]["content"][0]["text"]
        assert content == expected_text(body), i
    return found


def told(folder: Path) -> dict[str, str]:
    """The texts in deltas.jsonl, behind each job's last void."""
    texts: dict[str, str] = defaultdict(str)
    for line in (folder / "deltas.jsonl").read_bytes().splitlines():
        try:
            delta = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue  # torn by a kill
        if delta.get("event") == "void":
            texts[delta["custom_id"]] = ""
        elif delta["delta"]["type"] == "response.output_text.delta":
            texts[delta["custom_id"]] += delta["delta"]["delta"]
    return texts


BREAKS: list[dict[str, Any]] = [
    *({"fault": name, "times": times, "after": after} for name, times, after in [
        ("reset_mid_stream", 1, 0), ("reset_mid_stream", 3, 4), ("reset_mid_stream", 2, 30), ("fin_mid_stream", 2, 7),
        ("cut_chunk", 2, 3), ("half_event", 2, 9), ("half_utf8", 1, 5), ("no_finish", 1, 1), ("bad_json", 1, 6),
        ("done_without_finish", 1, 1), ("null_chunk", 1, 6),
    ]),
    {"fault": "stall_mid", "times": 1, "after": 3},
    {"fault": "stall_first", "times": 1},
]  # fmt: skip


def test_however_a_connection_breaks_each_token_is_generated_once(serving, tmp_path):
    server = serving()
    bodies = [body_of(i, **fault) for i, fault in enumerate(BREAKS)]
    path = jobs_of(tmp_path / "jobs.jsonl", bodies)
    ended = run(path, *to(server, "--idle-timeout", 1, "--first-token-timeout", 1), cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    folder = tmp_path / "results" / "jobs"
    found = check_texts(folder, bodies)
    counts, texts = server.counts(), told(folder)
    for i, body in enumerate(bodies):
        seen = counts[prompt_key(body)]
        # A stall before the first event shows no id: nobody can ask for that response.
        posts = 2 if BREAKS[i]["fault"] == "stall_first" else 1
        assert seen[POST] == posts, (BREAKS[i], seen)
        assert seen[POST] + seen[GET] == found[f"j{i}"]["runner"]["attempts"] > 1
        assert texts[f"j{i}"] == expected_text(body), BREAKS[i]


def test_what_is_not_streamed_is_posted_once_and_asked_for(serving, tmp_path):
    server = serving()
    faults: list[dict[str, Any]] = [
        {},
        {"fault": "reset_before_headers", "times": 1},
        {"fault": "response_incomplete", "after": 5},
    ]
    bodies = [body_of(i, stream=False, **fault) for i, fault in enumerate(faults)]
    path = jobs_of(tmp_path / "jobs.jsonl", bodies)
    assert run(path, *to(server), cwd=tmp_path).code == 0
    found = by_id(tmp_path / "results" / "jobs")
    counts = server.counts()
    for i, body in enumerate(bodies):
        facts, seen = found[f"j{i}"]["runner"], counts[prompt_key(body)]
        assert facts["attempts"] + facts["polls"] == seen[POST] + seen[GET]
        assert seen[POST] == (2 if i == 1 else 1)
    assert found["j2"]["runner"]["finish"] == "incomplete:max_output_tokens"
    assert found["j0"]["response"]["body"]["output"][-1]["content"][0]["text"] == expected_text(bodies[0])


def test_an_expired_response_is_posted_again_and_an_old_one_is_had_in_one_piece(serving, tmp_path):
    server = serving()
    bodies = [
        body_of(0, fault="reset_mid_stream", times=1, after=5, expires_s=0.05),
        body_of(1, fault="reset_mid_stream", times=1, after=5, stream_s=0.05),
    ]
    path = jobs_of(tmp_path / "jobs.jsonl", bodies)
    assert run(path, *to(server), cwd=tmp_path).code == 0
    check_texts(tmp_path / "results" / "jobs", bodies)
    counts = server.counts()
    assert counts[prompt_key(bodies[0])][POST] == 2
    assert counts[prompt_key(bodies[1])][POST] == 1


KILLS = 10
JOBS = 100


def ids_in(folder: Path) -> dict[str, set[str]]:
    """The responses of each job that deltas.jsonl names."""
    path, named = folder / "deltas.jsonl", defaultdict[str, set[str]](set)
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if "digest" in found:
            named[found["custom_id"]].add(found["delta"]["response"]["id"])
    return named


@pytest.mark.parametrize("transport", ["aiohttp", "native"])
def test_killed_ten_times_no_response_whose_id_is_on_disk_is_paid_for_twice(serving, tmp_path, transport):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    server = serving()
    bodies = [body_of(i, stream=i % 5 > 0) for i in range(JOBS)]
    path = jobs_of(tmp_path / "jobs.jsonl", bodies)
    folder = tmp_path / "results" / "jobs"
    arguments = [str(each) for each in (path, *to(server, "--concurrency", 6, "--transport", transport))]
    lost: Counter[str] = Counter()
    kills = 0
    while kills < KILLS:
        before = len(server.requests())
        process = by_fork(arguments, tmp_path, tmp_path / "said")
        while process.is_alive() and len(server.requests()) == before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0.0, 0.5))
        process.kill()
        if process.end() == 0:
            break  # a machine that is so slow that the run was done: enough was killed
        kills += 1
        time.sleep(0.1)  # what was sent has arrived
        posts, named = server.counts(), ids_in(folder)
        for i, body in enumerate(bodies):
            # A response whose id had not reached the disk: the next run can't know of it.
            lost[f"j{i}"] = posts[prompt_key(body)][POST] - len(named[f"j{i}"])
    assert by_fork(arguments, tmp_path, tmp_path / "said").end() == 0, (tmp_path / "said").read_text()
    check_texts(folder, bodies)
    counts, texts = server.counts(), told(folder)
    print("kills", kills, "lost", sum(lost.values()), "GETs", sum(count[GET] for count in counts.values()))
    for i, body in enumerate(bodies):
        assert counts[prompt_key(body)][POST] == 1 + lost[f"j{i}"], (i, counts[prompt_key(body)])
        if body["stream"]:
            assert texts[f"j{i}"] == expected_text(body), i
    assert kills >= KILLS / 2
    assert sum(lost.values()) < JOBS / 2
    assert sum(count[GET] for count in counts.values()) > kills


def test_deltas_cut_anywhere_cost_no_token_of_a_response_that_they_name(serving, tmp_path):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    server = serving(profile=replace(PACED, tokens_per_s=20.0))
    bodies = [body_of(i) for i in range(12)]
    path = jobs_of(tmp_path / "jobs.jsonl", bodies)
    folder = tmp_path / "results" / "jobs"
    process = by_fork([str(each) for each in (path, *to(server))], tmp_path, tmp_path / "said")
    while len(ids_in(folder)) < len(bodies):
        time.sleep(0.01)
    time.sleep(0.3)
    process.kill()
    process.end()
    deltas = (folder / "deltas.jsonl").read_bytes()
    at = rng.randrange(len(deltas))
    hole = rng.randrange(at)
    (folder / "deltas.jsonl").write_bytes(deltas[:hole] + b"\0" * min(200, at - hole) + deltas[hole + 200 : at])
    named = set(ids_in(folder))
    assert run(path, *to(server), cwd=tmp_path).code == 0
    check_texts(folder, bodies)
    counts = server.counts()
    for i, body in enumerate(bodies):
        assert counts[prompt_key(body)][POST] == (1 if f"j{i}" in named else 2), i
    assert not [record for record in records(folder) if record["error"]]


def test_ctrl_c_cancels_nothing_at_the_server_and_the_next_run_goes_on(serving, tmp_path):
    server = serving(profile=replace(PACED, tokens_per_s=20.0))
    bodies = [body_of(i, stream=i > 0) for i in range(6)]
    path = jobs_of(tmp_path / "jobs.jsonl", bodies)
    folder = tmp_path / "results" / "jobs"
    process = start(path, *to(server, "--grace", 0.2), cwd=tmp_path)
    while len(ids_in(folder)) < len(bodies):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert end(process).code == 130
    assert records(folder) == []
    assert run(path, *to(server), cwd=tmp_path).code == 0
    check_texts(folder, bodies)
    endpoints = Counter(line["endpoint"] for line in server.requests())
    assert endpoints.keys() == {POST, GET}
    assert endpoints[POST] == len(bodies)


def test_without_deltas_a_killed_run_posts_again(serving, tmp_path):
    server = serving(profile=replace(PACED, tokens_per_s=20.0))
    bodies = [body_of(0)]
    path = jobs_of(tmp_path / "jobs.jsonl", bodies)
    arguments = [str(each) for each in (path, *to(server, "--no-deltas"))]
    process = by_fork(arguments, tmp_path, tmp_path / "said")
    while not server.requests():
        time.sleep(0.01)
    time.sleep(0.3)
    process.kill()
    process.end()
    assert run(*arguments, cwd=tmp_path).code == 0
    check_texts(tmp_path / "results" / "jobs", bodies)
    assert server.counts()[prompt_key(bodies[0])] == Counter({POST: 2})


def test_of_several_endpoints_the_one_that_has_a_response_is_asked_for_it(serving, tmp_path):
    servers = {name: serving(name) for name in ("a", "b", "c")}
    tables = [
        f'[[endpoints]]\nname = "{name}"\nbase_url = "{server.base_url}"\napi_key_env = "KEY"\n'
        for name, server in servers.items()
    ]
    config = tmp_path / "pool.toml"
    config.write_text("\n".join(tables))
    bodies = [body_of(i, fault="reset_mid_stream", times=2, after=8) for i in range(18)]
    path = jobs_of(tmp_path / "jobs.jsonl", bodies)
    options = ("--config", config, "--concurrency", 9, "--progress", "none")
    folder = tmp_path / "results" / "jobs"
    process = start(path, *options, cwd=tmp_path, env=environment(KEY="k"))
    while len(ids_in(folder)) < 9:
        time.sleep(0.01)
    process.kill()
    end(process)
    ended = run(path, *options, cwd=tmp_path, env=environment(KEY="k"))
    assert ended.code == 0, ended.stderr
    found = check_texts(folder, bodies)
    named = ids_in(folder)
    asked = {name: server.counts() for name, server in servers.items()}
    for i, body in enumerate(bodies):
        key = prompt_key(body)
        posted = {name for name, counts in asked.items() if counts[key][POST]}
        got = {name for name, counts in asked.items() if counts[key][GET]}
        assert sum(counts[key][POST] for counts in asked.values()) == len(named[f"j{i}"])
        assert got <= posted
        assert found[f"j{i}"]["runner"]["endpoint"] in posted
    assert all(counts for counts in asked.values())
