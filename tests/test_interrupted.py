"""Ctrl-C while an earlier run's records are read: the thread that would repair them has ended before the lock goes."""

from __future__ import annotations

import asyncio
import threading

import pytest

from runner import recovery
from runner.files import OsFiles
from runner.folder import _to_its_end
from runner.recovery import RESULTS, recover
from tests.memory_run import record

RECORDS = b"".join(record(f"job-{i}") for i in range(40))
TORN = b'{"id":"half'


async def test_a_cancelled_recovery_cuts_nothing_off_after_the_lock_is_gone(tmp_path, monkeypatch):
    """The next run may have begun, and appended its records where the torn tail was."""
    (tmp_path / RESULTS).write_bytes(RECORDS + TORN)
    monkeypatch.setattr(recovery, "_BLOCK_BYTES", 1_000)
    reading, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work(check):
        def slow():
            reading.set()
            go_on.wait()
            check()

        try:
            return recover(OsFiles(), tmp_path, 0, slow)
        finally:
            ended.set()

    task = asyncio.create_task(_to_its_end(work))
    await asyncio.to_thread(reading.wait)
    task.cancel()
    threading.Timer(0.05, go_on.set).start()  # the loop stands still until the thread has ended
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
    with (tmp_path / RESULTS).open("ab") as file:
        file.write(b"of the next run\n")
    assert (tmp_path / RESULTS).read_bytes() == RECORDS + TORN + b"of the next run\n"
    assert not (tmp_path / "torn.jsonl").exists()


async def test_what_fails_in_the_thread_is_raised_and_what_it_found_is_returned():
    def fail(_):
        raise ValueError("as it was")

    with pytest.raises(ValueError, match="as it was"):
        await _to_its_end(fail)
    assert await _to_its_end(lambda check: 7) == 7
