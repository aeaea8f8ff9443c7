"""Promises that belong to no module alone: a whole run, or all of admission, under what the world does to it."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections import deque
from contextlib import aclosing

import anyio
import orjson
import pytest

from runner import manifest
from runner.admission import Admission
from runner.concurrency import FixedConcurrency
from runner.errors import InputError, UsageError
from runner.limits import READ_BLOCK_BYTES
from runner.outcome import Usage
from runner.settings import ModelLimits
from runner.source import JobSource
from runner.testing.virtual_time import run_virtual
from runner.tickets import Need
from tests.process import TIMEOUT_S, by_id, end, environment, run, start, write_jobs

HOUR_S = 3_600.0

# ── Rate ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def worst_window(events):
    """The largest sum of the amounts in a half-open window of 60 s."""
    inside: deque[tuple[float, float]] = deque()
    total = worst = 0.0
    for at, amount in events:
        inside.append((at, amount))
        total += amount
        while inside[0][0] <= at - 60:
            total -= inside.popleft()[1]
        worst = max(worst, total)
    return worst


@pytest.mark.parametrize("seed", range(20))
def test_over_a_virtual_hour_no_window_of_60_s_is_above_the_limit_and_one_admission(seed):
    """Requests and tokens together, jobs of every size, a third of the reservation given back, some cancelled."""
    rng = random.Random(seed)
    rpm, tpm = rng.choice([(20, 60_000), (120, 30_000), (500, 30_000)])
    sizes = [200, 1_000, tpm // 4]
    requests: list[tuple[float, float]] = []
    tokens: list[tuple[float, float]] = []

    async def work(admission):
        while True:
            size = rng.choice(sizes)
            with anyio.move_on_after(rng.choice([5.0, *[1e9] * 9])):
                ticket = await admission.acquire("m", Need(size, size // 2))
                used = size + rng.randrange(size // 2 + 1)
                now = anyio.current_time()
                requests.append((now, 1))
                tokens.append((now, used))
                admission.settle(ticket, Usage(size, used - size))
                admission.release(ticket)

    async def main():
        clock = asyncio.get_running_loop().time
        limits = {"*": ModelLimits(rpm=1e9)}
        admission = Admission.of_one(rpm=rpm, tpm=tpm, concurrency=FixedConcurrency(50), clock=clock, limits=limits)
        with anyio.move_on_after(HOUR_S):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(admission.run)
                for _ in range(4):
                    tasks.start_soon(work, admission)

    run_virtual(main)
    assert worst_window(requests) <= rpm
    assert worst_window(tokens) <= tpm + 1.5 * max(sizes)
    assert sum(amount for _, amount in tokens) >= 0.6 * tpm * 60 or len(requests) >= 0.6 * rpm * 60


# ── The machine ──────────────────────────────────────────────────────────────────────────────────────────────────────


def jobs_of(tmp_path, count, name="jobs.jsonl", **more):
    lines = ({"custom_id": f"job-{i}", "prompt": f"question {i}", **more} for i in range(count))
    return write_jobs(tmp_path / name, lines)


def to(base_url, *more):
    return ("--base-url", base_url, "--model", "synthetic-1", "--progress", "none", *more)


@pytest.mark.slow
def test_a_wall_clock_that_jumps_changes_nothing(flaky_simulator, tmp_path):
    """time.time goes hours back and forth at every look; only labels may tell."""
    (tmp_path / "sitecustomize.py").write_text(
        "import itertools, time\n"
        "real, turns = time.time, itertools.count()\n"
        "time.time = lambda: real() + (next(turns) % 7 - 3) * 9_999_999\n"
    )
    path = jobs_of(tmp_path, 60)
    env = environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{environment()['PYTHONPATH']}")
    options = to(flaky_simulator.base_url, "--max-attempts", 20, "--rpm", 6_000)
    ended = run(path, *options, cwd=tmp_path, env=env)
    assert ended.code == 0, ended.stderr
    found = by_id(tmp_path / "results" / "jobs")
    assert len(found) == 60
    for record in found.values():
        facts = record["runner"]
        times = [facts["queue_s"], facts["limiter_wait_s"], facts["ttft_s"], facts["duration_s"]]
        assert all(0 <= seconds < TIMEOUT_S for seconds in times), facts


@pytest.mark.slow
def test_few_descriptors_are_said_clearly_and_burn_no_attempts(slow_simulator, tmp_path):
    def few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))

    path = jobs_of(tmp_path, 120)
    ended = run(
        path,
        *to(slow_simulator.base_url, "--concurrency", 100, "--rpm", 60_000, "--max-attempts", 2),
        cwd=tmp_path,
        preexec_fn=few,
    )
    assert ended.code == 0, ended.stderr
    found = by_id(tmp_path / "results" / "jobs")
    assert all(record["error"] is None for record in found.values())
    reasons = [retry for record in found.values() for retry in record["runner"]["retries"]]
    assert reasons
    assert all(retry["reason"] == "too_many_open_files" and "ulimit -n" in retry["message"] for retry in reasons)


# ── The network ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def self_signed(tmp_path):
    """A server nobody vouches for: its port, and a list of the connections that came."""
    pem = str(tmp_path / "pem")
    subject = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -keyout {pem} -out {pem}.crt".split()
    subprocess.run([*command, *subject], check=True, capture_output=True, timeout=TIMEOUT_S)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(f"{pem}.crt", pem)
    came: list[str] = []

    def serve(listening):
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            came.append("connection")
            with connection:
                try:
                    with context.wrap_socket(connection, server_side=True) as secured:
                        came.append(f"request: {secured.recv(1_000)!r}")
                except OSError:
                    continue

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,))
        thread.start()
        yield listening.getsockname()[1], came
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is absent: it makes the certificate")
def test_a_certificate_nobody_vouches_for_stops_the_run_and_is_not_tried_again(self_signed, tmp_path):
    port, came = self_signed
    path = jobs_of(tmp_path, 5)
    ended = run(path, *to(f"https://127.0.0.1:{port}/v1", "--concurrency", 1), cwd=tmp_path)
    assert ended.code == 4, ended.stderr
    assert came == ["connection"]
    summary = orjson.loads((tmp_path / "results/jobs/summary.json").read_bytes())
    assert "certificate" in summary["run"]["ended"]
    assert not by_id(tmp_path / "results" / "jobs")


# ── What is changed while it runs ────────────────────────────────────────────────────────────────────────────────────


def read_in_two_halves(path, meanwhile):
    """The ids of a file's jobs, with something happening after the first batch."""
    found: list[str] = []

    async def read():
        async with aclosing(JobSource([str(path)]).batches()) as batches:
            async for batch in batches:
                if not found:
                    meanwhile()
                found.extend(item.id for item in batch)

    anyio.run(read)
    return found


