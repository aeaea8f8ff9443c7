"""`python -m runner.simulator`: the simulator as a process. Prints one line of JSON when it listens."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import orjson

from runner.errors import RunnerError, UsageError, of_system
from runner.simulator.faults import SCENARIOS, check
from runner.simulator.profile import PRESETS, Profile
from runner.simulator.server import base_url, serve, serve_forever

_PARENT_CHECK_S: Final = 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the simulator until it is told to stop; returns the exit code."""
    try:
        options = parser().parse_args(argv)
        _raise_file_limit()
        if options.child:
            profile = Profile.from_json(sys.stdin.buffer.readline())
            asyncio.run(_child(profile, options.log))
        else:
            profile = profile_of(options)
            ready = _announcer(profile, options.host)
            asyncio.run(serve_forever(profile, options.host, options.port, ready=ready, log=options.log))
    except (BrokenPipeError, KeyboardInterrupt):  # whoever started it has gone, or goes
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python would complain of what it can't flush
        return 0
    except Exception as error:
        ours = error if isinstance(error, RunnerError) else of_system(error)
        if ours is None:
            raise
        print(f"runner: {ours}", file=sys.stderr)  # noqa: T201 - this is the command line
        return ours.exit_code
    return 0


def parser() -> argparse.ArgumentParser:
    """The options; what isn't given stays as the preset has it."""
    scenarios = "\n".join(f"  {name:22} {scenario.summary}" for name, scenario in SCENARIOS.items())
    result = argparse.ArgumentParser(
        prog="python -m runner serve",
        description="An OpenAI-compatible server. Everything it says is synthetic.",
        epilog=f"scenarios:\n{scenarios.replace('%', '%%')}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = result.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=0, help="0 takes a free one, which the first line of output names")
    add("--preset", choices=sorted(PRESETS), default="default")
    add("--ttft", type=float, metavar="SECONDS", help="to the first token")
    add("--tokens-per-s", type=float, metavar="N", help="of one stream; inf for no pacing")
    add("--jitter", type=float, metavar="SHARE", help="of both, e.g. 0.2")
    add("--output-tokens", type=_tokens, metavar="MEAN|LOW-HIGH", help="length of an answer")
    add("--seed", type=int)
    add("--rpm", type=float, metavar="N", help="requests a minute; 429 above")
    add("--tpm", type=float, metavar="N", help="tokens a minute; 429 above")
    add("--burst-s", type=float, metavar="SECONDS", help="seconds' worth of both that may be spent at once")
    add("--max-concurrency", type=int, metavar="N", help="requests at once; 503 above")
    add("--fault", type=_rate, action="append", default=[], metavar="NAME=SHARE", help="repeatable; see below")
    add("--log", type=Path, metavar="FILE", help="append every request's arrival and end as a line of JSON")
    add("--api-key-env", metavar="NAME", help="answer 401 to any key but the one in this environment variable")
    add("--child", action="store_true", help=argparse.SUPPRESS)
    return result


def profile_of(options: argparse.Namespace) -> Profile:
    """The profile that the options describe.

    Raises:
        UsageError: a value is out of range, or the named variable is unset.
    """
    named = ("tokens_per_s", "jitter", "output_tokens", "seed", "rpm", "tpm", "burst_s", "max_concurrency")
    given: dict[str, Any] = {name: getattr(options, name) for name in named} | {"ttft_s": options.ttft}
    preset = PRESETS[options.preset]
    given["fault_rates"] = {**preset.fault_rates, **dict(options.fault)}
    if options.api_key_env is not None:
        given["api_key"] = os.environ.get(options.api_key_env)
        if not given["api_key"]:
            raise UsageError(f"simulator: the environment variable {options.api_key_env} is not set")
    changes = {name: value for name, value in given.items() if value is not None}
    return check(dataclasses.replace(preset, **changes))


def _tokens(text: str) -> int | tuple[int, int]:
    low, dash, high = text.partition("-")
    try:
        return (int(low), int(high)) if dash else int(low)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor LOW-HIGH") from error


def _rate(text: str) -> tuple[str, float]:
    name, _, share = text.rpartition("=")
    try:
        return name, float(share)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=SHARE, as in http_500=0.1") from error


def _announcer(profile: Profile, host: str) -> Callable[[int], None]:
    """Prints where the simulator is, for a parent to read and for people."""

    def ready(port: int) -> None:
        line = {"port": port, "base_url": base_url(host, port), "seed": profile.seed, "synthetic": True}
        sys.stdout.write(orjson.dumps(line).decode() + "\n")
        sys.stdout.flush()

    return ready


async def _child(profile: Profile, log: Path | None) -> None:
    """Serves for as long as the parent lives: its end closes our standard input, or makes us somebody else's child."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    parent = os.getppid()

    def listen() -> None:
        if not os.read(0, 4_096):
            stop.set()
            loop.remove_reader(0)

    async def watch() -> None:
        # A process forked by the parent may hold the pipe open after the parent's death.
        while os.getppid() == parent:  # noqa: ASYNC110 - the kernel sends no event for it
            await asyncio.sleep(_PARENT_CHECK_S)
        stop.set()

    loop.add_reader(0, listen)
    watcher = asyncio.create_task(watch())
    try:
        await serve(profile, "127.0.0.1", 0, ready=_announcer(profile, "127.0.0.1"), stop=stop, log=log)
    finally:
        watcher.cancel()


def _raise_file_limit() -> None:
    """Every stream is a file descriptor: takes as many as the system gives without asking."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
