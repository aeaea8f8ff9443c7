"""kill -9 of the real process, again and again, at moments drawn at random; what is left is checked each time.

Steps: a folder is begun, killed some 25 times and then run to its end, against a simulator in a process of its own;
then the next one, with the presets in turn, until there have been as many kills as were asked for. After each kill:
every whole record that was there is there, byte for byte, and no job that had one before was sent after it. In the end:
one record a job, the right text in it, and the same text in deltas.jsonl behind the job's last void.

The texts are known beforehand (`expected_text`), what was sent is in the simulator's log (`prompt_key`): nothing is
believed because the runner says so. A kill can fall into the start, the recovery, the work or the end of a run.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson
from anyio.from_thread import start_blocking_portal

from runner.simulator import PRESETS, Simulator, expected_text, prompt_key, simulator_process
from tests.process import start, write_jobs

Json = dict[str, Any]
KILLS_A_FOLDER = 25
EARLY = 0.3
"""The part of the kills that is timed from the start of the process: it may be starting, or repairing the folder."""
EARLY_S = 1.5
LATE_S = 0.05
"""The others come so long at most after a number of new records: within a few group commits."""
REFUSALS = {"http_429", "http_529", "in_stream_rate_limit"}
"""Left out of `flaky`: each makes everybody wait for seconds, and a run that waits has nothing to lose in a kill."""
MODEL = "synthetic-1"
RUN_TO_ITS_END_S = 900.0
SHOWN = 20


@dataclass
class Soak:
    """The counts of the whole soak."""

    rng: random.Random
    violations: list[str] = field(default_factory=list)
    kills: int = 0
    too_late: int = 0
    torn: int = 0
    records: int = 0
    requests: int = 0

    def violated(self, text: str) -> None:
        self.violations.append(text)
        if len(self.violations) <= SHOWN:
            print(f"VIOLATION: {text}", flush=True)


def soak(times: int, jobs: int, seed: int) -> int:
    print(f"seed {seed}", flush=True)
    state = Soak(random.Random(seed))
    root = Path(tempfile.mkdtemp(prefix="soak-kill-"))
    number = 0
    while state.kills < times:
        number += 1
        preset = ("default", "flaky")[number % 2 - 1]
        kills = min(KILLS_A_FOLDER, times - state.kills, max(1, times // 2))
        one_folder(state, root / str(number), preset, jobs, kills)
    if not state.violations:
        shutil.rmtree(root)
    counts = (
        f"{state.kills} kills over {state.records} jobs in {number} folders, {state.torn} torn tails, "
        f"{state.requests} requests, seed {seed}"
    )
    print(f"VIOLATED {len(state.violations)} times: {counts}; kept in {root}" if state.violations else f"OK: {counts}")
    return 1 if state.violations else 0


def one_folder(state: Soak, root: Path, preset: str, jobs: int, kills: int) -> None:
    root.mkdir(parents=True)
    faults = {name: rate for name, rate in PRESETS[preset].fault_rates.items() if name not in REFUSALS}
    profile = replace(PRESETS[preset], fault_rates=faults, ttft_s=0.02, tokens_per_s=400.0)
    began, before = time.monotonic(), state.kills
    with start_blocking_portal() as portal:
        server = simulator_process(profile, log=root / "server.jsonl")
        with portal.wrap_async_context_manager(server) as simulator:
            folder = Folder(state, root, simulator, make_jobs(root.name, jobs))
            folder.live(kills)
    folder.check_the_end()
    took_s = time.monotonic() - began
    print(f"{root.name}: {preset}, {jobs} jobs, {state.kills - before} kills, {took_s:.0f} s", flush=True)


def make_jobs(name: str, count: int) -> list[Json]:
    return [KINDS[i % len(KINDS)](f"question {i} of folder {name}") | {"custom_id": f"job-{i}"} for i in range(count)]


def chat(text: str) -> Json:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}]}


def responses(text: str) -> Json:
    return {"model": MODEL, "input": text}


KINDS: list[Callable[[str], Json]] = [chat, chat, chat, responses, lambda text: chat(text) | {"stream": False}]


@dataclass
class Folder:
    """One output folder and its oracle."""

    state: Soak
    root: Path
    simulator: Simulator
    jobs: list[Json]
    kept: bytes = b""
    """The whole records of results.jsonl after the last kill."""
    read: int = 0
    """How much of the simulator's log has been looked at."""

    def __post_init__(self) -> None:
        self.path = write_jobs(self.root / "jobs.jsonl", self.jobs)
        self.out = self.root / "results" / "jobs"
        self.results = self.out / "results.jsonl"
        self.key_of = {job["custom_id"]: prompt_key(body_of(job)) for job in self.jobs}

    # ── Life ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def live(self, kills: int) -> None:
        """So many kills, or until everything is done; then a run to the end."""
        step = 2 * len(self.jobs) // kills
        for _ in range(kills):
            process = self.start()
            self.wait_a_while(process, step)
            alive = process.poll() is None
            if alive:
                process.kill()
            code, said = self.end(process)
            self.check_what_is_left(f"kill {self.state.kills + 1}")
            if not alive:
                self.state.too_late += 1
                self.expect_success(code, said)
                break
            self.state.kills += 1
        self.expect_success(*self.end(self.start()))
        self.check_what_is_left("the end")

    def start(self) -> subprocess.Popen[bytes]:
        options = ("--concurrency", 32, "--max-attempts", 20, "--progress", "none")
        return start(self.path, "--base-url", self.simulator.base_url, *options, cwd=self.root)

    def wait_a_while(self, process: subprocess.Popen[bytes], step: int) -> None:
        rng = self.state.rng
        if rng.random() < EARLY:
            time.sleep(rng.uniform(0.0, EARLY_S))
            return
        wanted = self.kept.count(b"\n") + rng.randrange(1, max(2, step))
        while process.poll() is None and self.content().count(b"\n") < wanted:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, LATE_S))

    def end(self, process: subprocess.Popen[bytes]) -> tuple[int, str]:
        try:
            _, said = process.communicate(timeout=RUN_TO_ITS_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            _, said = process.communicate()
            self.violated(f"a run did not end within {RUN_TO_ITS_END_S:.0f} s")
        return process.returncode, said.decode()[-500:]

    # ── Checks ───────────────────────────────────────────────────────────────────────────────────────────────────

    def violated(self, text: str) -> None:
        self.state.violated(f"{self.root.name}: {text}")

    def content(self) -> bytes:
        return self.results.read_bytes() if self.results.exists() else b""

    def expect_success(self, code: int, said: str) -> None:
        if code != 0:
            self.violated(f"a run that nobody killed ended with {code}: {said}")

    def check_what_is_left(self, when: str) -> None:
        """After each kill. The first check is stronger than asked for: no record changes its place either."""
        content = self.content()
        whole = content[: content.rfind(b"\n") + 1]
        if not whole.startswith(self.kept):
            self.violated(f"{when}: records that were there are gone or changed")
        had = {self.key_of[record["custom_id"]] for record in parsed(self.kept)}
        again = [line["key"] for line in self.arrivals() if line["key"] in had]
        if again:
            self.violated(f"{when}: sent again though their records were there: {again[:5]}")
        self.state.torn += content != whole
        self.kept = whole

    def arrivals(self) -> list[Json]:
        """Requests since the last look. A half line of the log is looked at the next time."""
        with (self.root / "server.jsonl").open("rb") as log:
            log.seek(self.read)
            data = log.read()
        data = data[: data.rfind(b"\n") + 1]
        self.read += len(data)
        found = [line for line in parsed(data) if line["event"] == "arrive"]
        self.state.requests += len(found)
        return found

    def check_the_end(self) -> None:
        records = list(parsed(self.kept))
        self.state.records += len(records)
        counts = Counter(record["custom_id"] for record in records)
        if self.content() != self.kept or counts != Counter(job["custom_id"] for job in self.jobs):
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