LARGE = 4 * READ_BLOCK_BYTES // 50
"""Jobs of some 50 bytes that don't come in one read."""


@pytest.mark.parametrize("more", [b'{"custom_id":"late","prompt":"x"}\n', b'{"custom_id":"late","pro'])
def test_what_is_appended_while_a_file_is_read_is_for_the_next_run(tmp_path, more):
    """Half a line would be a failed record for ever."""
    path = jobs_of(tmp_path, LARGE)

    def append():
        with path.open("ab") as file:
            file.write(more)

    assert read_in_two_halves(path, append) == [f"job-{i}" for i in range(LARGE)]


@pytest.mark.parametrize("size", [0, READ_BLOCK_BYTES + 1_000])
def test_a_file_that_becomes_shorter_while_it_is_read_is_an_error_that_names_it(tmp_path, size):
    """Its end would look like the end of the jobs, and the run complete."""
    path = jobs_of(tmp_path, LARGE)
    with pytest.raises(InputError, match=r"jobs\.jsonl: it became [\d,]+ bytes shorter while it was read"):
        read_in_two_halves(path, lambda: os.truncate(path, size))


@pytest.mark.slow
def test_results_that_are_deleted_in_mid_run_end_it_before_more_is_paid_for(slow_simulator, tmp_path):
    path = jobs_of(tmp_path, 2_000)
    results = tmp_path / "results" / "jobs" / "results.jsonl"
    process = start(path, *to(slow_simulator.base_url, "--concurrency", 8), cwd=tmp_path)
    while process.poll() is None and not (results.exists() and results.stat().st_size):
        time.sleep(0.02)  # a real process is awaited: there is no event for it
    results.unlink()
    ended = end(process)
    assert ended.code == 74
    assert "results.jsonl: fsync: the file was deleted while it was written" in ended.stderr
    assert run(path, *to(slow_simulator.base_url, "--limit", 5), cwd=tmp_path).code == 0
    assert len(by_id(results.parent)) == 5


@pytest.mark.parametrize("schema", [2, 99, "2", None])
def test_a_folder_of_a_later_version_is_refused_and_left_alone(tmp_path, schema):
    data = orjson.dumps({"schema": schema, "runner": "9.9", "input": {"paths": ["jobs.jsonl"]}})
    with pytest.raises(UsageError, match=r"manifest\.json was written by a later version \(runner 9\.9\).*--fresh"):
        manifest.load(data, tmp_path / "manifest.json")
    assert manifest.load(orjson.dumps({"schema": 1, "input": {}}), tmp_path)
