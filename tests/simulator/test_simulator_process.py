"""The simulator as a process: its command line, its one line of output, and that it never outlives its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from runner.errors import UsageError
from runner.simulator import Profile, SimulatorError, simulator_process
from runner.simulator.__main__ import main, parser, profile_of
from runner.simulator.profile import FLAKY, PRESETS
from tests.simulator.simulator_client import FAST, GUARD_S, chat, post
from tests.simulator.simulator_reference import rehearse

_PARENT = """
import asyncio, os, signal, sys
from runner.simulator import simulator_process

async def main():
    async with simulator_process("default") as simulator:
        helper = os.fork() if sys.argv[1] == "helper" else 0
        if helper == 0 and sys.argv[1] == "helper":
            os.close(2)  # it holds the simulator's pipe open, and must not hold the test's
            os.close(1)
            signal.pause()
        print(simulator.base_url, helper, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@asynccontextmanager
async def started(*command):
    """A process of Python, killed at the end whatever happens."""
    child = await asyncio.create_subprocess_exec(sys.executable, *command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
    try:
        async with asyncio.timeout(GUARD_S):
            yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def asking(url, name, headers=()):
    """A request that is being answered, until the simulator ends."""
    task = asyncio.create_task(post(url, "/chat/completions", rehearse(name, chat(), tokens_per_s=10), headers))
    while not (await stats(url))["in_flight"]:
        pass
    return task


def command_line(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes()


async def stats(url):
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.removesuffix("/v1").rpartition(":")[2]))
    writer.write(b"GET /stats HTTP/1.0\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return orjson.loads(answer.partition(b"\r\n\r\n")[2])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_says_one_line_serves_and_ends_quietly_at_a_signal_even_in_mid_stream(number):
    async with started("-m", "runner.simulator", "--seed", "7") as child:
        line = orjson.loads(await child.stdout.readline())
        url = line["base_url"]
        assert line == {"port": int(url.split(":")[2].split("/")[0]), "base_url": url, "seed": 7, "synthetic": True}
        assert (await post(url, "/chat/completions", chat(simulate={"ttft_s": 0, "tokens": 1}))).status == 200
        streaming, stalled = await asking(url, "endless"), await asking(url, "slow_headers")
        child.send_signal(number)
        assert await child.communicate() == (b"", b"")
        assert child.returncode == 0
        await asyncio.gather(streaming, stalled)


@pytest.mark.slow
async def test_an_address_in_use_is_one_line_and_exit_2():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with started("-m", "runner.simulator", "--port", str(taken.getsockname()[1])) as child:
            said, complaint = await child.communicate()
    assert (child.returncode, said) == (2, b"")
    assert complaint.count(b"\n") == 1
    assert b"address already in use" in complaint


@pytest.mark.parametrize(
    ("options", "words"),
    [
        *((["--port", "70000"], "port must be 0-65535"), (["--host", "256.0.0.1"], "can't listen on 256.0.0.1")),
        *((["--fault", "nope=0.1"], "no scenario is called 'nope'"), (["--rpm", "nan"], "rpm can't be nan")),
        *((["--log", "/dev/null/log"], "can't write"), (["--api-key-env", "RUNNER_NO_SUCH"], "is not set")),
    ],
)
def test_what_cannot_be_served_is_one_line_and_exit_2(options, words, capsys, monkeypatch):
    monkeypatch.setattr("runner.simulator.__main__._raise_file_limit", lambda: None)
    assert main(options) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert words in said.err


@pytest.mark.parametrize("options", [["--fault", "http_500"], ["--fault", "http_500=x"], ["--output-tokens", "1-x"]])
def test_an_option_with_a_slip_of_the_pen_shows_what_was_meant(options, capsys):
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args(options)
    assert repr(options[1]) in capsys.readouterr().err


def test_options_change_the_preset_and_nothing_else(monkeypatch):
    monkeypatch.setenv("SIMULATOR_KEY", "sk-1")
    assert profile_of(parser().parse_args([])) == Profile()
    assert profile_of(parser().parse_args(["--preset", "storm"])) == PRESETS["storm"]
    given = "--ttft 0.5 --tokens-per-s inf --jitter 0 --output-tokens 5-9 --seed 3 --rpm 60 --tpm 9e3 --burst-s 2"
    more = "--max-concurrency 8 --fault bad_json=0.5 --fault http_500=0 --api-key-env SIMULATOR_KEY --preset flaky"
    assert profile_of(parser().parse_args([*given.split(), *more.split()])) == replace(
        PRESETS["flaky"],
        ttft_s=0.5,
        tokens_per_s=float("inf"),
        jitter=0,
        output_tokens=(5, 9),
        seed=3,
        rpm=60,
        tpm=9_000,
        burst_s=2,
        max_concurrency=8,
        fault_rates={**FLAKY, "bad_json": 0.5, "http_500": 0},
        api_key="sk-1",
    )


@pytest.mark.slow
async def test_a_simulator_of_ones_own_lives_as_long_as_its_block(tmp_path):
    profile = replace(FAST, rpm=6, api_key="sk-canary")
    async with simulator_process(profile, log=tmp_path / "log") as simulator:
        key = ["authorization: Bearer sk-canary"]
        statuses = [(await post(simulator.base_url, "/chat/completions", chat(), key)).status for _ in range(2)]
        await simulator.limit(rpm=None, tpm=None)
        statuses.append((await post(simulator.base_url, "/chat/completions", chat(), key)).status)
        seen = await simulator.stats(last=1)
        streaming = await asking(simulator.base_url, "endless", key)
        command = command_line(simulator.pid)
    assert statuses == [200, 429, 200]
    assert (seen["requests"], len(seen["log"])) == (3, 1)
    assert b"canary" not in command
    assert (tmp_path / "log").read_bytes().count(b'"event":"end"') >= 3
    await streaming
    with pytest.raises(ConnectionRefusedError):
        await post(simulator.base_url, "/chat/completions", chat())


@pytest.mark.slow
@pytest.mark.parametrize("helper", ["alone", "helper"])
async def test_it_dies_with_a_parent_that_is_killed_also_where_another_process_holds_its_pipe(helper):
    async with started("-c", _PARENT, helper) as parent:
        url, forked = (await parent.stdout.readline()).decode().split()
        try:
            assert (await post(url, "/chat/completions", chat(simulate={"tokens": 1, "ttft_s": 0}))).status == 200
            stalled = await asking(url, "stall_first")
            parent.kill()
            # the simulator has its parent's stderr: this ends when both are gone, and quietly
            assert await parent.stderr.read() == b""
            await stalled
        finally:
            if forked != "0":
                os.kill(int(forked), signal.SIGKILL)
    with pytest.raises(ConnectionRefusedError):
        await post(url, "/chat/completions", chat())


async def test_a_process_that_does_not_start_says_what_it_said(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/echo")
    with pytest.raises(SimulatorError, match=r"did not start \(it said b'-m runner.simulator --child"):
        await simulator_process("default").__aenter__()


async def test_a_profile_that_cannot_be_starts_no_process():
    with pytest.raises(UsageError, match="no preset"):
        await simulator_process("strom").__aenter__()
    with pytest.raises(UsageError, match="http_501"):
        await simulator_process(Profile(fault_rates={"http_501": 0.5})).__aenter__()
