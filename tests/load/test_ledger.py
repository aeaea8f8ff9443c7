"""The journal of a load test: a request is over before its record is on the disk."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from runner.errors import OutputError
from runner.files import OsFiles
from runner.load.ledger import Ledger


def run(main):
    return anyio.run(main)


def opened(path: Path) -> Ledger:
    return Ledger(OsFiles(), path, deltas=True)


def test_records_are_all_in_the_file_when_the_test_ends(tmp_path):
    async def write():
        ledger = opened(tmp_path)
        async with ledger.opened():
            for k in range(500):
                await ledger.finish(b"%d\n" % k)
            ledger.delta(b"delta\n")

    run(write)
    assert (tmp_path / "results.jsonl").read_bytes().split() == [b"%d" % k for k in range(500)]
    assert (tmp_path / "deltas.jsonl").read_bytes() == b"delta\n"


def test_records_are_in_the_file_when_the_test_is_cancelled(tmp_path):
    async def write():
        ledger = opened(tmp_path)
        async with anyio.create_task_group() as tasks, ledger.opened():
            await ledger.finish(b"1\n")
            tasks.cancel_scope.cancel()

    run(write)
    assert (tmp_path / "results.jsonl").read_bytes() == b"1\n"


def test_finishing_a_record_waits_for_nobody(tmp_path):
    async def write():
        ledger = opened(tmp_path)
        async with ledger.opened():
            with anyio.CancelScope() as scope:
                scope.cancel()  # so that any wait at all would raise
                await ledger.finish(b"1\n")
            return scope.cancelled_caught

    assert not run(write)


def test_a_disk_that_takes_nothing_ends_the_test(tmp_path):
    class Full(OsFiles):
        def write(self, fd, data):
            raise OSError(28, "No space left on device")

    async def write():
        ledger = Ledger(Full(), tmp_path, deltas=False)
        async with ledger.opened():
            await ledger.finish(b"1\n")
            await anyio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as caught:
        run(write)
    assert caught.value.subgroup(OutputError)
