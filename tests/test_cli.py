"""The command line where the system gives less than usual: streams that are full or closed, too few of what it lends.

Each case is a real process: one clear line at most, no traceback, an exit code of the contract.
"""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading

import pytest

from runner import resources
from runner.cli import main
from runner.errors import OutputError, ResourceError, of_system
from runner.simulator import Profile
from tests.process import RUNNER, TIMEOUT_S, environment, run, start, write_jobs
from tests.test_strace import STRACE, strace_works

TEXTS = ("--help", "--version", "load --help")


@pytest.mark.slow
@pytest.mark.parametrize("words", TEXTS)
def test_a_text_that_nobody_can_take_is_no_error(tmp_path, words):
    with open("/dev/full", "w") as full:
        process = start(*words.split(), cwd=tmp_path, stdout=full)
        _, said = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, said) == (0, b"")


def by_shell(command, folder):
    return subprocess.run(
        ["sh", "-c", command], cwd=folder, env=environment(), stderr=subprocess.PIPE, timeout=TIMEOUT_S, check=False
    )


@pytest.mark.slow
def test_a_report_that_nobody_can_take_is_written_all_the_same(simulator, tmp_path):
    path = write_jobs(tmp_path / "jobs.jsonl", [{"prompt": "x"}])
    options = ("--base-url", simulator.base_url, "--model", "synthetic-1", "--progress", "none")
    assert run(path, *options, cwd=tmp_path).code == 0
    summary = tmp_path / "results" / "jobs" / "summary.json"
    summary.unlink()
    for closing in (">/dev/full", ">&- 2>&-"):
        command = f"exec {sys.executable} -m runner report results/jobs {closing}"
        ended = by_shell(command, tmp_path)
        assert (ended.returncode, ended.stderr) == (0, b""), closing
        assert summary.exists()
        summary.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("where", [("--simulate",), ("--base-url", "http://127.0.0.1:9/v1", "--model", "m")])
@pytest.mark.parametrize("allowed", [8, 26])
def test_too_few_descriptors_are_one_line_and_nothing_is_begun(tmp_path, allowed, where):
    path = write_jobs(tmp_path / "jobs.jsonl", [{"prompt": "x"}])
    env = environment(OPENAI_API_KEY="sk-none")

    def few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))

    ended = run(path, *where, cwd=tmp_path, env=env, preexec_fn=few)
    assert ended.code == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"runner: too few files may be open: `ulimit -n` is {allowed}")
    assert not (tmp_path / "results").exists()


