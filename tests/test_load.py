"""`python -m runner load` and `compare` as a user runs them: real processes against the simulator.

Nothing here asserts how long something took: scripts/truth holds the figures against the server's own account.
"""

from __future__ import annotations

import os
import signal
import socketserver
import threading
import time
from collections import Counter
from contextlib import contextmanager

import orjson
import pytest

from runner.errors import UsageError
from runner.load.options import LoadOptions
from runner.load.results import decode
from runner.load.run import run_load
from runner.load.store import Store
from runner.lock import lock_folder
from runner.settings import Settings
from tests.process import by_id, end, records, run, start, write_jobs

QUICK = ("--no-calibrate", "--progress", "plain")
MADE = ("--synthetic", "--input-tokens", "20", "--output-tokens", "5")


def jobs(tmp_path, n=3):
    return write_jobs(tmp_path / "jobs.jsonl", [{"custom_id": f"a{k}", "prompt": f"hello {k}"} for k in range(n)])


def result(folder):
    return decode((folder / "load.json").read_bytes(), folder)


def load(tmp_path, *args, code=0, **kwargs):
    ended = run("load", *args, "--out", "out", *QUICK, cwd=tmp_path, **kwargs)
    assert ended.code == code, ended.stderr
    return ended


def test_a_sweep_leaves_figures_records_and_a_report(tmp_path):
    ended = load(tmp_path, jobs(tmp_path), "--simulate", "--concurrency", "1,3", "--requests", "6", "--slo", "e2e=1m")
    out = tmp_path / "out"
    found = result(out)
    assert [(level.label, level.requests.succeeded) for level in found.levels] == [
        ("1 concurrent", 6),
        ("3 concurrent", 6),
    ]
    assert found.complete
    assert found.synthetic
    assert [level.goodput for level in found.levels] == [1.0, 1.0]
    assert set(by_id(out)) == {f"a{k % 3}#{k}" for k in range(12)}
    assert "3 concurrent" in ended.stdout
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    assert len((out / "load.csv").read_bytes().splitlines()) == 3
    assert not (out / "deltas.jsonl").exists()
    assert "seed" in ended.stderr


def test_a_record_says_of_which_level_it_is_and_when_what_happened(tmp_path):
    load(tmp_path, *MADE, "--simulate", "--rate", "50", "--requests", "5")
    for record in records(tmp_path / "out"):
        said = record["runner"]["load"]
        assert (said["level"], said["repeat"]) == ("50/s", 0)
        order = ("scheduled", "sent", "headers", "first_content", "last_content", "end")
        times = [said[f"{name}_s"] for name in order]
        assert times == sorted(times)


@pytest.mark.long
@pytest.mark.parametrize("arrivals", ["constant", "poisson", "gamma:0.5", "ramp:5..50/1s", "step:30x0.2s,10x9s"])
def test_every_arrival_process_sends_all_of_its_requests(tmp_path, arrivals):
    rate = () if arrivals[:4] in ("ramp", "step") else ("--rate", "30")
    load(tmp_path, *MADE, "--simulate", "--arrivals", arrivals, *rate, "--requests", "12")
    (level,) = result(tmp_path / "out").levels
    assert (level.kind, level.requests.offered, level.requests.succeeded) == ("open", 12, 12)
    assert result(tmp_path / "out").arrival.kind == arrivals.partition(":")[0]
    assert level.metric("ttft_from_schedule").n == level.metric("ttft").n == 12


def test_several_processes_share_a_level_and_send_everything_once(tmp_path):
    load(tmp_path, jobs(tmp_path), "--simulate", "--rate", "40", "--requests", "21", "--workers", "3")
    (level,) = result(tmp_path / "out").levels
    assert (level.requests.offered, level.requests.succeeded) == (21, 21)
    assert Counter(name.partition("#")[2] for name in by_id(tmp_path / "out")) == Counter(str(k) for k in range(21))
    assert not list((tmp_path / "out").glob("part-*"))


