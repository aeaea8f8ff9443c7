"""Tests that can't fail prove nothing: each mutant here is a mistake of the field, and a named test must see it.

Steps: copy the tree into a temporary directory; see that the named tests are green there; then, one mutant at a time,
replace an exact piece of the source, run only its tests, put the source back. A mutant whose text is no longer found
(or is found twice) is an error: the source changed, and the mutant must follow it. Not a mutation tester: no mutant is
generated, each stands for an incident.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COPIED = ("runner", "tests", "configs", "scripts", "pyproject.toml", "constraints.txt", "README.md")
TIMEOUT_S = 300
"""One mutant's tests on a loaded machine. A test that hangs has seen its mutant too."""


class Edit(NamedTuple):
    """A piece of the source, as it stands there, and what replaces it."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """One mistake."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    """Those that must see it; one that turns red is enough."""


class Outdated(Exception):
    """Raised when a mutant doesn't apply: the source is no longer what it was written for."""


MUTANTS = (
    Mutant(
        "no fsync: records are acknowledged without one",
        (Edit("runner/journal.py", "            if self._sync:\n                results.sync()\n", ""),),
        (
            "tests/test_journal.py::test_a_record_is_acknowledged_when_it_is_durable_and_not_before",
            "tests/test_crash.py::test_without_power_at_every_operation_nothing_acknowledged_is_lost",
        ),
    ),
    Mutant(
        "no fsync: the seam doesn't call it",
        (Edit("runner/files.py", "        os.fsync(fd)\n\n    def close", "        pass\n\n    def close"),),
        ("tests/test_files.py::test_the_real_seam_really_syncs",),
    ),
    Mutant(
        "no fsync: of the folder after a rename",
        (
            Edit(
                "runner/files.py",
                "        fs.rename(temporary, path)\n        fs.fsync_dir(path.parent)\n",
                "        fs.rename(temporary, path)\n",
            ),
        ),
        ("tests/test_files.py::test_what_atomic_write_wrote_is_durable",),
    ),
    Mutant(
        "finished before written",
        (
            Edit(
                "runner/journal.py",
                "        try:\n            await anyio.to_thread.run_sync(self._write,",
                "        for _, acknowledged in group:\n            acknowledged.set_result(None)\n"
                "        try:\n            await anyio.to_thread.run_sync(self._write,",
            ),
        ),
        (
            "tests/test_journal.py::test_a_record_is_acknowledged_when_it_is_durable_and_not_before",
            "tests/test_crash.py::test_without_power_at_every_operation_nothing_acknowledged_is_lost",
        ),
    ),
    Mutant(
        "short write ignored",
        (Edit("runner/files.py", "view = view[written:]", "view = view[len(view) :]"),),
        (
            "tests/test_files.py::test_a_short_write_is_completed",
            "tests/test_journal.py::test_short_writes_that_the_disk_gets_over_are_not_noticed",
        ),
    ),
    Mutant(
        "retry everything: every fault",
        (Edit("runner/faults.py", "return self.row.retry\n", "return True\n"),),
        (
            "tests/test_retries.py::test_what_it_cannot_mend_fails_at_once",
            "tests/test_pipeline.py::test_a_refused_job_has_one_attempt",
        ),
    ),
    Mutant(
        "retry everything: every exception, cancellation too",
        (
            Edit("runner/retries.py", "        if fault is None:\n            return False\n", ""),
            Edit("runner/retries.py", "        if fault.row.throttle:\n", "        if fault and fault.row.throttle:\n"),
            Edit("runner/retries.py", "        return fault.retry\n", "        return state.outcome.failed\n"),
        ),
        (
            "tests/test_retries.py::test_cancellation_passes_through_at_once",
            "tests/test_retries.py::test_other_exceptions_are_not_retried",
        ),
    ),
    Mutant(
        "success at the end of the stream",
        (
            Edit(
                "runner/attempt.py", "if answer.complete and _survives(fault):", "if fault is None or answer.complete:"
            ),
        ),
        (
            "tests/test_attempt.py::test_every_prefix_is_a_success_only_with_the_finish_reason_in_it",
            "tests/test_attempt.py::test_done_without_finish_reason_is_no_success_and_keeps_the_partial_text",
        ),
    ),
    Mutant(
        "success at [DONE]",
        (
            Edit(
                "runner/accumulate/choices.py",
                "        return len(self._choices) >= self._asked and ",
                "        return self._done or len(self._choices) >= self._asked and ",
            ),
        ),
        ("tests/test_attempt.py::test_done_without_finish_reason_is_no_success_and_keeps_the_partial_text",),
    ),
    Mutant(
        "AsyncLimiter(rpm, 60)",
        (
            Edit(
                "runner/buckets.py",
                "AsyncLimiter(self.burst, self.burst / self.rate_per_s)",
                "AsyncLimiter(per_minute, 60)",
            ),
        ),
        ("tests/test_buckets.py::test_no_window_of_60_s_is_above_the_limit_and_98_percent_are_used",),
    ),
    Mutant(
        "buffered append: fsync, but of what was handed over",
        (
            Edit(
                "runner/files.py",
                "        self._refuse_if_broken()\n        view = memoryview(data)\n",
                "        self._refuse_if_broken()\n"
                "        data = self._held = getattr(self, '_held', b'') + data\n"
                "        if len(data) < 8192:\n            return\n"
                "        self._held = b''\n        view = memoryview(data)\n",
            ),
            Edit(
                "runner/files.py",
                "        with output_errors(self.path):\n            self._fs.close(self._fd)\n",
                "        with output_errors(self.path):\n"
                "            self._fs.write(self._fd, getattr(self, '_held', b''))\n"
                "            self._fs.close(self._fd)\n",
            ),
        ),
        (
            "tests/test_journal.py::test_a_record_is_acknowledged_when_it_is_durable_and_not_before",
            "tests/test_crash.py::test_killed_at_every_operation_nothing_written_is_lost",
        ),
    ),
    Mutant(
        "buffered append: flushed by fsync alone",
        (
            Edit(
                "runner/files.py",
                "        self._refuse_if_broken()\n        view = memoryview(data)\n",
                "        self._refuse_if_broken()\n"
                "        data = self._held = getattr(self, '_held', b'') + data\n"
                "        if len(data) < 8192:\n            return\n"
                "        self._held = b''\n        view = memoryview(data)\n",
            ),
            Edit(
                "runner/files.py",
                "            self._fs.fsync(self._fd)\n",
                "            self._fs.write(self._fd, getattr(self, '_held', b'')), setattr(self, '_held', b'')\n"
                "            self._fs.fsync(self._fd)\n",
            ),
        ),
        (
            "tests/test_journal.py::test_with_durability_none_it_is_acknowledged_when_it_is_written_and_durable_at_the_end",
        ),
    ),
    Mutant(
        "lockf in the place of flock",
        (Edit("runner/lock.py", "fcntl.flock(", "fcntl.lockf("),),
        ("tests/test_files.py::test_the_lock_outlives_other_descriptors_of_the_file",),
    ),
    Mutant(
        "redirects on",
        (Edit("runner/transport.py", "allow_redirects=False", "allow_redirects=True"),),
        (
            "tests/test_scenarios.py::test_a_redirect_is_not_followed",
            "tests/test_scenarios.py::test_a_scenario_ends_as_the_table_says[redirect_307-chat]",
        ),
    ),
    Mutant(
        "a torn tail is left where it is",
        (Edit("runner/recovery.py", "if found.tail is not None and not found.holes:", "if False:"),),
        ("tests/test_crash.py::test_killed_at_every_operation_nothing_written_is_lost",),
    ),
    Mutant(
        "a job that has its record is sent again",
        (Edit("runner/pipeline.py", "if digest64(item.id.encode()) in self.done:", "if False:"),),
        ("tests/test_pipeline.py::test_jobs_that_are_done_are_passed_over",),
    ),
)


