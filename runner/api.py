"""A run from its plan to its summary: what the command line calls, and what people import.

Steps, each before anything is sent: endpoint and key; the folder (lock, input, what is done); the simulator where one
is asked for. Then the pipeline; then summary.json, made from results.jsonl itself, so that it covers every record in
the folder and not only this run's.
"""

from __future__ import annotations

import random
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import anyio
import anyio.to_thread
import orjson

from runner import manifest, resources, summary
from runner.admission import AdmissionStatistics
from runner.drain import Drain, Reason
from runner.errors import DamagedOutputError, UsageError, first_of_ours
from runner.escape import for_line
from runner.files import OsFiles, output_errors
from runner.folder import FILES, LOG, SUMMARY, Folder, held, open_folder, write_summary
from runner.journal import Journal
from runner.limits import USUAL_STREAMS
from runner.logs import log_to
from runner.metrics import RunMetrics
from runner.pipeline import Pipeline
from runner.plan import Plan
from runner.preflight import refuse_own_files
from runner.primers import Primers
from runner.progress import Echo, live_view
from runner.recovery import RESULTS, Recovered
from runner.redact import Redactor
from runner.reservation import Reservation
from runner.settings import Settings
from runner.signals import hangup_ignored
from runner.source import check_readable
from runner.target import Target
from runner.terminal import Outlet
from runner.wiring import admission_of, clients_of, name_of, redactor_for, targets_of
from runner.worker import Bench

NOTABLE: Final = 0.02
"""What took less than this part of a run didn't limit it."""


class Result(NamedTuple):
    """How a run ended."""

    exit_code: int
    """As the command line's: 0 every job of the folder succeeded, 1 some failed, 4 stopped, 130/143 interrupted."""
    folder: Path
    summary: dict[str, Any]
    """What summary.json holds."""


async def run(
    jobs: str | Path | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    settings: Settings | None = None,
    simulate: str | None = None,
    retry_failed: bool = False,
    accept_changes: bool = False,
    fresh: bool = False,
) -> Result:
    """Runs jobs files into a folder, as `python -m runner` does, from a program or a notebook.

    Signals are left to the caller; cancelling the call ends the run in order (its results stay, a second call resumes).

    Raises:
        RunnerError: the run could not begin, or its output can't be written; `exit_code` of its class says which.
    """
    paths = [jobs] if isinstance(jobs, str | Path) else list(jobs)
    plan = Plan.of(
        [str(path) for path in paths],
        out=None if out is None else str(out),
        settings=settings or Settings(),
        simulate=simulate,
        retry_failed=retry_failed,
        accept_changes=accept_changes,
        fresh=fresh,
    )
    return await run_plan(plan, handle_signals=False)


def execute(plan: Plan) -> int:
    """Runs a plan at the terminal: live view, final table, signals. Returns the exit code.

    Raises:
        RunnerError: see `run`.
    """
    with hangup_ignored():
        result = anyio.run(run_plan, plan, backend_options=resources.event_loop())
    ended = result.summary["run"]
    if plan.settings.progress == "none" and ended["ended"] != "complete":  # otherwise the table has said it
        _say("; ".join(filter(None, (f"runner: stopped: {ended['ended']}", ended["next"]))))
    return result.exit_code


async def run_plan(plan: Plan, *, handle_signals: bool = True) -> Result:
    """Runs a plan.

    Raises:
        RunnerError: see `run`.
    """
    resources.raise_descriptor_limit()
    check_readable(plan.paths)
    refuse_own_files(plan.paths, plan.out, FILES)
    try:
        async with targets_of(plan.settings, plan.simulate) as targets:
            redactor = redactor_for(targets)
            with held(plan) as fs, log_to(plan.out / LOG, plan.settings.log_level, redactor):
                folder = await open_folder(fs, plan)
                return await _Run(plan, folder, targets, redactor).run(handle_signals=handle_signals)
    except BaseExceptionGroup as group:
        raise first_of_ours(group) from None


def rebuild_summary(folder: Path) -> dict[str, Any]:
    """Makes summary.json anew from the records of a folder, and prints it. What only the run knew is kept.

    Raises:
        UsageError: it isn't the folder of a run.
        DamagedOutputError: results.jsonl isn't whole.
        OutputError: the summary can't be written.
    """
    if not (folder / RESULTS).is_file():
        raise UsageError(f"{folder}: there is no {RESULTS} in it")
    made = _summarize(folder / RESULTS)
    made["run"] = _earlier_facts(folder)
    write_summary(OsFiles(), folder, made)
    summary.print_table(made, Outlet(sys.stdout, waits=True))
    return made