@pytest.mark.long
def test_the_same_seed_asks_the_same(tmp_path):
    for name in ("one", "two"):
        args = (*MADE, "--simulate", "--rate", "50", "--requests", "4", "--seed", "7", "--out", name, *QUICK)
        assert run("load", *args, cwd=tmp_path).code == 0
    assert result(tmp_path / "one").seed == result(tmp_path / "two").seed == 7
    when = [[round(r["runner"]["load"]["scheduled_s"], 6) for r in records(tmp_path / name)] for name in ("one", "two")]
    assert sorted(when[0]) == sorted(when[1])


def test_429s_are_a_class_of_their_own_and_nothing_is_tried_again(tmp_path):
    load(tmp_path, jobs(tmp_path), "--simulate", "storm", "--rate", "40", "--requests", "80")
    (level,) = result(tmp_path / "out").levels
    requests = level.requests
    assert requests.sent == 80
    assert level.throttled > 0
    assert requests.succeeded + requests.failed + level.throttled == 80
    assert all(record["runner"]["attempts"] == 1 for record in records(tmp_path / "out"))


def test_the_users_limits_hold_requests_back_and_the_wait_is_no_latency(tmp_path):
    load(tmp_path, *MADE, "--simulate", "--concurrency", "4", "--requests", "6", "--rpm", "120")
    (level,) = result(tmp_path / "out").levels
    assert level.requests.succeeded == 6
    assert level.metric("limiter_wait").max > 0.2
    waited = [r["runner"]["limiter_wait_s"] for r in records(tmp_path / "out")]
    assert max(waited) == pytest.approx(level.metric("limiter_wait").max, rel=0.02, abs=0.001)


def test_answers_of_one_token_are_measured(tmp_path):
    args = ("--synthetic", "--input-tokens", "20", "--output-tokens", "1", "--simulate", "--concurrency", "2")
    load(tmp_path, *args, "--requests", "5", "--export", "vllm", "--export", "aiperf")
    (level,) = result(tmp_path / "out").levels
    assert (level.requests.succeeded, level.metric("icl").n) == (5, 0)


def test_conversations_carry_what_was_said_before(tmp_path):
    load(tmp_path, *MADE, "--simulate", "--concurrency", "2", "--requests", "2", "--turns", "3")
    used = {name: record["runner"]["usage"]["input_tokens"] for name, record in by_id(tmp_path / "out").items()}
    assert set(used) == {f"synthetic#{k}.{turn}" for k in range(2) for turn in range(3)}
    assert used["synthetic#0.0"] < used["synthetic#0.1"] < used["synthetic#0.2"]


@pytest.mark.long
def test_a_search_finds_the_highest_value_that_keeps_the_slo(tmp_path):
    args = (*MADE, "--simulate", "--concurrency", "2", "--find-max", "e2e=1m", "--max-value", "4", "--requests", "4")
    ended = load(tmp_path, *args)
    found = result(tmp_path / "out")
    assert found.search.best == 4
    assert [each.value for each in found.search.tried] == [2, 4, 4]
    assert "Highest concurrency: 4 kept the SLO" in ended.stdout


def test_repeats_give_intervals(tmp_path):
    load(tmp_path, *MADE, "--simulate", "--concurrency", "2", "--requests", "5", "--repeats", "2")
    (summary,) = result(tmp_path / "out").summary_levels
    assert summary.repeats == 2
    assert summary.metrics["ttft_mean"].low <= summary.metrics["ttft_mean"].mean


