"""kill -9 of the real process, and the oracle that judges what is left: for tests/test_kill.py and scripts/soak kill.

A folder lives through many runs: each is killed at a moment drawn at random, or ends by itself; the last one runs to
its end. Nothing is believed because the runner says so: the texts are known beforehand (`expected_text`), and what was
sent stands in the simulator's own log. After each kill:

- every whole record that was there is there, byte for byte and in its place; manifest and summary are whole or absent;
- no job that had its record before the run was sent in it;
- the job of each new record was sent exactly as often as the record says (`attempts`).

In the end: one record a job, the right text in it, and the same text in deltas.jsonl behind the job's last void.

A run is started as `python -m runner` (`by_exec`), or forked from a process that has imported everything (`by_fork`):
the same code, descriptors, locks and death, without the second that Python and the SDK need to be imported.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.request import urlopen

import orjson

from runner.simulator import expected_text, prompt_key
from tests.process import RUNNER, environment, write_jobs

Json = dict[str, Any]
EARLY = 0.3
"""The part of the kills that is timed from the start of the process: it may be starting, or repairing the folder."""
LATE_S = 0.03
"""The others come so long at most after results.jsonl reached a size: within a few group commits."""
POLL_S = 0.003
RECORD_BYTES = 1_500
"""About the size of a record: for the moments of the kills alone."""
MODEL = "synthetic-1"
RUN_TO_ITS_END_S = 900.0
SHOWN = 20


# ── Processes ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Process(Protocol):
    """A run that may be killed."""

    @property
    def pid(self) -> int: ...

    def is_alive(self) -> bool: ...

    def kill(self) -> None: ...

    def end(self) -> int:
        """Waits; the exit code, -9 if it was killed."""


@dataclass
class Executed:
    """Started as `python -m runner …`."""

    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()

    def end(self) -> int:
        return self.process.wait(RUN_TO_ITS_END_S)


@dataclass
class Forked:
    """The same, from a process that has imported it already."""

    process: multiprocessing.process.BaseProcess

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def is_alive(self) -> bool:
        with _ONE_AT_A_TIME:
            return self.process.is_alive()

    def kill(self) -> None:
        with _ONE_AT_A_TIME:
            self.process.kill()

    def end(self) -> int:
        give_up = time.monotonic() + RUN_TO_ITS_END_S
        while self.is_alive():
            assert time.monotonic() < give_up, "the run did not end"
            time.sleep(POLL_S)
        assert self.process.exitcode is not None
        return self.process.exitcode


_ONE_AT_A_TIME = threading.Lock()
"""multiprocessing looks at all its processes when it starts one: two threads that ask for one exit code, and one gets
it while the other is told 255."""


def by_exec(arguments: Sequence[str], cwd: Path, said: Path) -> Process:
    with said.open("wb") as file:
        out = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
        return Executed(subprocess.Popen([*RUNNER, *arguments], cwd=cwd, env=environment(), **out))  # type: ignore[call-overload]


def by_fork(arguments: Sequence[str], cwd: Path, said: Path) -> Process:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.killed", "runner.api", "runner.cli"])
    process = context.Process(target=_forked, args=(list(arguments), str(cwd), str(said)))
    with _ONE_AT_A_TIME:
        process.start()
    return Forked(process)


def _forked(arguments: list[str], cwd: str, said: str) -> None:
    from runner.cli import main

    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    wanted = environment()
    os.environ.clear()
    os.environ.update(wanted)
    os.chdir(cwd)
    main(arguments)


# ── Jobs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def make_jobs(name: str, count: int) -> list[Json]:
    return [KINDS[i % len(KINDS)](f"question {i} of folder {name}") | {"custom_id": f"job-{i}"} for i in range(count)]


def chat(text: str) -> Json:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}]}


def responses(text: str) -> Json:
    return {"model": MODEL, "input": text}


KINDS: list[Callable[[str], Json]] = [chat, chat, chat, responses, lambda text: chat(text) | {"stream": False}]


# ── One folder ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Tally:
    """What happened to one folder or to all."""

    violations: list[str] = field(default_factory=list)
    kills: int = 0
    early: int = 0
    """Kills before the first request of their run: while it started or repaired the folder."""
    ended: int = 0
    """Runs that nobody killed."""
    torn: int = 0
    records: int = 0
    requests: int = 0
    counted: int = 0
    """Records whose attempts were compared with the requests that the server saw."""

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills ({self.early} before the run's first request) over {self.records} jobs, "
            f"{self.requests} requests, {self.counted} records' attempts counted, {self.torn} torn tails, "
            f"{len(self.violations)} violations"
        )


@dataclass
class Folder:
    """One output folder and its oracle."""

    root: Path
    """Exists; nothing else is in it."""
    base_url: str
    log: Path
    """The simulator's, which other folders may share: their prompts differ by the folder's name."""
    count: int
    rng: random.Random
    start_run: Callable[[Sequence[str], Path, Path], Process] = by_exec
    early_s: float = 1.5
    concurrency: int = 32
    tally: Tally = field(default_factory=Tally)
    kept: bytes = b""
    """The whole records of results.jsonl after the last kill."""
    read: int = 0
    """How much of the simulator's log has been looked at."""

    def __post_init__(self) -> None:
        self.jobs = make_jobs(self.root.name, self.count)
        self.path = write_jobs(self.root / "jobs.jsonl", self.jobs)
        self.out = self.root / "results" / "jobs"
        self.results = self.out / "results.jsonl"
        self.key_of = {job["custom_id"]: prompt_key(body_of(job)) for job in self.jobs}
        self.keys = set(self.key_of.values())
        self.finished: set[str] = set()
        """Keys of the jobs that have their record."""

    # ── Life ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def live(self, kills: int) -> Tally:
        """So many kills, then a run to the end; a folder that is finished before is killed as it starts and ends."""
        for number in range(3 * kills):
            if self.tally.kills == kills:
                break
            process = self.start()
            self.wait_a_while(process, kills - self.tally.kills)
            self.kill(process, f"run {number + 1}")
        self.finish()
        self.check_the_end()
        return self.tally

    def kill(self, process: Process, when: str) -> None:
        alive = process.is_alive()
        process.kill()
        code = process.end()
        if alive and code == -9:
            self.tally.kills += 1
        else:
            self.expect_success(code)
        self.check_what_is_left(when)

    def finish(self) -> None:
        """The last run, by the command that a user gives."""
        self.expect_success(self.start(by_exec).end())
        self.check_what_is_left("the end")

    def start(self, start_run: Callable[[Sequence[str], Path, Path], Process] | None = None) -> Process:
        options = ("--concurrency", str(self.concurrency), "--max-attempts", "20", "--progress", "none")
        arguments = [str(self.path), "--base-url", self.base_url, *options]
        return (start_run or self.start_run)(arguments, self.root, self.root / "said")

    def wait_a_while(self, process: Process, kills_left: int) -> None:
        left = self.count - len(self.finished)
        if self.rng.random() < EARLY or left == 0:
            time.sleep(self.rng.uniform(0.0, self.early_s))
            return
        wanted = len(self.kept) + self.rng.uniform(0.0, 1.5) * RECORD_BYTES * left / kills_left
        while process.is_alive() and self.size() <= wanted:
            time.sleep(POLL_S)
        time.sleep(self.rng.uniform(0.0, LATE_S))

    def size(self) -> int:
        return self.results.stat().st_size if self.results.exists() else 0

    # ── Checks ───────────────────────────────────────────────────────────────────────────────────────────────────

    def violated(self, text: str) -> None:
        self.tally.violations.append(f"{self.root.name}: {text}")
        if len(self.tally.violations) <= SHOWN:
            print(f"VIOLATION: {self.root.name}: {text}", flush=True)

    def expect_success(self, code: int) -> None:
        self.tally.ended += 1
        if code != 0:
            self.violated(f"a run that nobody killed ended with {code}: {(self.root / 'said').read_text()[-500:]}")

    def check_what_is_left(self, when: str) -> None:
        """After each kill. The first check is stronger than asked for: no record changes its place either."""
        content = self.results.read_bytes() if self.results.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if not whole.startswith(self.kept):
            self.violated(f"{when}: records that were there are gone or changed")
        new = list(parsed(whole[len(self.kept) :]))
        self.check_requests(when, new)
        for name in ("manifest.json", "summary.json"):
            if (self.out / name).exists():
                orjson.loads((self.out / name).read_bytes())
        self.tally.torn += content != whole
        self.tally.records += len(new)
        self.kept = whole

    def check_requests(self, when: str, new: list[Json]) -> None:
        sent = self.sent()
        again = self.finished & sent.keys()
        if again:
            self.violated(f"{when}: sent again though their records were there: {sorted(again)[:5]}")
        for record in new:
            key, attempts = self.key_of[record["custom_id"]], record["runner"]["attempts"]
            if sent[key] != attempts:
                self.violated(f"{when}: {record['custom_id']}: {attempts} attempts, the server saw {sent[key]}")
            self.finished.add(key)
        self.tally.counted += len(new)
        self.tally.requests += sent.total()
        self.tally.early += when != "the end" and not sent

    def sent(self) -> Counter[str]:
        """The requests for this folder's jobs since the last look, all of them of runs that are over."""
        self.wait_for_the_server()
        with self.log.open("rb") as log:
            log.seek(self.read)
            data = log.read()
        data = data[: data.rfind(b"\n") + 1]
        self.read += len(data)
        lines = (line for line in parsed(data) if line["event"] == "arrive")
        return Counter(line["key"] for line in lines if line["key"] in self.keys)

    def wait_for_the_server(self) -> None:
        """Until it has read what a killed run had sent: what comes after that is answered after it.

        A round of the server's loop reads from every socket; the first answer proves one, the second another.
        """
        for _ in range(2):
            with urlopen(self.base_url.removesuffix("/v1") + "/stats?log=0", timeout=RUN_TO_ITS_END_S) as answer:
                answer.read()

    def check_the_end(self) -> None:
        records = list(parsed(self.kept))
        counts = Counter(record["custom_id"] for record in records)
        if self.size() != len(self.kept) or counts != Counter(job["custom_id"] for job in self.jobs):
            missing = sorted({job["custom_id"] for job in self.jobs} - counts.keys())
            twice = [name for name, count in counts.items() if count > 1]
            self.violated(f"not one record a job: {len(records)} records, missing {missing[:5]}, twice {twice[:5]}")
        by_id = {record["custom_id"]: record for record in records}
        texts = self.texts_of_deltas()
        for job in self.jobs:
            self.check_texts(job, by_id.get(job["custom_id"]), texts.get(job["custom_id"]))

    def check_texts(self, job: Json, record: Json | None, streamed: str | None) -> None:
        name, expected = job["custom_id"], expected_text(body_of(job))
        if record is not None and (record["error"] or text_of(record["response"]["body"]) != expected):
            self.violated(f"{name}: not the right answer: {orjson.dumps(record)[:300]!r}")
        if streamed != expected and job.get("stream", True):
            self.violated(f"{name}: deltas.jsonl says {(streamed or '')[:100]!r}, expected {expected[:100]!r}")

    def texts_of_deltas(self) -> dict[str, str]:
        """The text of each job behind its last void. What a kill tore is no JSON, and its job was voided."""
        texts: dict[str, list[str]] = {}
        for line in (self.out / "deltas.jsonl").read_bytes().splitlines():
            try:
                delta = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if delta.get("event") == "void":
                texts[delta["custom_id"]] = []
            else:
                texts.setdefault(delta["custom_id"], []).append(text_of_delta(delta["delta"]))
        return {name: "".join(parts) for name, parts in texts.items()}


def parsed(lines: bytes) -> Iterator[Json]:
    return map(orjson.loads, lines.splitlines())


def body_of(job: Json) -> Json:
    return {key: value for key, value in job.items() if key != "custom_id"}


def text_of(body: Json) -> str:
    if "choices" in body:
        return str(body["choices"][0]["message"]["content"])
    messages = (item for item in body["output"] if item["type"] == "message")
    return "".join(part["text"] for item in messages for part in item["content"])


def text_of_delta(delta: Json) -> str:
    if "type" in delta:
        return str(delta["delta"]) if delta["type"] == "response.output_text.delta" else ""
    return delta.get("content") or ""