def _earlier_facts(folder: Path) -> dict[str, Any]:
    """The `run` part of the summary that is there, or what can be said without one."""
    try:
        found = orjson.loads((folder / SUMMARY).read_bytes())["run"]
    except (FileNotFoundError, KeyError, TypeError, orjson.JSONDecodeError):
        found = None
    if isinstance(found, dict) and {"folder", "ended", "resumed", "remaining", "next"} <= found.keys():
        return found
    return {"folder": str(folder), "ended": "unknown: there was no summary", "resumed": 0, "remaining": 0, "next": ""}


class _Run:
    """One run whose folder is open."""

    def __init__(self, plan: Plan, folder: Folder, targets: Sequence[Target], redactor: Redactor) -> None:
        settings = plan.settings
        self._plan = plan
        self._folder = folder
        self._targets = {name_of(target): target for target in targets}
        self._simulated = targets[0].simulated
        self._seed = secrets.randbits(32) if settings.seed is None else settings.seed
        self._admission = admission_of(settings, targets)
        self._drain = Drain(self._admission, settings.grace)
        self._clients = clients_of(targets, settings)
        total = folder.scanned.lines if folder.scanned else None
        if total is not None and settings.limit is not None:
            total = min(total, len(folder.done) + settings.limit)
        self._metrics = RunMetrics(time.monotonic, total=total)
        streams = USUAL_STREAMS if settings.concurrency == "auto" else settings.concurrency
        self._journal = Journal(
            folder.fs, folder.path, durability=settings.durability, deltas=settings.deltas, streams=streams
        )
        self._bench = Bench(
            settings=settings if settings.model or not self._simulated else _with_model(settings),
            clients=self._clients,
            admission=self._admission,
            journal=self._journal,
            metrics=self._metrics,
            redactor=redactor,
            reservation=Reservation(settings.reserve_output_tokens),
            rng=random.Random(self._seed),
            sleep=self._drain.sleep,
            primers=Primers(time.monotonic) if settings.primer_first else None,
            echo=Echo() if settings.echo else None,
            resumed=folder.has_deltas,
        )

    async def run(self, *, handle_signals: bool) -> Result:
        settings, folder = self._plan.settings, self._folder
        described = folder.described(self._plan)
        urls = {name: target.base_url for name, target in self._targets.items()}
        current = manifest.new(described, settings, urls, self._seed, self._simulated)
        folder.write_manifest(self._bench.redactor.redact_json(current))
        self._announce()
        paths = self._plan.paths
        if folder.complete:  # nothing is left to read
            paths, self._metrics.resumed = (), len(folder.done)
        pipeline = Pipeline(self._bench, self._drain, paths, folder.done, handle_signals=handle_signals)
        echoing = settings.echo and sys.stdout.isatty() and sys.stderr.isatty()
        try:
            async with live_view(settings.progress, self._snapshot, sys.stderr, echoing=echoing) as say:
                pipeline.notify = self._bench.notify = say
                with resources.quiet_collector():
                    await pipeline.run()
        finally:
            with anyio.CancelScope(shield=True):
                for client in self._clients.values():
                    await client.aclose()
        return await self._conclude()

    def _announce(self) -> None:
        """The first line: where this sends, and what is done already."""
        if self._plan.settings.progress == "none":
            return
        folder, origins = self._folder, {target.origin for target in self._targets.values()}
        where = "the built-in simulator (synthetic answers)" if self._simulated else ", ".join(self._targets)
        origin = " from OPENAI_BASE_URL" if "OPENAI_BASE_URL" in origins else ""
        done = f", {len(folder.done):,} jobs done before" if len(folder.done) else ""
        torn = (
            f", {folder.recovered.torn_bytes:,} torn bytes moved to torn.jsonl" if folder.recovered.torn_bytes else ""
        )
        _say(f"runner: sending to {where}{origin}; writing {folder.path}{done}{torn}; seed {self._seed}")

    def _snapshot(self) -> Any:
        return self._metrics.snapshot(self._admission.statistics(), self._journal.statistics().pending_bytes)

    async def _conclude(self) -> Result:
        """summary.json and the table, from the records in the folder."""
        made = await anyio.to_thread.run_sync(_summarize, self._folder.path / RESULTS, self._folder.recovered)
        reason = self._drain.reason
        if reason is not None and reason.exit_code == 4 and self._remaining(made) == 0:
            reason = None  # it came with the last job: there was nothing left to stop
        code = _exit_code(made, reason)
        made["run"] = self._facts(made, reason, code)
        write_summary(self._folder.fs, self._folder.path, made)
        if self._plan.settings.progress != "none":
            summary.print_table(made, Outlet(sys.stderr))
        return Result(code, self._folder.path, made)

    def _remaining(self, made: dict[str, Any]) -> int | None:
        """Lines without a record; None where the input can't be counted."""
        scanned = self._folder.scanned
        return None if scanned is None else max(0, scanned.lines - made["counts"]["total"])

    def _facts(self, made: dict[str, Any], reason: Reason | None, code: int) -> dict[str, Any]:
        """What only this run knows."""
        metrics, admission = self._metrics, self._admission.statistics()
        ran = metrics.succeeded + metrics.failed
        elapsed_s = max(metrics.elapsed_s, 1e-9)
        waits = {**admission.blocked_s, "disk": self._journal.statistics().blocked_s}
        blocked = {name: round(seconds, 3) for name, seconds in waits.items()}
        remaining = self._remaining(made)
        return {
            "folder": str(self._folder.path),
            "exit_code": code,
            "ended": reason.text if reason else "complete",
            "elapsed_s": round(metrics.elapsed_s, 3),
            "jobs": ran,
            "jobs_per_s": round(ran / elapsed_s, 3),
            "output_tokens_per_s": round(metrics.totals.tokens["output_tokens"] / elapsed_s, 3),
            "resumed": metrics.resumed,
            "remaining": remaining,
            "limits": {key: value for key, value in admission._asdict().items() if key != "blocked_s"},
            "blocked_s": blocked,
            "limited_by": _limited_by(blocked, elapsed_s),
            "allowance_used": _used_of(admission, metrics, elapsed_s),
            "next": _advice(made, remaining, code),
        }