@pytest.mark.slow
@pytest.mark.skipif(not strace_works(), reason="strace is absent, or ptrace is refused")
@pytest.mark.parametrize(
    ("inject", "word"),
    [
        ("clone3:error=EAGAIN:when=5+", "no more threads"),
        ("epoll_create1:error=EMFILE:when=2", "ulimit -n"),
        ("socketpair:error=EMFILE:when=1", "ulimit -n"),
    ],
)
def test_what_the_system_refuses_is_one_line_and_not_a_traceback(tmp_path, inject, word):
    path = write_jobs(tmp_path / "jobs.jsonl", [{"prompt": "x"}])
    traced = ["-e", f"trace={inject.partition(':')[0]}", "-e", f"inject={inject}"]
    command = [*STRACE, "--seccomp-bpf", "-o", str(tmp_path / "trace"), *traced, *RUNNER, str(path)]
    command += ["--base-url", "http://127.0.0.1:9/v1", "--model", "m"]
    env = environment(OPENAI_API_KEY="sk-none")
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, timeout=TIMEOUT_S, check=False)
    assert "INJECTED" in (tmp_path / "trace").read_text()
    said = ended.stderr.decode()
    assert ended.returncode == 2, said
    # uvloop has a line of its own where a loop could not be made.
    (line,) = [line for line in said.splitlines() if line != "deallocating an open event loop"]
    assert line.startswith("runner: ")
    assert word in line


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://u:sk-canary@127.0.0.1/v1", "'http://[redacted]@127.0.0.1/v1'"),
        ("http://u:sk/canary@x@127.0.0.1/v1", None),
        ("http://127.0.0.1/v1?key=sk-canary", "'http://127.0.0.1/v1?[redacted]'"),
        ("http://127.0.0.1/v1#sk-canary", "'http://127.0.0.1/v1#[redacted]'"),
        ("u:word-canary@127.0.0.1/v1", "'u:[redacted]@127.0.0.1/v1'"),
        ("http:/u:word-canary@127.0.0.1/v1", "'http:/u:[redacted]@127.0.0.1/v1'"),
    ],
)
def test_a_refused_url_is_shown_without_what_it_holds_of_a_key(url, shown, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = write_jobs(tmp_path / "jobs.jsonl", [{"prompt": "x"}])
    with pytest.raises(SystemExit) as ended:
        main([str(path), "--base-url", url])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "canary" not in said
    assert shown is None or shown in said


def test_a_key_in_the_place_of_its_variables_name_is_not_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    path = write_jobs(tmp_path / "jobs.jsonl", [{"prompt": "x"}])
    with pytest.raises(SystemExit) as ended:
        main([str(path), "--api-key-env", "sk-canary-0123456789"])
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert "the environment variable [redacted] is not set" in said
    assert "canary" not in said


def test_what_a_load_test_was_asked_is_kept_without_what_its_urls_hold_of_a_key(monkeypatch):
    kept: list[list[str]] = []
    monkeypatch.setattr("runner.load.command.run_command", lambda config, given, argv: kept.append(argv))
    metrics = "http://u:canary@127.0.0.1/metrics?x=canary"
    monkeypatch.setattr(sys, "argv", ["runner", "load", "a@b.jsonl", "--rate", "5,20", "--server-metrics", metrics])
    with pytest.raises(SystemExit):
        main()
    shown = "http://[redacted]@127.0.0.1/metrics?[redacted]"
    assert kept == [["load", "a@b.jsonl", "--rate", "5,20", "--server-metrics", shown]]


@pytest.mark.slow
def test_a_simulator_whose_parent_is_gone_ends_quietly(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    profile = Profile().to_json() + b"\n"
    command = [sys.executable, "-m", "runner.simulator", "--child"]
    child = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdin=subprocess.PIPE, stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    _, said = child.communicate(profile, timeout=TIMEOUT_S)
    assert (child.returncode, said) == (0, b"")


@pytest.mark.parametrize(
    ("error", "kind", "word"),
    [
        (OSError(errno.EMFILE, "Too many open files"), ResourceError, "ulimit -n"),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), ResourceError, "no more of what was asked"),
        (OSError(errno.EIO, "Input/output error", "/x/y"), OutputError, "/x/y: Input/output error"),
        (RuntimeError("can't start new thread"), ResourceError, "no more threads"),
        (MemoryError(), ResourceError, "no more memory"),
    ],
)
def test_what_a_system_may_refuse_has_a_line(error, kind, word):
    ours = of_system(error)
    assert type(ours) is kind
    assert word in str(ours)
    later = RuntimeError("Cannot close a running event loop")
    later.__context__ = error
    assert (of_system(later) is None) == (kind is OutputError)


def test_an_error_of_ours_keeps_its_traceback():
    assert of_system(RuntimeError("a bug")) is None
    assert of_system(KeyError("a bug")) is None


def test_a_bug_is_raised_and_not_said_in_a_line(monkeypatch):
    monkeypatch.setattr("runner.cli.cli.main", lambda **_: dict[str, int]()["bug"])
    with pytest.raises(KeyError, match="bug"):
        main(["check", "x"])


def test_few_threads_are_found_out_before_anything_is_begun(monkeypatch):
    def refuse(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ResourceError, match="no more threads"):
        resources.event_loop()
