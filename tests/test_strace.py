"""The real process on a disk that fails: strace answers the N-th write, fsync, rename or open in the kernel's place.

Each case is a run under strace, what it left, and a second run that has to complete it. The cases of a test run side by
side. What strace can't do is a short write that is one (it may only lie about the result): tests/test_run.py has it by
RLIMIT_FSIZE, tests/test_files.py and tests/test_journal.py by a file in memory.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from tests.killed import by_fork
from tests.process import RUNNER, TIMEOUT_S, Ended, by_id, environment, write_jobs

JOBS = 24
STRACE = ("strace", "-f", "-qq", "-s", "16", "-e", "signal=none")
TRACED = "trace=write,fsync,rename,openat,ftruncate"
RESULTS, DELTAS, MANIFEST, LOG = "results.jsonl", "deltas.jsonl", "manifest.json", "run.log"
WORDS = {
    "ENOSPC": "No space left on device",
    "EIO": "Input/output error",
    "EDQUOT": "Disk quota exceeded",
    "EROFS": "Read-only file system",
}


def strace_works() -> bool:
    if shutil.which("strace") is None:
        return False
    probe = [*STRACE, "--seccomp-bpf", "-e", "trace=openat", "-e", "inject=openat:error=EIO:when=999", "true"]
    return subprocess.run(probe, capture_output=True, check=False, timeout=TIMEOUT_S).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not strace_works(), reason="strace is absent, or ptrace is refused"),
]


@dataclass(frozen=True)
class Case:
    """What fails, where: `file` is a name in the output folder ("" is the folder itself, None any file)."""

    file: str | None
    inject: tuple[str, ...]

    def __str__(self) -> str:
        return f"{'any file' if self.file is None else self.file or 'the folder'}: {', '.join(self.inject)}"


class Place:
    """A folder for one case."""

    def __init__(self, root: Path, base_url: str, bad: Iterable[int] = ()) -> None:
        root.mkdir()
        self.root, self.out = root, root / "out"
        self.trace = root / "trace"
        jobs = [{"custom_id": f"job-{i}", "prompt": f"question {i} of {root}"} for i in range(JOBS)]
        for i in bad:
            jobs[i]["simulate"] = {"fault": "http_500", "times": 1}  # type: ignore[assignment]
        path = write_jobs(root / "jobs.jsonl", jobs)
        options = ("--base-url", base_url, "--model", "synthetic-1", "--concurrency", 4, "--progress", "none")
        self.arguments = [str(word) for word in (path, "--out", self.out, "--max-attempts", 1, *options)]

    def run(self, *more: str) -> int:
        return by_fork([*self.arguments, *more], self.root, self.root / "said").end()

    def straced(self, case: Case, *more: str) -> Ended:
        """A run under strace. A SIGKILL at a call doesn't arrive where seccomp chooses the calls."""
        command = [*STRACE, "-o", str(self.trace), "-e", TRACED]
        if not any("signal=" in inject for inject in case.inject):
            command.append("--seccomp-bpf")
        if case.file is not None:
            command += ["-P", str(self.out / case.file)]
        for inject in case.inject:
            command += ["-e", f"inject={inject}"]
        env = environment(PYTHONDONTWRITEBYTECODE="1")  # whose renames would be counted too
        command += [*RUNNER, *self.arguments, *more]
        ended = subprocess.run(command, cwd=self.root, env=env, capture_output=True, timeout=TIMEOUT_S, check=False)
        return Ended(ended.returncode, ended.stdout.decode(), ended.stderr.decode())

    def records(self) -> list[bytes]:
        """The whole lines of results.jsonl."""
        path = self.out / RESULTS
        return path.read_bytes().rpartition(b"\n")[0].splitlines() if path.exists() else []

    def calls(self) -> list[str]:
        """What strace saw, without the numbers of threads."""
        return [line.split(maxsplit=1)[1] for line in self.trace.read_text().splitlines()]

    def assert_completes(self, before: list[bytes]) -> None:
        """The same command again: one record a job, and what was there is there."""
        assert self.run() == 0, (self.root / "said").read_text()
        assert set(before) <= set(self.records())
        found = by_id(self.out)
        assert found.keys() == {f"job-{i}" for i in range(JOBS)}
        assert all(record["error"] is None for record in found.values())


def assert_one_line(ended: Ended, *words: str) -> None:
    """Exit 74, and one line that says what could not be written and why."""
    assert ended.code == 74, ended
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("runner: "), line
    assert all(word in line for word in words), line


def side_by_side(check, cases):
    """Every case in a thread of its own; the failures by name."""

    def outcome(case):
        try:
            check(case)
        except AssertionError as error:
            return f"{case}: {error}"
        return None

    with ThreadPoolExecutor(3) as threads:
        failures = [failure for failure in threads.map(outcome, cases) if failure]
    print(f"{len(cases)} cases")
    assert not failures, "\n".join(failures)


@pytest.fixture
def place(tmp_path, simulator):
    def make(case, **more):
        return Place(
            tmp_path / "".join(letter if letter.isalnum() else "-" for letter in str(case)), simulator.base_url, **more
        )

    return make