def _with_model(settings: Settings) -> Settings:
    """The simulator has a model of its own for lines that name none."""
    return settings.model_copy(update={"model": "synthetic-1"})


def _summarize(path: Path, recovered: Recovered | None = None) -> dict[str, Any]:
    """Of the whole file, or of what it held when the run began and the records behind that."""
    with output_errors(path), path.open("rb") as lines:
        try:
            if recovered is None:
                return summary.summarize(lines)
            lines.seek(recovered.size_bytes)
            return summary.summarize(lines, recovered.totals)
        except ValueError as error:
            raise DamagedOutputError(f"{path}: {error}: the next run repairs what a crash left") from None


def _exit_code(made: dict[str, Any], reason: Reason | None) -> int:
    if reason is not None:
        return reason.exit_code
    return 1 if made["counts"]["failed"] else 0


def _limited_by(blocked: Mapping[str, float], elapsed_s: float) -> str:
    """What the first in line (or the streams, for the disk) waited for longest; a moment is nothing."""
    longest = max(blocked, key=lambda name: blocked[name], default="")
    return longest if blocked.get(longest, 0.0) > NOTABLE * elapsed_s else "nothing"


def _used_of(admission: AdmissionStatistics, metrics: RunMetrics, elapsed_s: float) -> dict[str, float]:
    """The part of RPM and TPM that this run used, where they are known."""
    totals = metrics.totals
    tokens = totals.tokens["input_tokens"] + totals.tokens["output_tokens"]
    used = {"rpm": (totals.attempts, admission.rpm_allowed), "tpm": (tokens, admission.tpm_allowed)}
    # Over at least a second: what a bucket held at the start would look like more than was allowed.
    minutes = max(elapsed_s, 1.0) / 60
    return {name: min(1.0, round(n / (allowed * minutes), 4)) for name, (n, allowed) in used.items() if allowed}


def _advice(made: dict[str, Any], remaining: int | None, code: int) -> str:
    if code in (4, 130, 143) or remaining:
        return "the same command again goes on where this run ended"
    failed = made["counts"]["failed"] - made["counts"]["rejected"]
    return "--retry-failed runs the failed jobs again" if failed else ""


def _say(line: str) -> None:
    Outlet(sys.stderr).write(f"{for_line(line)}\n")  # a folder is named after a file, and that by anybody
