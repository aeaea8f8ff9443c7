"""Runs as a user makes them: real processes, a real server, real signals."""

from __future__ import annotations

import fcntl
import gzip
import os
import random
import re
import resource
import signal
import subprocess
import time

import orjson
import pytest
import zstandard

from runner.simulator import SCENARIOS, expected_text
from tests.process import by_id, end, environment, records, run, start, voided_text, write_jobs

pytestmark = pytest.mark.slow
MODEL = "synthetic-1"


def chat(i, **more):
    return {"custom_id": f"job-{i}", "model": MODEL, "messages": [{"role": "user", "content": f"question {i}"}], **more}


def body_of(job):
    return {key: value for key, value in job.items() if key not in ("custom_id", "metadata", "stop_after")}


def to(server, *args):
    return ("--base-url", server.base_url, "--progress", "none", *args)


def wait_for_lines(path, count, process):
    """Until a run has written so many whole lines (or ended)."""
    while process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.02)  # a real process is awaited: there is no event for it


# ── What comes out ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_mixed_file_with_faults_ends_with_one_right_record_each(flaky_simulator, tmp_path):
    jobs = [chat(i) for i in range(60)]
    others = [
        {"custom_id": "whole", "model": MODEL, "messages": jobs[0]["messages"], "stream": False},
        {"custom_id": "responses", "model": MODEL, "input": "hello"},
        {"custom_id": "batch", "method": "POST", "url": "/v1/embeddings", "body": {"model": "e", "input": ["a", "b"]}},
        {"custom_id": "legacy", "url": "/v1/completions", "model": MODEL, "prompt": "Once"},
        {"custom_id": "short", "prompt": "short", "model": MODEL, "metadata": {"k": 1}},
        {"custom_id": "early", "prompt": "stop", "model": MODEL, "stop_after": {"chunks": 2}},
        b'{"custom_id": "job-1", "prompt": "a duplicate"}',
        b"{broken",
    ]
    path = write_jobs(tmp_path / "mixed.jsonl", [*jobs, *others])
    ended = run(path, *to(flaky_simulator, "--max-attempts", 20), cwd=tmp_path)
    assert ended.code == 1, ended.stderr
    folder = tmp_path / "results" / "mixed"
    found = records(folder)
    assert len(found) == 68
    assert len({record["id"] for record in found}) == 68
    named = {record["custom_id"]: record for record in found if record["error"] is None}
    assert len(named) == 66
    for job in jobs:
        text = named[job["custom_id"]]["response"]["body"]["choices"][0]["message"]["content"]
        assert text == expected_text(body_of(job)) == voided_text(folder, job["custom_id"])
    assert named["early"]["runner"]["finish"] == "stop_after"
    assert named["short"]["metadata"] == {"k": 1}
    assert len(named["batch"]["response"]["body"]["data"]) == 2
    failed = [record for record in found if record["error"]]
    assert {record["error"]["line"] for record in failed} == {67, 68}
    summary = orjson.loads((folder / "summary.json").read_bytes())
    assert summary["counts"]["total"] == 68
    assert summary["counts"]["attempts"] == sum(record["runner"]["attempts"] for record in found)


def test_the_server_saw_exactly_the_attempts(simulator, tmp_path):
    jobs = [chat(f"seen-{i}", simulate={"fault": "http_500", "times": i % 3}) for i in range(9)]
    path = write_jobs(tmp_path / "jobs.jsonl", jobs)
    log = tmp_path / "server.jsonl"
    server = start("serve", "--ttft", 0, "--tokens-per-s", "inf", "--log", log, cwd=tmp_path)
    try:
        base_url = orjson.loads(server.stdout.readline())["base_url"]  # type: ignore[union-attr]
        ended = run(path, "--base-url", base_url, "--progress", "none", cwd=tmp_path)
    finally:
        server.terminate()
        end(server)
    assert ended.code == 0, ended.stderr
    arrived = [line for line in map(orjson.loads, log.read_bytes().splitlines()) if line["event"] == "arrive"]
    assert len(arrived) == sum(record["runner"]["attempts"] for record in by_id(tmp_path / "results" / "jobs").values())


@pytest.mark.parametrize(
    ("name", "pack"), [("jobs.jsonl.gz", gzip.compress), ("jobs.jsonl.zst", zstandard.ZstdCompressor().compress)]
)
def test_compressed_input_is_read_as_it_is(simulator, tmp_path, name, pack):
    (tmp_path / name).write_bytes(pack(b'{"prompt": "a"}\n{"prompt": "b"}'))
    assert run(name, *to(simulator, "--model", MODEL), cwd=tmp_path).code == 0
    assert len(records(tmp_path / "results" / "jobs")) == 2


