from __future__ import annotations

import fcntl
import io
import os

import anyio
import orjson
import pytest

from runner.errors import UsageError
from runner.tail import _Growing, tail
from runner.testing.virtual_time import run_virtual
from tests.process import run


def delta(job, text, **more):
    return {"custom_id": job, "attempt": 1, "seq": 0, "t": 0.1, "delta": {"content": text, "index": 0}, **more}


def void(job):
    return {"custom_id": job, "attempt": 1, "event": "void", "reason": "truncated"}


def record(job, error=None):
    return {"id": job, "custom_id": job, "error": error, "runner": {"finish": None if error else "stop"}}


def write(path, *lines):
    with path.open("ab") as file:
        for line in lines:
            file.write(line if isinstance(line, bytes) else orjson.dumps(line) + b"\n")


def shown(folder, job=None, **kwargs):
    out = io.StringIO()

    async def body():
        return await tail(folder, job, out, **kwargs)

    return run_virtual(body), out.getvalue()


def test_one_jobs_text_is_put_together_and_ends_with_its_finish(tmp_path):
    write(tmp_path / "deltas.jsonl", delta("a", "Hel"), delta("b", "other"), delta("a", "lo"))
    write(tmp_path / "results.jsonl", record("b"), record("a"))
    assert shown(tmp_path, "a") == (0, "Hello\n[stop]\n")


def test_a_line_that_could_be_no_job_is_found_by_the_name_it_is_shown_under(tmp_path):
    write(tmp_path / "results.jsonl", {**record("line-1", {"code": "invalid_json", "message": "m"}), "custom_id": None})
    assert shown(tmp_path) == (0, "line-1  failed: invalid_json: m\n")
    assert shown(tmp_path, "line-1") == (0, "\n[failed: invalid_json: m]\n")


def test_a_job_that_nothing_is_known_of_is_said_to_be_so(tmp_path):
    write(tmp_path / "results.jsonl", record("a"))
    ended = run("tail", tmp_path, "b\x1b", cwd=tmp_path)
    assert (ended.code, ended.stdout) == (1, "")
    assert ended.stderr == f"runner: {tmp_path}: there is no record of 'b\\x1b'\n"


def test_a_void_is_said(tmp_path):
    write(tmp_path / "deltas.jsonl", delta("a", "Hal"), void("a"), delta("a", "Hello"))
    write(tmp_path / "results.jsonl", record("a"))
    assert shown(tmp_path, "a")[1] == "Hal\n[again: truncated]\nHello\n[stop]\n"


def test_responses_text_is_shown_and_other_events_are_not(tmp_path):
    events = [{"type": "response.created"}, {"type": "response.output_text.delta", "delta": "Hi"}]
    write(tmp_path / "deltas.jsonl", *({**delta("a", ""), "delta": event} for event in events))
    write(tmp_path / "results.jsonl", record("a"))
    assert shown(tmp_path, "a")[1] == "Hi\n[stop]\n"


def test_a_whole_run_is_beginnings_and_ends(tmp_path):
    write(tmp_path / "deltas.jsonl", delta("a", "x"), delta("a", "y"), delta("b\n", "z"))
    write(tmp_path / "results.jsonl", record("a"), record("b\n", {"code": "truncated", "message": "cut\x1b"}))
    assert shown(tmp_path)[1].splitlines() == [
        "a  answering",
        "b\\n  answering",
        "a  stop",
        "b\\n  failed: truncated: cut\\x1b",
    ]


def test_fragments_and_missing_files_are_passed_over(tmp_path):
    write(tmp_path / "deltas.jsonl", b'{"custom_id": "a", "del\n', b"\xff\xfe\n", delta("a", "x"), b'{"torn')
    assert shown(tmp_path, "a") == (1, "x")
    with pytest.raises(UsageError, match="no run"):
        shown(tmp_path / "nothing", "a")


def test_text_that_was_written_with_the_record_is_shown_before_the_end(tmp_path, monkeypatch):
    """The run's last group lands while tail is between its two files."""
    write(tmp_path / "deltas.jsonl", delta("a", "Hel"))
    write(tmp_path / "results.jsonl")
    growing = _Growing.lines

    def lines(self):
        found = list(growing(self))
        if self._path.name == "deltas.jsonl" and not (tmp_path / "results.jsonl").stat().st_size:
            write(tmp_path / "deltas.jsonl", delta("a", "lo"))
            write(tmp_path / "results.jsonl", record("a"))
        return iter(found)

    monkeypatch.setattr(_Growing, "lines", lines)
    lock = (tmp_path / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert shown(tmp_path, "a") == (0, "Hello\n[stop]\n")
    lock.close()


def test_it_follows_while_the_lock_is_held_and_reads_what_came_last(tmp_path):
    out = io.StringIO()
    lock = (tmp_path / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)

    async def body():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(going_on)
            await tail(tmp_path, None, out)

    async def going_on():
        await anyio.sleep(1)
        write(tmp_path / "deltas.jsonl", delta("a", "x"), b'{"half":')
        await anyio.sleep(1)
        write(tmp_path / "deltas.jsonl", b" 1}\n", delta("b", "y"))
        write(tmp_path / "results.jsonl", record("a"), record("b"))
        lock.close()

    run_virtual(body)
    assert sorted(out.getvalue().splitlines()) == ["a  answering", "a  stop", "b  answering", "b  stop"]


def test_text_that_the_stream_cannot_show_is_escaped(tmp_path):
    write(tmp_path / "deltas.jsonl", delta("é", "Straße 日"))
    write(tmp_path / "results.jsonl", record("é"))
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")

    async def body():
        return await tail(tmp_path, None, stream), await tail(tmp_path, "é", stream)

    assert run_virtual(body) == (0, 0)
    assert stream.buffer.getvalue() == b"\\xe9  answering\n\\xe9  stop\nStra\\xdfe \\u65e5\n[stop]\n"


def test_it_ends_when_nobody_reads_any_more(tmp_path):
    """`tail DIR | head -1`: the lock is held, so that only the reader's end can end it."""
    write(tmp_path / "deltas.jsonl", delta("a", "x"))
    lock = (tmp_path / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    read, descriptor = os.pipe()
    os.close(read)
    with open(descriptor, "w") as stream:

        async def body():
            with anyio.fail_after(60):
                return await tail(tmp_path, None, stream)

        assert run_virtual(body) == 0
    lock.close()
