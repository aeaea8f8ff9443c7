"""A load test from its options to its figures.

Steps, each before anything is sent: the folder (lock, whose it is, what was measured before); the endpoint and key, or
the simulator; the workload; whether anybody listens. Until then the folder is left as it is, by `--fresh` too, and a
new one isn't made. Then calibration; then the levels, one after another, with load.json written after each; then
report.html, the tables and the exit code.

An interrupted test keeps what it measured: the level it was in is marked as cut. The same command goes on at that
level; levels that are complete are not run again. What was spent before counts against `--max-cost`.
"""

from __future__ import annotations

import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import anyio
import anyio.to_thread
import orjson

from runner import resources, signals
from runner.drain import Reason
from runner.errors import UsageError, first_of_ours
from runner.folder import FILES, LOG
from runner.load import assemble, search, table
from runner.load.budget import Budget
from runner.load.calibrate import calibrate
from runner.load.crew import Alone, Crew
from runner.load.engine import Engine
from runner.load.knock import refuse_silence
from runner.load.options import LoadOptions
from runner.load.processes import Processes
from runner.load.results import Calibration, Level, LoadResult
from runner.load.scraping import Scraper, scraping
from runner.load.sender import Workload
from runner.load.spec import LevelSpec, describe_arrival
from runner.load.store import Store
from runner.load.view import Line, Now, live_line
from runner.load.workload import describe, read_workload
from runner.lock import lock_folder
from runner.logs import log_to
from runner.manifest import ELSEWHERE, without_credentials
from runner.preflight import refuse_own_files
from runner.redact import Redactor
from runner.settings import Settings
from runner.signals import hangup_ignored
from runner.target import Target
from runner.terminal import Outlet, console
from runner.wiring import redactor_for, targets_of

SIMULATED_MODEL: Final = "synthetic-1"
STOPPED: Final = 4
"""Exit code after a limit of the user's or a fatal answer."""
CLIENT_BOUND: Final = 5
"""Exit code with --strict-client."""


def execute(options: LoadOptions, settings: Settings, argv: list[str]) -> int:
    """Runs a load test at the terminal. Returns the exit code.

    Raises:
        RunnerError: it could not begin, or its output can't be written.
    """
    with hangup_ignored():
        return anyio.run(run_load, options, settings, argv, backend_options=resources.event_loop())


async def run_load(options: LoadOptions, settings: Settings, argv: list[str]) -> int:
    """Runs a load test.

    Raises:
        RunnerError: see `execute`.
    """
    resources.raise_descriptor_limit()
    inputs = (*options.paths, *filter(None, (options.trace, options.sharegpt)))
    refuse_own_files(inputs, options.folder, FILES)
    try:
        async with AsyncExitStack() as stack:
            store = Store(options.folder)
            is_new = not store.exists
            if not is_new:
                stack.enter_context(lock_folder(store.path))
            targets = await stack.enter_async_context(targets_of(settings, options.simulate))
            redactor = redactor_for(targets)
            test = _Test(options, settings, store, redactor, argv)
            asked = await test.ask(targets)
            if is_new:  # made only now, so that a slip leaves none
                stack.enter_context(lock_folder(store.path))
                if store.manifest() is not None:  # another test was quicker
                    asked = await test.ask(targets)
            if options.fresh:
                await anyio.to_thread.run_sync(store.start_afresh)
            stack.enter_context(log_to(store.path / LOG, settings.log_level, redactor))
            return await test.run(asked)
    except BaseExceptionGroup as group:
        raise first_of_ours(group) from None


class _Asked(NamedTuple):
    """A load test that can begin."""

    manifest: dict[str, Any]
    workload: Workload
    targets: list[Target]
    base_url: str | None  # of the simulator