def test_standard_input_runs_and_resumes(simulator, tmp_path):
    options = to(simulator, "--model", MODEL, "--out", "o")
    assert run("-", *options, cwd=tmp_path, data=b'{"prompt": "a", "id": "a"}\n').code == 0
    assert run("-", *options, cwd=tmp_path, data=b'{"prompt": "b", "id": "b"}\n{"prompt": "a", "id": "a"}').code == 0
    assert by_id(tmp_path / "o").keys() == {"a", "b"}
    changed = run("-", *options, cwd=tmp_path, data=b'{"prompt": "c", "id": "a"}')
    assert changed.code == 2
    assert len(by_id(tmp_path / "o")) == 2


def test_what_a_run_prints_escapes_the_name_of_its_folder(simulator, tmp_path):
    """It is named after the jobs file, and that by whoever made it."""
    path = write_jobs(tmp_path / "a\x1b[31m.jsonl", [chat(1)])
    ended = run(path, *to(simulator, "--progress", "plain"), cwd=tmp_path)
    assert "writing results/a\\x1b[31m" in ended.stderr
    assert "\x1b" not in ended.stderr


def test_echo_prints_the_answer_and_nothing_else_on_stdout(simulator, tmp_path):
    path = write_jobs(tmp_path / "jobs.jsonl", [chat(1)])
    ended = run(path, *to(simulator, "--echo"), cwd=tmp_path)
    assert ended.stdout == f"── job-1 ──\n{expected_text(body_of(chat(1)))}\n"


def test_no_deltas_means_no_deltas_and_the_same_records(simulator, tmp_path):
    path = write_jobs(tmp_path / "jobs.jsonl", [chat(1)])
    assert run(path, *to(simulator, "--no-deltas"), cwd=tmp_path).code == 0
    deltas = tmp_path / "results" / "jobs" / "deltas.jsonl"
    assert not deltas.exists() or deltas.read_bytes() == b""
    assert len(records(deltas.parent)) == 1


def test_limit_runs_so_many_and_the_next_run_goes_on(simulator, tmp_path):
    path = write_jobs(tmp_path / "jobs.jsonl", map(chat, range(5)))
    assert run(path, *to(simulator, "--limit", 2), cwd=tmp_path).code == 0
    assert len(records(tmp_path / "results" / "jobs")) == 2
    assert run(path, *to(simulator), cwd=tmp_path).code == 0
    assert len(by_id(tmp_path / "results" / "jobs")) == 5


# ── Exit codes and refusals ──────────────────────────────────────────────────────────────────────────────────────────


def test_an_unset_key_is_an_error_that_offers_both_ways_out(tmp_path):
    path = write_jobs(tmp_path / "jobs.jsonl", [chat(1)])
    ended = run(path, cwd=tmp_path)
    assert ended.code == 2
    assert "--simulate" in ended.stderr
    assert "--base-url" in ended.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["missing.jsonl", "--simulate"],
        [".", "--simulate"],
        ["jobs.jsonl", "--no-such-option"],
        ["jobs.jsonl", "--simulate", "--rpm", "-1"],
        ["jobs.jsonl", "--simulate", "--concurrency", "zero"],
        ["jobs.jsonl", "--simulate=nonsense"],
        ["jobs.jsonl", "--simulate", "--config", "missing"],
        ["jobs.jsonl", "--simulate", "--base-url", "http://127.0.0.1:1"],
        ["jobs.jsonl", "-", "--simulate"],
        ["bad.jsonl", "--simulate", "--strict"],
        ["jobs.jsonl", "--simulate", "--max-cost", "1"],
        ["jobs.jsonl", "--simulate", "--out", ""],
        ["tail", "."],
        [],
    ],
)
def test_usage_errors_exit_with_2_one_line_and_nothing_sent(tmp_path, arguments):
    write_jobs(tmp_path / "jobs.jsonl", [chat(1)])
    write_jobs(tmp_path / "bad.jsonl", [chat(1), b"{"])
    ended = run(*arguments, cwd=tmp_path)
    assert ended.code == 2
    assert "Traceback" not in ended.stderr
    assert ended.stderr.strip() or not arguments
    assert not list(tmp_path.glob("results/*/results.jsonl"))


