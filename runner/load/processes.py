"""`--workers N`: several processes send one level, each its share of one schedule.

The parent sends nothing. It tells its children of a level and the moment at which it begins on the clock they share
(the monotonic one is the machine's), hears how it stands, and merges their statistics. A child gets all it needs as
JSON through its standard input, keys through the environment as this process did, and ends with that input. It writes
its records to a part of its own, which the store joins.

Limits and the room for requests in flight are divided by the number of processes. `--max-cost` holds for all together.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import anyio
import orjson

from runner.drain import Reason
from runner.errors import RunnerError
from runner.load.budget import Budget
from runner.load.crew import Live, Measured
from runner.load.level import LevelStatistics
from runner.load.slo import Slo
from runner.load.spec import LevelSpec
from runner.load.store import Store
from runner.settings import EndpointSettings, ModelLimits, Settings

START_S: Final = 60.0
"""A child imports the SDK and reads the jobs."""
HEAD_START_S: Final = 0.3
STOP_S: Final = 10.0
_LINE_BYTES: Final = 256 * 2**20
"""The statistics of a level: 600 steps of a timeline, each with a sketch, are below 10 MB."""


class Processes:
    """See the module. `task` is what every child is told first."""

    def __init__(self, task: dict[str, Any], of: int, store: Store, slo: Slo | None) -> None:
        self._task = task
        self._of = of
        self._store = store
        self._slo = slo
        self._children: list[Process] = []
        self._lives: list[Live] = []
        self._stopped = False
        self._budget = Budget(task["settings"]["max_cost"], task["spent"])
        self.reason: Reason | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Processes]:
        """The children, for as long as it lasts.

        Raises:
            RunnerError: one doesn't start.
        """
        try:
            for index in range(self._of):
                self._children.append(await self._start(index))
            for index, child in enumerate(self._children):
                with anyio.fail_after(START_S):
                    await self._heard(index, child, "ready")
            yield self
        except TimeoutError:
            raise RunnerError("a process of --workers did not start") from None
        finally:
            with anyio.CancelScope(shield=True):
                for child in self._children:
                    await _end(child)

    async def _start(self, index: int) -> Process:
        folder = self._store.part(index)
        folder.mkdir(mode=0o700, exist_ok=True)
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "runner.load"), stdin=PIPE, stdout=PIPE, start_new_session=True, limit=_LINE_BYTES
        )
        settings = divided(Settings(**self._task["settings"]), self._of).model_dump(mode="json")
        places = {"folder": str(folder), "log": str(self._store.path), "index": index, "of": self._of}
        _tell(child, {**self._task, **places, "settings": settings})
        return child

    async def run(self, spec: LevelSpec) -> Measured:
        """Runs a level in all of them."""
        self._lives = [Live()] * self._of
        parts: list[Measured] = []
        zero_s = time.monotonic() + HEAD_START_S
        for child in self._children:
            _tell(child, {"level": spec.to_dict(), "zero_s": zero_s})
        if self._stopped:
            self.stop()
        async with anyio.create_task_group() as waits:
            for index, child in enumerate(self._children):
                waits.start_soon(self._wait, index, child, parts)
        whole = spec.statistics(self._slo)
        for part in parts:
            whole.merge(part.statistics)
        return Measured(
            whole,
            duration_s=max(part.duration_s for part in parts),
            complete=all(part.complete for part in parts),
            numbers=max(part.numbers for part in parts),
        )

    async def _wait(self, index: int, child: Process, parts: list[Measured]) -> None:
        said = await self._heard(index, child, "statistics")
        self._watch(said.pop("reason"))
        parts.append(Measured(**{**said, "statistics": LevelStatistics.from_dict(said["statistics"])}))

    async def _heard(self, index: int, child: Process, key: str) -> dict[str, Any]:
        """The next message of a kind; what is said of the level meanwhile is taken in."""
        assert child.stdout is not None
        while line := await child.stdout.readline():
            said: dict[str, Any] = orjson.loads(line)
            if key in said:
                return said
            if "live" in said and self._lives:
                self._lives[index] = Live(**said["live"])
                self._watch(said["reason"])
        raise RunnerError(f"process {index + 1} of --workers ended unexpectedly; run.log may say why")

    def _watch(self, reason: list[Any] | None) -> None:
        """What stops one stops all, and the cost is everybody's."""
        if reason is not None:
            self.reason = self.reason or Reason(*reason)
        elif (overdrawn := self._budget.overdrawn(self.live.cost)) is not None:
            self.reason = self.reason or Reason(4, overdrawn)
        if self.reason is not None and not self._stopped:
            self.stop()

    def stop(self) -> None:
        """Sends nothing more."""
        self._stopped = True
        for child in self._children:
            _tell(child, {"stop": True})

    def cut(self) -> None:
        """Waits for nothing more."""
        self._stopped = True
        for child in self._children:
            _tell(child, {"cut": True})

    @property
    def live(self) -> Live:
        """The level as it stands, in all of them."""
        whole = Live()
        for live in self._lives:
            whole = whole.joined(live)
        return whole


def divided(settings: Settings, of: int) -> Settings:
    """One process's share of the limits."""
    return settings.model_copy(
        update={
            "rpm": settings.rpm and settings.rpm / of,
            "tpm": settings.tpm and settings.tpm / of,
            "limits": {name: _divided(limits, of) for name, limits in settings.limits.items()},
            "endpoints": tuple(_endpoint_divided(each, of) for each in settings.endpoints),
        }
    )


def _divided(limits: ModelLimits, of: int) -> ModelLimits:
    shares = {key: value and value / of for key, value in limits.model_dump(exclude={"concurrency"}).items()}
    streams = limits.concurrency and max(1, math.floor(limits.concurrency / of))
    return ModelLimits(**shares, concurrency=streams)


def _endpoint_divided(endpoint: EndpointSettings, of: int) -> EndpointSettings:
    own = endpoint.limits and {name: _divided(limits, of) for name, limits in endpoint.limits.items()}
    return endpoint.model_copy(
        update={
            "rpm": endpoint.rpm and endpoint.rpm / of,
            "tpm": endpoint.tpm and endpoint.tpm / of,
            "concurrency": endpoint.concurrency and max(1, endpoint.concurrency // of),
            "limits": own,
        }
    )


def _tell(child: Process, message: dict[str, Any]) -> None:
    assert child.stdin is not None
    with suppress(OSError, RuntimeError):  # it is dead: whoever listens to it says so
        child.stdin.write(orjson.dumps(message) + b"\n")


async def _end(child: Process) -> None:
    assert child.stdin is not None
    child.stdin.close()  # the end of its input is its end
    with anyio.move_on_after(STOP_S):
        await child.communicate()
        return
    child.kill()
    await child.communicate()
