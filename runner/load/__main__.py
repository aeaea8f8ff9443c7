"""One process of `--workers N`: told by its parent, line by line, what to send. Not for people."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any, Final

import anyio
import orjson

from runner import resources
from runner.files import OsFiles
from runner.folder import LOG
from runner.load.crew import Alone
from runner.load.engine import Engine
from runner.load.options import LoadOptions
from runner.load.sender import Part
from runner.load.spec import LevelSpec
from runner.load.workload import read_workload
from runner.logs import log_to
from runner.recovery import recover
from runner.settings import Settings
from runner.target import Target, resolve, simulated
from runner.wiring import redactor_for

LIVE_EVERY_S: Final = 0.5
_LINE_BYTES: Final = 16 * 2**20


def main() -> None:
    """Runs until standard input ends."""
    anyio.run(_child, backend_options=resources.event_loop())


async def _child() -> None:
    resources.raise_descriptor_limit()
    told = asyncio.StreamReader(limit=_LINE_BYTES)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    task: dict[str, Any] = orjson.loads(await told.readline())
    settings, options = Settings(**task["settings"]), LoadOptions.from_dict(task["options"])
    targets = _targets(settings, task["simulator"])
    redactor = redactor_for(targets)
    with log_to(Path(task["log"]) / LOG, settings.log_level, redactor):
        workload = await read_workload(options, task["seed"], task["salt"])
        folder = Path(task["folder"])
        await anyio.to_thread.run_sync(recover, OsFiles(), folder)
        engine = Engine(settings, targets, folder, redactor, spent=task["spent"])
        async with engine.running():
            crew = Alone(engine, workload, options.objectives, Part(task["index"], task["of"]))
            _say({"ready": True})
            async with anyio.create_task_group() as tasks:
                while line := await told.readline():
                    message = orjson.loads(line)
                    if "level" in message:
                        tasks.start_soon(_level, crew, LevelSpec(**message["level"]), message["zero_s"])
                    elif "stop" in message:
                        crew.stop()
                    else:
                        crew.cut()
                crew.cut()


def _targets(settings: Settings, simulator: str | None) -> list[Target]:
    return resolve(settings) if simulator is None else simulated(settings, simulator)


async def _level(crew: Alone, spec: LevelSpec, zero_s: float) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_report, crew)
        measured = await crew.run(spec, zero_s)
        tasks.cancel_scope.cancel()
    _say({**measured._asdict(), "statistics": measured.statistics.to_dict(), "reason": _reason(crew)})


async def _report(crew: Alone) -> None:
    while True:
        await anyio.sleep(LIVE_EVERY_S)
        _say({"live": crew.live._asdict(), "reason": _reason(crew)})


def _reason(crew: Alone) -> list[Any] | None:
    return None if crew.reason is None else list(crew.reason)  # orjson knows no named tuples


def _say(message: dict[str, Any]) -> None:
    try:
        sys.stdout.buffer.write(orjson.dumps(message) + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        # The parent was killed: standard input ends, too, and with it this process. What is left to flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