def test_a_folder_that_is_held_is_refused_at_once(simulator, tmp_path):
    path = write_jobs(tmp_path / "jobs.jsonl", [chat(1)])
    assert run(path, *to(simulator), cwd=tmp_path).code == 0
    with (tmp_path / "results" / "jobs" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ended = run(path, *to(simulator), cwd=tmp_path)
    assert ended.code == 3
    assert run(path, *to(simulator), cwd=tmp_path).code == 0


def test_of_several_runs_that_start_at_once_one_runs(slow_simulator, tmp_path):
    path = write_jobs(tmp_path / "jobs.jsonl", map(chat, range(40)))
    (tmp_path / "linked").symlink_to(tmp_path / "results" / "jobs")
    outs = ["results/jobs", "linked", str(tmp_path / "results" / "jobs")]
    (tmp_path / "results" / "jobs").mkdir(parents=True)
    racers = [start(path, *to(slow_simulator, "--out", out, "--concurrency", 4), cwd=tmp_path) for out in outs]
    assert sorted(end(racer).code for racer in racers) == [0, 3, 3]
    assert len(by_id(tmp_path / "results" / "jobs")) == 40


def test_a_bad_key_stops_the_run_and_its_jobs_stay_for_the_next(simulator, tmp_path):
    path = write_jobs(tmp_path / "jobs.jsonl", [chat(0, simulate={"fault": "http_401"}), *map(chat, range(1, 50))])
    ended = run(path, *to(simulator, "--concurrency", 1), cwd=tmp_path)
    assert ended.code == 4
    (line,) = ended.stderr.splitlines()
    assert line.startswith("runner: stopped: not_authorized: ")
    assert "not_authorized" in orjson.loads((tmp_path / "results/jobs/summary.json").read_bytes())["run"]["ended"]
    assert "job-0" not in by_id(tmp_path / "results" / "jobs")
    assert len(by_id(tmp_path / "results" / "jobs")) < 49


@pytest.mark.parametrize("limit", [("--max-failures", 2), ("--deadline", "300ms")])
def test_a_limit_of_the_user_stops_the_run_with_4_and_a_line_that_names_it(slow_simulator, tmp_path, limit):
    """The line is all that a scheduler's log has where nothing is shown."""
    jobs = [chat(i, simulate={"fault": "http_400"} if i % 2 else {}) for i in range(200)]
    path = write_jobs(tmp_path / "jobs.jsonl", jobs)
    ended = run(path, *to(slow_simulator, "--concurrency", 4, *limit), cwd=tmp_path)
    assert ended.code == 4, ended.stderr
    (line,) = ended.stderr.splitlines()
    assert line.startswith("runner: stopped: ")
    assert limit[0] in line
    assert line.endswith("; the same command again goes on where this run ended")
    assert 0 < len(by_id(tmp_path / "results" / "jobs")) < 200


def test_max_cost_stops_the_run_with_4(simulator, tmp_path):
    (tmp_path / "prices.toml").write_text(f'[prices."{MODEL}"]\ninput = 10.0\noutput = 10.0\n')
    path = write_jobs(tmp_path / "jobs.jsonl", map(chat, range(200)))
    options = ("--config", "prices.toml", "--max-cost", 0.002, "--concurrency", 2)
    ended = run(path, *to(simulator, *options), cwd=tmp_path)
    assert ended.code == 4
    assert re.match(r"runner: stopped: 0\.00[2-9]\d spent \(--max-cost 0\.002\); ", ended.stderr)
    costs = [record["runner"]["cost"] for record in records(tmp_path / "results" / "jobs")]
    assert 0.002 <= sum(costs) < 0.01


@pytest.mark.parametrize("stop_after", [None, {"chunks": 1}], ids=["whole", "stopped"])
def test_max_cost_cannot_be_kept_where_no_usage_is_named_and_says_so(simulator, tmp_path, stop_after):
    (tmp_path / "prices.toml").write_text(f'[prices."{MODEL}"]\ninput = 1.0\noutput = 1.0\n')
    more = {} if stop_after is None else {"stop_after": stop_after}
    path = write_jobs(tmp_path / "jobs.jsonl", [chat(i, **more) for i in range(40)])
    options = ("--config", "prices.toml", "--max-cost", 100, "--concurrency", 1, "--stream-options", "none")
    ended = run(path, *to(simulator, *options), cwd=tmp_path)
    count = len(records(tmp_path / "results" / "jobs"))
    if stop_after is None:
        assert (ended.code, count < 40) == (4, True)
        assert "the server named no usage" in ended.stderr
    else:  # whoever closes a stream before its end asks for no usage
        assert (ended.code, count) == (0, 40)


def test_a_full_disk_is_74_and_one_line_and_the_next_run_completes(simulator, tmp_path):
    path = write_jobs(tmp_path / "jobs.jsonl", map(chat, range(100)))

    def small_files():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    ended = run(path, *to(simulator), cwd=tmp_path, preexec_fn=small_files)
    assert ended.code == 74
    assert "Traceback" not in ended.stderr
    assert "jsonl" in ended.stderr
    again = run(path, *to(simulator), cwd=tmp_path)
    assert again.code == 0, again.stderr
    named = by_id(tmp_path / "results" / "jobs")
    assert len(named) == 100
    assert all(record["error"] is None for record in named.values())


# ── Running again ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_after_kill_9_again_and_again_every_job_has_one_right_record(slow_simulator, tmp_path):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    jobs = [chat(i) for i in range(300)]
    path = write_jobs(tmp_path / "jobs.jsonl", jobs)
    results = tmp_path / "results" / "jobs" / "results.jsonl"
    finished: dict[str, bytes] = {}
    for _ in range(4):
        process = start(path, *to(slow_simulator, "--concurrency", 16), cwd=tmp_path)
        wait_for_lines(results, len(finished) + rng.randrange(1, 60), process)
        process.kill()
        end(process)
        whole = results.read_bytes().rpartition(b"\n")[0].splitlines()
        now = {orjson.loads(line)["id"]: line for line in whole}
        assert finished.items() <= now.items()  # nothing that was there is lost or written anew
        finished = now
    ended = run(path, *to(slow_simulator), cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    named = by_id(tmp_path / "results" / "jobs")
    assert len(named) == 300
    for job in jobs:
        text = named[job["custom_id"]]["response"]["body"]["choices"][0]["message"]["content"]
        assert text == expected_text(body_of(job)) == voided_text(results.parent, job["custom_id"])
    manifest = orjson.loads((results.parent / "manifest.json").read_bytes())
    assert len(manifest["resumes"]) == 4


def test_the_same_command_on_a_finished_folder_sends_nothing(simulator, tmp_path):
    path = write_jobs(tmp_path / "jobs.jsonl", [*map(chat, range(5)), b"{broken"])
    assert run(path, *to(simulator), cwd=tmp_path).code == 1
    before = (tmp_path / "results/jobs/results.jsonl").read_bytes()
    # Nothing listens there: a request would fail.
    again = run(path, "--base-url", "http://127.0.0.1:9/v1", "--progress", "none", cwd=tmp_path)
    assert again.code == 1
    assert (tmp_path / "results/jobs/results.jsonl").read_bytes() == before


def test_appended_and_reordered_lines_are_fine_and_a_changed_one_is_refused(simulator, tmp_path):
    path = write_jobs(tmp_path / "jobs.jsonl", map(chat, range(4)))
    assert run(path, *to(simulator), cwd=tmp_path).code == 0
    write_jobs(path, map(chat, (5, 3, 2, 1, 0)))
    assert run(path, *to(simulator), cwd=tmp_path).code == 0
    assert len(by_id(tmp_path / "results" / "jobs")) == 5
    changed = {**chat(3), "messages": [{"role": "user", "content": "something else"}]}
    write_jobs(path, [chat(0), changed, *map(chat, (1, 2, 5))])
    refused = run(path, *to(simulator), cwd=tmp_path)
    assert refused.code == 2
    assert "'job-3'" in refused.stderr
    assert run(path, *to(simulator, "--accept-changes"), cwd=tmp_path).code == 0
    named = by_id(tmp_path / "results" / "jobs")
    assert len(named) == 5
    text = named["job-3"]["response"]["body"]["choices"][0]["message"]["content"]
    assert text == expected_text(body_of(changed))
    superseded = (tmp_path / "results/jobs/superseded.jsonl").read_bytes().splitlines()
    assert [orjson.loads(line)["id"] for line in superseded] == ["job-3"]


def test_another_input_is_refused_and_fresh_moves_the_old_run_aside(simulator, tmp_path):
    first = write_jobs(tmp_path / "a.jsonl", [chat("a")])
    second = write_jobs(tmp_path / "b.jsonl", [chat("b")])
    assert run(first, *to(simulator, "--out", "o"), cwd=tmp_path).code == 0
    refused = run(second, *to(simulator, "--out", "o"), cwd=tmp_path)
    assert refused.code == 2
    assert by_id(tmp_path / "o").keys() == {"job-a"}
    assert run(second, *to(simulator, "--out", "o", "--fresh"), cwd=tmp_path).code == 0
    assert by_id(tmp_path / "o").keys() == {"job-b"}
    (old,) = (tmp_path / "o").glob("old-*")
    assert by_id(old).keys() == {"job-a"}


def test_retry_failed_runs_the_failed_ones_and_no_other(simulator, tmp_path):
    jobs = [chat(0), chat(1, simulate={"fault": "http_500", "times": 1}), chat(2, simulate={"fault": "http_400"})]
    path = write_jobs(tmp_path / "jobs.jsonl", jobs)
    options = to(simulator, "--max-attempts", 1)
    assert run(path, *options, cwd=tmp_path).code == 1
    folder = tmp_path / "results" / "jobs"
    kept = by_id(folder)["job-0"]
    assert run(path, *options, cwd=tmp_path).code == 1  # without the option failures stay
    assert run(path, *options, "--retry-failed", cwd=tmp_path).code == 1
    named = by_id(folder)
    assert named["job-0"] == kept
    assert named["job-1"]["error"] is None
    assert named["job-2"]["error"]["code"] == "bad_request"


def test_simulated_and_real_answers_are_not_mixed(simulator, tmp_path):
    path = write_jobs(tmp_path / "jobs.jsonl", map(chat, range(3)))
    assert run(path, "--simulate", "--limit", 1, "--progress", "none", cwd=tmp_path).code == 0
    refused = run(path, *to(simulator), cwd=tmp_path)
    assert refused.code == 2
    assert "simulated" in refused.stderr
    assert run(path, *to(simulator, "--fresh"), cwd=tmp_path).code == 0
    again = run(path, "--simulate", "--progress", "none", cwd=tmp_path)
    assert again.code == 2


def test_a_refused_run_moves_nothing(simulator, tmp_path):
    path = write_jobs(tmp_path / "jobs.jsonl", [chat(0, simulate={"fault": "http_400"}), chat(1)])
    assert run(path, *to(simulator), cwd=tmp_path).code == 1
    before = (tmp_path / "results/jobs/results.jsonl").read_bytes()
    write_jobs(path, [chat(0, simulate={"fault": "http_400"}), {**chat(1), "temperature": 0.5}])
    assert run(path, *to(simulator, "--retry-failed"), cwd=tmp_path).code == 2
    assert (tmp_path / "results/jobs/results.jsonl").read_bytes() == before
    # A failed job may be retried with another line.
    write_jobs(path, [chat(0), chat(1)])
    assert run(path, *to(simulator, "--retry-failed"), cwd=tmp_path).code == 0


def test_a_limit_that_came_with_the_last_job_stopped_nothing(simulator, tmp_path):
    path = write_jobs(tmp_path / "jobs.jsonl", [chat(0, simulate={"fault": "http_400"})])
    assert run(path, *to(simulator, "--max-failures", 1), cwd=tmp_path).code == 1


def test_report_names_what_it_cannot_read(simulator, tmp_path):
    path = write_jobs(tmp_path / "jobs.jsonl", map(chat, range(3)))
    assert run(path, *to(simulator), cwd=tmp_path).code == 0
    folder = tmp_path / "results" / "jobs"
    (folder / "summary.json").write_text('{"run": {}}')
    ended = run("report", folder, cwd=tmp_path)
    assert (ended.code, ended.stdout.startswith("jobs          3 succeeded")) == (0, True)
    with (folder / "results.jsonl").open("ab") as file:
        file.write(b'{"id": "torn')
    torn = run("report", folder, cwd=tmp_path)
    assert torn.code == 2
    assert "line 4" in torn.stderr
    assert "Traceback" not in torn.stderr


# ── Signals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_lets_what_is_in_flight_finish(slow_simulator, tmp_path, number, code):
    path = write_jobs(tmp_path / "jobs.jsonl", map(chat, range(400)))
    process = start(path, *to(slow_simulator, "--concurrency", 8), cwd=tmp_path)
    wait_for_lines(tmp_path / "results/jobs/results.jsonl", 5, process)
    process.send_signal(number)
    ended = end(process)
    assert ended.code == code, ended.stderr
    named = by_id(tmp_path / "results" / "jobs")
    assert 5 <= len(named) < 400
    assert all(record["error"] is None for record in named.values())
    assert run(path, *to(slow_simulator, "--concurrency", 200), cwd=tmp_path).code == 0
    assert len(by_id(tmp_path / "results" / "jobs")) == 400


def test_the_second_signal_ends_what_would_never_end(simulator, tmp_path):
    path = write_jobs(tmp_path / "jobs.jsonl", [chat(0), *(chat(i, simulate={"fault": "stall_mid"}) for i in (1, 2))])
    process = start(path, *to(simulator, "--grace", "1h", "--idle-timeout", "1h"), cwd=tmp_path)
    wait_for_lines(tmp_path / "results/jobs/results.jsonl", 1, process)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGINT)
    assert end(process).code == 130
    assert by_id(tmp_path / "results" / "jobs").keys() == {"job-0"}


def test_grace_ends_what_would_never_end(simulator, tmp_path):
    path = write_jobs(tmp_path / "jobs.jsonl", [chat(0), chat(1, simulate={"fault": "stall_mid"})])
    process = start(path, *to(simulator, "--grace", "200ms"), cwd=tmp_path)
    wait_for_lines(tmp_path / "results/jobs/results.jsonl", 1, process)
    process.terminate()
    assert end(process).code == 143


def test_a_closed_terminal_does_not_end_the_run(slow_simulator, tmp_path):
    path = write_jobs(tmp_path / "jobs.jsonl", map(chat, range(60)))
    process = start(path, "--base-url", slow_simulator.base_url, "--echo", "--concurrency", 8, cwd=tmp_path)
    wait_for_lines(tmp_path / "results/jobs/results.jsonl", 2, process)
    process.stdout.close()  # type: ignore[union-attr]
    process.stderr.close()  # type: ignore[union-attr]
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0
    assert len(by_id(tmp_path / "results" / "jobs")) == 60


# ── Secrets ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_canary_key_is_in_no_file_and_no_stream_whatever_the_server_does(simulator, tmp_path):
    canary = "sk-canary-4f9c2e7d81"
    never_ending = {"slow_headers", "stall_first", "stall_mid", "comments_forever", "one_byte_per_s", "endless"}
    small = {"huge_line": {"bytes": 40_000_000}, "empty_deltas": {"count": 1_000}, "gzip_bomb": {"bytes": 10_000_000}}
    fatal = ("http_401", "http_403", "echo_key_401", "insufficient_quota")
    # One of each kind that makes everybody wait is enough: waiting shows no key.
    waits = {name for name in SCENARIOS if name.startswith("retry_after")} | {"overloaded", "http_529", "slow_down"}
    names = [name for name in SCENARIOS if name not in {*never_ending, *fatal, *waits}]
    small |= {name: {"times": 1} for name in ("http_429", "in_stream_rate_limit")}
    jobs = [chat(name, simulate={"fault": name, **small.get(name, {})}) for name in names]
    env = environment(THE_KEY=canary, OPENAI_API_KEY="sk-canary-another1234")
    options = ("--api-key-env", "THE_KEY", "--log-level", "DEBUG", "--max-attempts", 2, "--progress", "json", "--echo")
    shown = ""
    for name, lines in {"all": jobs, **{name: [chat(name, simulate={"fault": name})] for name in fatal}}.items():
        path = write_jobs(tmp_path / f"{name}.jsonl", lines)
        ended = run(path, "--base-url", simulator.base_url, *options, cwd=tmp_path, env=env)
        assert ended.code == (1 if name == "all" else 4), ended.stderr
        shown += ended.stdout + ended.stderr
    assert len(by_id(tmp_path / "results" / "all")) == len(names)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 25
    assert [path for path in files if b"canary" in path.read_bytes() and b"sk-canary" in path.read_bytes()] == []
    assert "sk-canary" not in shown


def test_files_belong_to_their_owner_alone(simulator, tmp_path):
    path = write_jobs(tmp_path / "jobs.jsonl", [chat(1)])
    old = os.umask(0)
    try:
        assert run(path, *to(simulator), cwd=tmp_path).code == 0
    finally:
        os.umask(old)
    modes = {found.name: found.stat().st_mode & 0o777 for found in (tmp_path / "results/jobs").iterdir()}
    assert set(modes.values()) == {0o600}, modes
