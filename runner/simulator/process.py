"""The simulator in a process of its own, for the length of a `with` block.

The child gets its profile through its standard input, so that no key is on a command line, and dies at the end of
that input: when the block is left, and also when the parent is killed, since the kernel closes the pipe then. It has a
session of its own: Ctrl-C at the terminal is the parent's to answer, which may want to drain first.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import anyio
import orjson

from runner.errors import ResourceError
from runner.simulator.faults import check
from runner.simulator.profile import Profile, preset

_START_S: Final = 30.0
"""A loaded machine needs seconds to start Python and import aiohttp."""
_STOP_S: Final = 5.0


class SimulatorError(ResourceError):
    """Raised when the simulator's process doesn't start."""


@dataclass(frozen=True, slots=True)
class Simulator:
    """A running simulator."""

    base_url: str
    """Ends in /v1."""
    port: int
    pid: int

    async def stats(self, last: int | None = None) -> dict[str, Any]:
        """What GET /stats says, with the `last` entries of the log (all by default)."""
        return await self._ask("GET", "/stats" if last is None else f"/stats?log={last}")

    async def limit(self, rpm: float | None, tpm: float | None) -> None:
        """Sets other limits, from now on; None is none."""
        await self._ask("POST", "/limits", json={"rpm": rpm, "tpm": tpm})

    async def _ask(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        url = self.base_url.removesuffix("/v1") + path
        async with (
            aiohttp.ClientSession(raise_for_status=True) as session,
            session.request(method, url, **more) as response,
        ):
            answer: dict[str, Any] = orjson.loads(await response.read())
            return answer


@contextlib.asynccontextmanager
async def simulator_process(profile: Profile | str, *, log: Path | None = None) -> AsyncIterator[Simulator]:
    """Starts a simulator on a free port of 127.0.0.1, and ends it when the block is left.

    `profile` may be the name of a preset.

    Raises:
        UsageError: there is no such preset, or the profile names a scenario that doesn't exist.
        SimulatorError: the process didn't start.
    """
    profile = check(preset(profile) if isinstance(profile, str) else profile)
    command = [sys.executable, "-m", "runner.simulator", "--child", *(["--log", str(log)] if log else [])]
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=None, start_new_session=True
        )
    except (OSError, RuntimeError) as error:
        raise SimulatorError(f"the simulator's process could not be started: {error}") from error
    try:
        yield await _ready(process, profile)
    finally:
        with anyio.CancelScope(shield=True):
            await _end(process)


async def _ready(process: Process, profile: Profile) -> Simulator:
    assert process.stdin is not None
    assert process.stdout is not None
    line = b""
    try:
        async with asyncio.timeout(_START_S):
            with contextlib.suppress(OSError):  # it may be dead already: then what it said tells why
                process.stdin.write(profile.to_json() + b"\n")
                await process.stdin.drain()
            line = await process.stdout.readline()
        said = orjson.loads(line)
        return Simulator(said["base_url"], said["port"], process.pid)
    except (TimeoutError, ValueError) as error:
        said_so = f"it said {line[:200]!r}" if line else "its process ended before it listened"
        raise SimulatorError(f"the simulator did not start ({said_so})") from error


async def _end(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.close()  # the end of its input is its end
    try:
        async with asyncio.timeout(_STOP_S):
            await process.communicate()
    except TimeoutError:
        process.kill()
        await process.communicate()