def main(names: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if not names or any(name in mutant.name for name in names)]
    if not chosen:
        print(f"there is no such mutant; there are: {', '.join(mutant.name for mutant in MUTANTS)}")
        return 2
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = copy_tree(Path(folder))
        try:
            red = turned_red(tree, sorted({test for mutant in chosen for test in mutant.tests}))
        except Outdated as error:
            print(error)
            return 1
        if red:
            print(f"red without any mutant, so they prove nothing: {', '.join(red)}")
            return 1
        survivors = [mutant.name for mutant in chosen if not is_seen(tree, mutant)]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants were seen")
    return 1 if survivors else 0


def copy_tree(folder: Path) -> Path:
    for name in COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    return folder


def is_seen(tree: Path, mutant: Mutant) -> bool:
    """Whether a test turned red; prints the mutant's row of the table."""
    saved: dict[Path, str] = {}
    try:
        saved = apply(tree, mutant)
        red = turned_red(tree, list(mutant.tests))
        said = ", ".join(named(red)) or "SURVIVED"
    except Outdated as error:
        red, said = [], f"DOES NOT APPLY: {error}"
    finally:
        for path, text in saved.items():
            path.write_text(text)
    print(f"{mutant.name:55} → {said}", flush=True)
    return bool(red)


def named(tests: list[str]) -> list[str]:
    """Names of test functions, with how many of their cases it was."""
    counts = Counter(test.rpartition("::")[2].partition("[")[0] for test in tests)
    return [f"{name} (×{count})" if count > 1 else name for name, count in counts.items()]


def apply(tree: Path, mutant: Mutant) -> dict[Path, str]:
    """Makes the edits; returns the files as they were.

    Raises:
        Outdated: a text isn't there exactly once; nothing is edited.
    """
    saved: dict[Path, str] = {}
    mutated: dict[Path, str] = {}
    for edit in mutant.edits:
        path = tree / edit.file
        text = mutated.get(path) or saved.setdefault(path, path.read_text())
        if text.count(edit.old) != 1:
            raise Outdated(f"{edit.file} holds {text.count(edit.old)} times: {edit.old.strip()[:60]!r}")
        mutated[path] = text.replace(edit.old, edit.new)
    for path, text in mutated.items():
        compile(text, path, "exec")  # a mutant that can't be imported turns everything red and says nothing
        path.write_text(text)
    return saved


def turned_red(tree: Path, tests: list[str]) -> list[str]:
    """The tests that failed.

    Raises:
        Outdated: one of them doesn't exist, or can't be collected.
    """
    # PYTHONPATH comes before the place that the environment was installed from: the copy is what is tested.
    # No bytecode: an edit within the clock's grain of the last one, of the same length, would go unnoticed.
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-rfE", "--tb=no", "-p", "no:cacheprovider", *tests]
    try:
        ended = subprocess.run(
            command, cwd=tree, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return [f"no end within {TIMEOUT_S} s"]
    if ended.returncode not in (0, 1):
        raise Outdated(f"pytest ended with {ended.returncode}: {ended.stdout[-500:]}{ended.stderr[-500:]}")
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", ended.stdout, re.MULTILINE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