WRITES = [
    *(Case(RESULTS, (f"write:error={word}:when={n}",)) for n, word in enumerate(WORDS, 1)),
    *(Case(RESULTS, (f"write:error={word}:when={n}+",)) for n, word in enumerate(WORDS, 1)),
    Case(DELTAS, ("write:error=ENOSPC:when=1",)),
    Case(DELTAS, ("write:error=EIO:when=2+",)),
    Case(RESULTS, ("write:error=EIO:when=2+", "ftruncate:error=EIO:when=1+")),
    Case(RESULTS, ("openat:error=EROFS:when=1",)),
    Case(DELTAS, ("openat:error=ENOSPC:when=1",)),
]


def test_an_error_of_write_or_open_is_74_and_one_line_and_the_next_run_completes(place):
    def check(case):
        here = place(case)
        ended = here.straced(case)
        word = next(words for name, words in WORDS.items() if name in case.inject[0])
        assert_one_line(ended, str(here.out / case.file), word)
        assert any("INJECTED" in call for call in here.calls()), "nothing failed"
        before = here.records()
        assert len(before) < JOBS
        here.assert_completes(before)

    side_by_side(check, WRITES)


def test_a_write_that_writes_nothing_is_74_and_not_an_endless_loop(place):
    def check(case):
        here = place(case)
        assert_one_line(here.straced(case), RESULTS, "nothing was written")
        here.assert_completes(here.records())

    side_by_side(check, [Case(RESULTS, (f"write:retval=0:when={when}",)) for when in ("1", "3", "2+")])


def test_a_disk_that_says_it_wrote_what_it_did_not_is_found_out_at_once_and_the_next_run_completes(place):
    case = Case(RESULTS, ("write:retval=1:when=2",))
    here = place(case)
    assert_one_line(here.straced(case), RESULTS, "another program changed it")
    here.assert_completes([line for line in here.records() if line.startswith(b"{")])


def test_a_failed_fsync_is_74_and_never_tried_again_and_the_next_run_completes(place):
    def check(case):
        here = place(case)
        assert_one_line(here.straced(case), "fsync", WORDS["EIO"])
        calls = here.calls()
        failed = next(n for n, call in enumerate(calls) if "INJECTED" in call)
        assert not [call for call in calls[failed + 1 :] if call.startswith("fsync(")]
        before = here.records()
        assert len(before) < JOBS
        here.assert_completes(before)

    side_by_side(check, [Case(RESULTS, (f"fsync:error=EIO:when={when}",)) for when in ("1", "2", "5", "3+")])


def test_what_stands_beside_the_records_fails_with_74_too(place):
    def check(case):
        here = place(case)
        ended = here.straced(case)
        assert any("INJECTED" in call for call in here.calls()), "nothing failed"
        assert_one_line(ended, str(here.out))
        here.assert_completes(here.records())

    renames = [Case(None, (f"rename:error={word}:when={n}",)) for word, n in (("EIO", 1), ("ENOSPC", 2), ("EROFS", 2))]
    others = [
        Case("", ("fsync:error=EIO:when=1",)),
        Case(f"{MANIFEST}.new", ("fsync:error=EIO:when=1",)),
        Case(f"{MANIFEST}.new", ("write:error=EDQUOT:when=1",)),
        Case(".lock", ("write:error=EIO:when=1",)),
        Case("summary.json.new", ("write:error=ENOSPC:when=1",)),
    ]
    side_by_side(check, [*renames, *others])


def test_a_log_that_cannot_be_written_ends_no_run(place):
    case = Case(LOG, ("write:error=ENOSPC:when=1+",))
    here = place(case, bad=(3,))
    ended = here.straced(case)
    assert any("INJECTED" in call for call in here.calls()), "nothing was logged"
    assert (ended.code, ended.stderr) == (1, "")
    assert len(here.records()) == JOBS


def test_records_that_cannot_be_read_for_the_summary_are_74_and_one_line(place):
    case = Case(RESULTS, ("openat:error=EIO:when=2",))
    here = place(case)
    assert_one_line(here.straced(case), RESULTS, WORDS["EIO"])


def test_a_rename_that_fails_while_records_are_moved_aside_loses_none(place):
    def check(case):
        here = place(case, bad=(3, 7))
        assert here.run() == 1
        before = here.records()
        if "error" in case.inject[0]:
            assert_one_line(here.straced(case, "--retry-failed"), RESULTS)
        else:
            assert here.straced(case, "--retry-failed").code == -9
        assert here.records() == before
        assert here.run("--retry-failed") == 0
        good = [line for line in before if orjson.loads(line)["error"] is None]
        assert len(good) == JOBS - 2
        here.assert_completes(good)

    side_by_side(check, [Case(None, (f"rename:{how}:when=1",)) for how in ("error=EIO", "error=ENOSPC", "signal=KILL")])


def test_killed_at_the_nth_fsync_or_rename_nothing_is_lost_and_the_next_run_completes(place):
    def check(case):
        here = place(case)
        assert here.straced(case).code == -9
        here.assert_completes(here.records())

    fsyncs = [Case(RESULTS, (f"fsync:signal=KILL:when={n}",)) for n in (1, 2, 5)]
    others = [
        Case("", ("fsync:signal=KILL:when=1",)),
        Case(f"{MANIFEST}.new", ("fsync:signal=KILL:when=1",)),
        *(Case(None, (f"rename:signal=KILL:when={n}",)) for n in (1, 2)),
    ]
    side_by_side(check, [*fsyncs, *others])