@pytest.mark.long
def test_the_calibration_says_what_this_machine_can_time(tmp_path):
    args = (*MADE, "--simulate", "--concurrency", "1", "--requests", "2", "--out", "out", "--progress", "plain")
    ended = run("load", *args, cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    assert "this machine can honestly time about" in ended.stderr
    found = result(tmp_path / "out").calibration
    assert found.max_chunks_per_s > 0
    assert found.max_requests_per_s > 0


def test_an_export_is_written_in_the_other_clients_layout(tmp_path):
    args = (*MADE, "--simulate", "--concurrency", "2", "--requests", "4", "--export", "vllm", "--export", "aiperf")
    load(tmp_path, *args)
    names = {path.name for path in (tmp_path / "out").glob("*-closed-2-0.json")}
    assert names == {"vllm-closed-2-0.json", "aiperf-closed-2-0.json"}
    assert orjson.loads((tmp_path / "out" / "vllm-closed-2-0.json").read_bytes())["completed"] == 4


# ── Interrupted, and again ───────────────────────────────────────────────────────────────────────────────────────


def until(condition, seconds=40.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)


def lines(folder):
    path = folder / "results.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interrupted_test_keeps_what_it_measured_and_goes_on_at_its_level(tmp_path, workers):
    file, out = jobs(tmp_path), tmp_path / "out"
    args = ("load", file, "--simulate", "--concurrency", "1,2", "--requests", "12", "--out", "out")
    more = (*QUICK, "--workers", workers)
    process = start(*args, *more, cwd=tmp_path)
    until((out / "load.json").exists)  # the first level is complete
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    ended = end(process)
    assert ended.code == 130, ended.stderr
    cut = result(out)
    assert not cut.complete
    assert cut.levels[0].complete
    assert cut.levels[0].requests.succeeded == 12
    before = set(by_id(out))
    assert run(*args, *more, cwd=tmp_path).code == 0
    whole = result(out)
    assert whole.complete
    assert whole.levels[0] == cut.levels[0]
    assert [level.requests.succeeded for level in whole.levels] == [12, 12]
    assert before <= set(by_id(out))
    again = run(*args, *more, cwd=tmp_path)
    assert again.code == 0
    assert result(out).levels == whole.levels


@pytest.mark.parametrize("workers", [1, 2])
def test_after_ctrl_c_what_waits_for_limits_is_never_sent_and_is_no_request_in_flight(tmp_path, workers):
    out = tmp_path / "out"
    args = (*MADE, "--simulate", "--concurrency", "6", "--duration", "60s", "--rpm", "120", "--out", "out", *QUICK)
    process = start("load", *args, "--workers", workers, cwd=tmp_path)
    until(lambda: lines(out) + sum(lines(part) for part in out.glob("part-*")) >= 3)
    time.sleep(0.7)  # the live figures of processes come twice a second
    process.send_signal(signal.SIGINT)
    ended = end(process)
    assert ended.code == 130, ended.stderr
    assert "that wait for limits are not sent" in ended.stderr
    (level,) = result(out).levels
    requests = level.requests
    assert requests.waiting_at_end > 0
    assert requests.sent == requests.succeeded == len(by_id(out))
    assert requests.offered == requests.sent + requests.waiting_at_end
    assert f"when the test was stopped: 6 concurrent (cut) {requests.waiting_at_end}" in " ".join(ended.stdout.split())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_it_measures_this_machine_it_ends_in_order(tmp_path, number):
    args = (*MADE, "--simulate", "--concurrency", "1", "--requests", "2", "--out", "out", "--progress", "plain")
    process = start("load", *args, cwd=tmp_path, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    until((tmp_path / "out" / "manifest.json").exists)
    time.sleep(1.0)  # of some four seconds
    process.send_signal(number)
    ended = end(process)
    assert ended.code == 128 + number, ended.stderr
    assert f"stopped: {number.name}; the same command goes on" in ended.stderr
    assert result(tmp_path / "out").levels == ()


def test_the_records_of_an_interrupted_try_are_told_from_those_of_the_next(tmp_path):
    file, out = jobs(tmp_path), tmp_path / "out"
    args = ("load", file, "--simulate", "--concurrency", "1", "--requests", "8", "--out", "out", *QUICK)
    process = start(*args, cwd=tmp_path)
    until(lambda: lines(out) >= 2)
    process.send_signal(signal.SIGINT)
    assert end(process).code == 130
    (cut,) = result(out).levels
    assert run(*args, cwd=tmp_path).code == 0
    (whole,) = result(out).levels
    assert (cut.run, whole.run) == (0, 1)
    runs = Counter(record["runner"]["load"]["run"] for record in records(out))
    assert runs == {0: cut.requests.succeeded, 1: 8}
    assert run(*args, cwd=tmp_path).code == 0  # all is done: nothing is run, and no start is counted
    assert orjson.loads((out / "manifest.json").read_bytes())["resumes"] == 1


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_after_a_kill_the_test_goes_on_without_an_id_twice(tmp_path, workers):
    file, out = jobs(tmp_path), tmp_path / "out"
    args = ["load", file, "--simulate", "--concurrency", "2", "--requests", "30", "--out", "out", *QUICK]
    args += ["--workers", workers]
    process = start(*args, cwd=tmp_path)
    until(lambda: lines(out) + sum(lines(part) for part in out.glob("part-*")) >= 4)
    os.kill(process.pid, signal.SIGKILL)
    assert "Traceback" not in end(process).stderr  # of the other processes, whose parent is gone
    assert run(*args, cwd=tmp_path).code == 0
    (level,) = result(out).levels
    assert level.requests.succeeded == 30
    assert len(by_id(out)) >= 34


def test_another_test_does_not_go_on_in_the_same_folder(tmp_path):
    file = jobs(tmp_path)
    load(tmp_path, file, "--simulate", "--concurrency", "1", "--requests", "2")
    refused = load(tmp_path, file, "--simulate", "--concurrency", "1", "--requests", "3", code=2)
    assert "--fresh" in refused.stderr
    load(tmp_path, file, "--simulate", "--concurrency", "1", "--requests", "3", "--fresh")


PRICES = '[prices."synthetic-1"]\ninput = 10.0\noutput = 1000.0\n'


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_what_was_spent_before_an_interruption_counts_and_more_may_be_allowed_later(tmp_path, workers):
    (tmp_path / "prices.toml").write_text(PRICES)
    out = tmp_path / "out"
    args = [*MADE, "--simulate", "--concurrency", "2", "--duration", "60s", "--config", "prices.toml"]
    args += ["--workers", workers]
    first = load(tmp_path, *args, "--max-cost", "0.02", code=4)
    spent = sum(record["runner"]["cost"] for record in records(out))
    assert spent >= 0.02
    assert "spent (--max-cost 0.02); with that changed, the same command goes on" in first.stderr
    (cut,) = result(out).levels
    again = load(tmp_path, *args, "--max-cost", "0.02", code=4)
    assert f"stopped: {spent:.4g} spent, {spent:.4g} of it by earlier starts" in again.stderr
    assert sum(record["runner"]["cost"] for record in records(out)) == spent  # nothing was sent
    assert result(out).levels == (cut,)  # and nothing lost of what was measured
    more = load(tmp_path, *args, "--max-cost", "0.04", code=4)
    assert f"{spent:.4g} of it by earlier starts (--max-cost 0.04)" in more.stderr
    now = sum(record["runner"]["cost"] for record in records(out))
    assert 0.04 <= now < spent + 0.04  # what was in flight comes on top


# ── Ends ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("slip", [("--input-tokens", "-3"), ("--turns", "two"), ("--think", "nan", "--turns", "2")])
def test_a_slip_in_the_prompts_options_does_not_claim_the_folder_for_a_test_that_never_was(tmp_path, slip):
    load(tmp_path, "--synthetic", "--simulate", "--requests", "2", "--concurrency", "1", *slip, code=2)
    load(tmp_path, *MADE, "--simulate", "--requests", "2", "--concurrency", "1")


@pytest.mark.parametrize("option", [(), ("--sharegpt",), ("--synthetic", "--trace")])
def test_an_input_that_the_test_would_write_over_is_refused_and_stays(tmp_path, option):
    (tmp_path / "load.csv").write_text("timestamp\n0\n1\n")
    ended = run("load", *option, "load.csv", "--simulate", "--out", ".", cwd=tmp_path)
    assert ended.code == 2
    assert "load.csv is a file that the run itself writes" in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["load.csv"]


def test_a_port_where_nobody_listens_is_refused_before_anything_is_measured(tmp_path):
    args = (*MADE, "--model", "m", "--base-url", "http://127.0.0.1:9/v1", "--concurrency", "1", "--requests", "2")
    ended = load(tmp_path, *args, code=1)
    assert "nobody answers at http://127.0.0.1:9/v1 (connection refused)" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_fresh_leaves_what_is_there_where_nobody_listens(tmp_path):
    def left():
        return {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != ".lock"}

    load(tmp_path, *MADE, "--simulate", "--concurrency", "1", "--requests", "2")
    before = left()
    args = (*MADE, "--model", "m", "--base-url", "http://127.0.0.1:9/v1", "--concurrency", "1", "--requests", "2")
    load(tmp_path, *args, "--fresh", code=1)
    assert left() == before


class HangsUp(socketserver.BaseRequestHandler):
    """Takes a connection and closes it."""


class Refuses(socketserver.BaseRequestHandler):
    """Takes no key."""

    def handle(self):
        body = b'{"error": {"message": "wrong key", "code": "invalid_api_key"}}'
        while self.request.recv(65_536):
            head = b"HTTP/1.1 401 Unauthorized\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            self.request.sendall(head % len(body) + body)


@contextmanager
def serving(handler):
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()


def test_a_level_without_any_answer_exits_with_1_and_says_that_its_streams_backed_off(tmp_path):
    with serving(HangsUp) as url:
        args = (*MADE, "--model", "m", "--base-url", url, "--concurrency", "1", "--requests", "7")
        ended = load(tmp_path, *args, code=1)
    (level,) = result(tmp_path / "out").levels
    assert level.errors == {"connection_broken": 7}
    assert level.requests.failed == 7
    assert 0 < level.backed_off < 7
    assert f"never offered: 1 concurrent {level.backed_off} times" in " ".join(ended.stdout.split())


def test_a_level_whose_every_request_is_too_large_for_the_limits_exits_with_1_and_kept_no_objective(tmp_path):
    args = (*MADE, "--simulate", "--tpm", "1", "--concurrency", "1", "--requests", "3", "--slo", "ttft=1s")
    load(tmp_path, *args, code=1)
    (level,) = result(tmp_path / "out").levels
    assert (level.requests.offered, level.requests.dropped, level.requests.in_window) == (3, 3, 3)
    assert level.goodput == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_wrong_key_stops_the_test_with_one_line_and_exits_with_4(tmp_path, workers):
    with serving(Refuses) as url:
        args = (*MADE, "--model", "m", "--base-url", url, "--concurrency", "2", "--workers", workers)
        ended = load(tmp_path, *args, code=4)
    assert "Traceback" not in ended.stderr
    assert "runner: stopped: not_authorized: " in ended.stderr
    (level,) = result(tmp_path / "out").levels
    assert not level.complete


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("jobs.jsonl", "--synthetic"),
        ("jobs.jsonl", "--concurrency", "0"),
        ("missing.jsonl", "--simulate"),
        ("jobs.jsonl", "--slo", "fast", "--simulate"),
        ("jobs.jsonl", "--max-cost", "1", "--simulate"),
        (*MADE, "--base-url", "http://127.0.0.1:9/v1"),
        (*MADE, "--input-tokens", "many", "--simulate"),
        ("jobs.jsonl", "--trace", "jobs.jsonl", "--simulate"),
        ("jobs.jsonl",),
    ],
    ids=str,
)
def test_what_cannot_be_done_exits_with_2_and_one_line_and_makes_no_folder(tmp_path, args):
    jobs(tmp_path)
    ended = load(tmp_path, *args, code=2)
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


async def test_a_folder_that_another_test_was_quicker_to_make_is_looked_at_again(tmp_path, monkeypatch):
    def beaten(folder):
        folder.mkdir()
        Store(folder).write_manifest({"options": {}, "settings": {}})
        return lock_folder(folder)

    monkeypatch.setattr("runner.load.run.lock_folder", beaten)
    options = LoadOptions(synthetic=True, out=str(tmp_path / "out"))
    with serving(HangsUp) as url, pytest.raises(UsageError, match="holds another load test"):
        await run_load(options, Settings(base_url=url, model="m"), [])


def test_compare_lays_two_tests_side_by_side(tmp_path):
    for name in ("a", "b"):
        args = (*MADE, "--simulate", "--concurrency", "2", "--requests", "5", "--out", name, *QUICK)
        assert run("load", *args, cwd=tmp_path).code == 0
    ended = run("compare", "a", "b/load.json", "--html", "c.html", cwd=tmp_path)
    assert ended.code == 0, ended.stderr
    assert "TTFT" in ended.stdout
    assert (tmp_path / "c.html").read_text().startswith("<!doctype html>")
    assert run("compare", "a", "nowhere", cwd=tmp_path).code == 2