class _Test:
    """One load test whose folder is held."""

    def __init__(
        self, options: LoadOptions, settings: Settings, store: Store, redactor: Redactor, argv: list[str]
    ) -> None:
        self._options = options
        self._settings = settings
        self._store = store
        self._redactor = redactor
        self._argv = argv
        self._levels: list[Level] = []
        self._cut: Level | None = None
        """The level that was interrupted, by an earlier start maybe: it stands until it is run again."""
        self._calibration: Calibration | None = None
        self._calibrating = anyio.CancelScope()
        self._facts: dict[str, Any] = {}
        self._reason: Reason | None = None
        self._spec: LevelSpec | None = None
        self._crew: Crew | None = None
        self._next = 0
        self._spent = 0.0
        """By earlier starts."""
        self._run = 0
        """How often the test was resumed."""
        self._began = time.monotonic()

    async def ask(self, targets: list[Target]) -> _Asked:
        """Refuses what can't begin; nothing is sent and nothing in the folder changed.

        Raises:
            RunnerError: it can't.
        """
        base_url = None if self._options.simulate is None else targets[0].base_url
        manifest = self._opened()
        workload = await read_workload(self._options, manifest["seed"], manifest["salt"])
        self._refuse_no_model(base_url)
        if self._wanted() is not None:
            await refuse_silence(targets)
        return _Asked(manifest, workload, targets, base_url)

    async def run(self, asked: _Asked) -> int:
        """Runs what is left of it. Returns the exit code."""
        settings = self._settings
        if asked.base_url is not None and settings.model is None:
            settings = settings.model_copy(update={"model": SIMULATED_MODEL})
        self._facts = self._known(asked, settings)
        self._next, self._spent = await anyio.to_thread.run_sync(self._store.recover)
        async with live_line(settings.progress, self._now, sys.stderr) as line:
            self._announce(line, asked)
            if self._wanted() is not None and not self._is_overdrawn():
                await self._measure(settings, asked, line)
        return await self._conclude()

    async def _measure(self, settings: Settings, asked: _Asked, line: Line) -> None:
        self._run = asked.manifest["resumes"]
        self._store.write_manifest(asked.manifest)
        async with anyio.create_task_group() as services:
            await services.start(signals.listen, lambda number: self._interrupted(number, line), self._cut_short)
            with self._calibrating:
                if self._options.calibrate:
                    self._calibration = await calibrate(settings, self._redactor, self._options.workers)
                    line.say(f"runner: {self._calibration.describe}")
            if self._reason is None:
                async with self._crew_of(settings, asked) as self._crew:
                    await self._run_levels(self._crew, asked, line)
            services.cancel_scope.cancel()

    def _is_overdrawn(self) -> bool:
        """Whether earlier starts spent all that may be spent."""
        overdrawn = Budget(self._settings.max_cost, self._spent).overdrawn(0.0)
        if overdrawn is not None:
            self._reason = Reason(STOPPED, overdrawn)
        return overdrawn is not None

    # ── Before ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _opened(self) -> dict[str, Any]:
        """Whose the folder is; takes over what was measured before.

        A new one is claimed later: a slip in the prompts' options must not make it that of a test that never was.
        """
        asked = {"options": self._options.identity, "settings": self._asked_settings()}
        found = None if self._options.fresh else self._store.manifest()
        if found is None:
            seed = secrets.randbits(32) if self._settings.seed is None else self._settings.seed
            return {"seed": seed, "salt": f"{secrets.randbits(64):x}", "started": _now(), "resumes": 0, **asked}
        different = _differences(found, _plain(asked))
        if different:
            raise UsageError(f"{self._store.path} holds another load test ({', '.join(different)}): {ELSEWHERE}")
        earlier = self._store.earlier()
        if earlier is not None:
            self._levels = [level for level in earlier.levels if level.complete]
            self._cut = next((level for level in earlier.levels if not level.complete), None)
            self._calibration = earlier.calibration
        return {**found, "resumes": found.get("resumes", 0) + 1}

    def _asked_settings(self) -> dict[str, Any]:
        """The settings that change what is measured."""
        free = {"progress", "log_level", "seed", "grace", "echo", "api_key_env", "max_cost", "prices"}
        said: dict[str, Any] = self._settings.model_dump(mode="json", exclude=free)
        return {key: sorted(value) if key == "fail_on" else value for key, value in said.items()}

    def _refuse_no_model(self, base_url: str | None) -> None:
        made = self._options.synthetic or self._options.sharegpt is not None
        if made and self._settings.model is None and base_url is None:
            raise UsageError("made-up prompts name no model: name one with --model")

    def _known(self, asked: _Asked, settings: Settings) -> dict[str, Any]:
        """What load.json says beside the figures."""
        manifest, workload, targets, _ = asked
        specs = self._options.levels() or [self._options.level(self._start_value(), 0)]
        several = self._options.find_max is not None or len({spec.value for spec in specs}) > 1
        slo = self._options.objectives
        known = {
            "name": self._store.path.name,
            "started": manifest["started"],
            "endpoint": ", ".join(without_credentials(target.base_url) for target in targets),
            "model": settings.model,
            "synthetic": targets[0].simulated,
            "seed": manifest["seed"],
            "argv": tuple(self._argv),
            "host": assemble.host(),
            "versions": assemble.versions(),
            "settings": self._asked_settings(),
            "workload": describe(workload),
            "arrival": describe_arrival(specs[0], workload.trace, several=several),
            "slo": None if slo is None else dict(slo.limits),
        }
        redacted: dict[str, Any] = self._redactor.redact_json(known)
        return redacted | {"argv": tuple(redacted["argv"])}

    def _start_value(self) -> float:
        plan = self._options.search()
        assert plan is not None
        return plan.start

    def _announce(self, line: Line, asked: _Asked) -> None:
        manifest, targets = asked.manifest, asked.targets
        simulator = targets[0].simulated
        where = "the built-in simulator (synthetic answers)" if simulator else self._facts["endpoint"]
        origin = " from OPENAI_BASE_URL" if targets[0].origin == "OPENAI_BASE_URL" else ""
        done = f"; {len(self._levels)} of its levels measured before" if self._levels else ""
        line.say(
            f"runner: load test of {where}{origin}; {self._facts['workload']['describe']}; writing {self._store.path}"
            f"{done}; seed {manifest['seed']}"
        )

    @asynccontextmanager
    async def _crew_of(self, settings: Settings, asked: _Asked) -> AsyncIterator[Crew]:
        if self._options.workers > 1:
            task = {
                "options": self._options.to_dict(),
                "settings": settings.model_dump(mode="json"),
                "simulator": asked.base_url,
                "seed": asked.manifest["seed"],
                "salt": asked.manifest["salt"],
                "spent": self._spent,
            }
            async with Processes(task, self._options.workers, self._store, self._options.objectives).running() as crew:
                yield crew
            await anyio.to_thread.run_sync(self._store.join)
            return
        engine = Engine(settings, asked.targets, self._store.path, self._redactor, spent=self._spent)
        async with engine.running():
            yield Alone(engine, asked.workload, self._options.objectives)

    # ── The levels ───────────────────────────────────────────────────────────────────────────────────────────────

    def _wanted(self) -> LevelSpec | None:
        """The next level, or None."""
        plan = self._options.search()
        if plan is None:
            done = {(level.value, level.repeat) for level in self._levels}
            return next((spec for spec in self._options.levels() if (spec.value, spec.repeat) not in done), None)
        value = search.next_value(plan, [assemble.try_of(level) for level in self._levels])
        if value is None:
            return None
        return self._options.level(value, sum(level.value == value for level in self._levels))

    async def _run_levels(self, crew: Crew, asked: _Asked, line: Line) -> None:
        seed = asked.manifest["seed"]
        async with scraping(self._options.server_metrics, line.say) as scraper:
            while self._reason is None and (spec := self._wanted()) is not None:
                spec = replace(spec, first=self._next, run=self._run, seed=seed)
                spec = await anyio.to_thread.run_sync(spec.dated, asked.workload.trace)
                await self._run_level(crew, spec, scraper)
                self._reason = self._reason or crew.reason

    async def _run_level(self, crew: Crew, spec: LevelSpec, scraper: Scraper | None) -> None:
        started_s = time.monotonic() - self._began
        self._spec = spec
        if scraper is not None:
            scraper.begin()
        try:
            measured = await crew.run(spec)
        finally:
            self._spec = None
        gauges = None if scraper is None else scraper.recorder.summary()
        level = assemble.level_of(spec, measured, started_s, gauges)
        self._next += measured.numbers
        self._cut = None if measured.complete else level
        if measured.complete:
            self._levels.append(level)
        self._store.write_figures(self._result(None, complete=False))

    def _interrupted(self, number: signal.Signals, line: Line) -> None:
        self._reason = self._reason or Reason(128 + number, number.name)
        self._calibrating.cancel()
        if self._crew is None:
            return
        live = self._crew.live
        self._crew.stop()
        unsent = f", {live.waiting:,} that wait for limits are not sent" if live.waiting else ""
        line.say(
            f"{number.name}: {live.in_flight:,} in flight may finish within {self._settings.grace:g} s{unsent}; "
            "once more to stop at once"
        )

    def _cut_short(self) -> None:
        if self._crew is not None:
            self._crew.cut()

    def _now(self) -> Now | None:
        if self._spec is None or self._crew is None:
            return None
        of = None if self._options.find_max is not None else len(self._options.levels())
        return self._spec, len(self._levels), of, self._crew.live

    # ── After ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _result(self, ended: str | None, *, complete: bool) -> LoadResult:
        levels = [*self._levels, self._cut] if self._cut is not None else self._levels
        return assemble.result_of(
            self._facts,
            levels,
            calibration=self._calibration,
            plan=self._options.search(),
            ended=ended,
            complete=complete,
        )

    async def _conclude(self) -> int:
        complete = self._reason is None
        result = self._result(_now(), complete=complete)
        await anyio.to_thread.run_sync(self._store.write, result, self._options.export)
        if self._settings.progress != "none":
            out = Outlet(sys.stdout, waits=True)
            terminal = console(out)
            terminal.print(table.render(result, terminal.width))
            plan = self._options.search()
            if plan is not None and self._levels:
                tried = [assemble.try_of(level) for level in self._levels]
                out.write(f"\nHighest {'rate' if self._options.is_open else 'concurrency'}: ")
                out.write(f"{search.outcome(plan, tried).reason}\n")
        if self._reason is not None:
            changed = "with that changed, " if self._reason.exit_code == STOPPED else ""
            Outlet(sys.stderr).write(f"runner: stopped: {self._reason.text}; {changed}the same command goes on\n")
            return self._reason.exit_code
        if self._options.strict_client and any(level.client_bound for level in result.levels):
            return CLIENT_BOUND
        return int(any(level.requests.offered and not level.requests.succeeded for level in result.levels))


def _differences(found: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    return [
        key
        for group, wanted in asked.items()
        for key in wanted
        if not isinstance(found.get(group), dict) or found[group].get(key) != wanted[key]
    ]


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return orjson.loads(orjson.dumps(value))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
