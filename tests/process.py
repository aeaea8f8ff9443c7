"""The runner as a user runs it: a process, its exit code, what it printed, what it left in its folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import orjson

RUNNER = (sys.executable, "-m", "runner")
ROOT = Path(__file__).parents[1]
TIMEOUT_S = 60.0


class Ended(NamedTuple):
    """A run that is over."""

    code: int
    stdout: str
    stderr: str


def environment(**more: str) -> dict[str, str]:
    """Ours, without what would change where a run sends or how."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "RUNNER_"))}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


def start(*args: object, cwd: Path, env: dict[str, str] | None = None, **kwargs: Any) -> subprocess.Popen[bytes]:
    """Starts a command of the runner."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*RUNNER, *map(str, args)], cwd=cwd, env=env or environment(), **{**pipes, **kwargs})


def end(process: subprocess.Popen[bytes], data: bytes | None = None) -> Ended:
    """Waits for its end."""
    try:
        stdout, stderr = process.communicate(data, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        stdout, stderr = process.communicate()
        raise AssertionError(f"the run did not end: {stderr.decode()[-2000:]}") from None
    return Ended(process.returncode, (stdout or b"").decode(), (stderr or b"").decode())


def run(*args: object, cwd: Path, data: bytes | None = None, **kwargs: Any) -> Ended:
    """Runs a command of the runner to its end; `data` is its standard input."""
    if data is not None:
        kwargs["stdin"] = subprocess.PIPE
    return end(start(*args, cwd=cwd, **kwargs), data)


def write_jobs(path: Path, lines: Iterable[Any]) -> Path:
    """Writes a jobs file; bytes stand as they are."""
    path.write_bytes(b"".join((line if isinstance(line, bytes) else orjson.dumps(line)) + b"\n" for line in lines))
    return path


def records(folder: Path) -> list[dict[str, Any]]:
    """Every line of results.jsonl: each whole, each JSON."""
    data = (folder / "results.jsonl").read_bytes()
    assert data == b"" or data.endswith(b"\n")
    return [orjson.loads(line) for line in data.splitlines()]


def by_id(folder: Path) -> dict[str, dict[str, Any]]:
    """The records by custom_id; exactly one each."""
    found = records(folder)
    named = {record["custom_id"]: record for record in found}
    assert len(named) == len(found)
    return named


def voided_text(folder: Path, job: str) -> str:
    """What deltas.jsonl says that choice 0 of a chat job answered: everything after its last void."""
    text = ""
    for line in map(orjson.loads, (folder / "deltas.jsonl").read_bytes().splitlines()):
        if line["custom_id"] != job:
            continue
        if line.get("event") == "void":
            text = ""
        elif line["delta"].get("index") == 0:
            text += line["delta"].get("content") or ""
    return text
