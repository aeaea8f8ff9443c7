from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from dataclasses import replace

import anyio
import anyio.lowlevel
import pytest

from runner.errors import OutputError
from runner.journal import GROUP_EVERY_S, Journal
from runner.limits import DELTA_FLUSH_S, MAX_PENDING_OUTPUT_BYTES, MAX_RECORD_GROUP, PENDING_BYTES_PER_STREAM
from runner.testing.memory_files import Crashed, MemoryFiles, Tear, WriteFault
from tests.memory_run import (
    DELTAS,
    OUT,
    RESULTS,
    Options,
    World,
    check_finished,
    execute,
    lines_of,
    record,
    run,
)

ERRNOS = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS]
JOBS = [f"j{n}" for n in range(6)]
BIG = b"d" * (MAX_PENDING_OUTPUT_BYTES + 1)


def machine(fault=None) -> MemoryFiles:
    """A folder as recovery leaves it."""
    fs = MemoryFiles(fault=fault)
    for path in (RESULTS, DELTAS):
        fs.put(path, b"")
    return fs


def journalled(fs, work, *, disk_s=0.0, **kwargs) -> Journal:
    """Runs `work(journal)` beside the journal, closes it and waits for its end."""

    async def main():
        journal = Journal(fs, OUT, **kwargs)
        async with anyio.create_task_group() as services:
            await services.start(journal.run)
            try:
                await work(journal)
            finally:
                journal.close()
        return journal

    return execute(main, disk_s=disk_s)


async def finish_all(journal, lines):
    async with anyio.create_task_group() as workers:
        for line in lines:
            workers.start_soon(journal.finish, line)


def records(count):
    return [record(f"j{n}") for n in range(count)]


def durable(fs) -> list[bytes]:
    return lines_of(fs.after_power_loss(Tear.NOTHING, names_kept=False), RESULTS)


def count(fs, operation, name) -> int:
    return fs.log.count((operation, name))


# ── Acknowledgement ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("durability", ["batch", "each"])
def test_a_record_is_acknowledged_when_it_is_durable_and_not_before(durability):
    fs = machine()

    async def work(journal):
        for line in records(5):
            await journal.finish(line)
            assert durable(fs)[-1:] == [line]

    assert journalled(fs, work, disk_s=1, durability=durability).statistics().records == 5


def test_with_durability_none_it_is_acknowledged_when_it_is_written_and_durable_at_the_end():
    fs = machine()

    async def work(journal):
        for line in records(3):
            await journal.finish(line)
            assert lines_of(fs, RESULTS)[-1:] == [line]
        assert durable(fs) == []

    journalled(fs, work, durability="none")
    assert durable(fs) == records(3)
    assert count(fs, "fsync", "results.jsonl") == 1


def test_where_nothing_was_promised_a_failed_fsync_at_the_end_takes_nothing_back():
    fs = machine(WriteFault(errno.EIO, frozenset({"fsync"})))
    with pytest.raises(BaseExceptionGroup) as raised:
        journalled(fs, lambda journal: finish_all(journal, records(3)), durability="none")
    assert raised.value.subgroup(OutputError)
    assert lines_of(fs, RESULTS) == records(3)


def test_a_slow_disk_makes_larger_groups_and_the_loop_goes_on():
    fs = machine()

    async def work(journal):
        async with anyio.create_task_group() as workers:
            for line in records(1_000):
                workers.start_soon(journal.finish, line)
                await anyio.sleep(0.001)  # one second in all, and the disk needs two for a group

    statistics = journalled(fs, work, disk_s=2).statistics()
    assert statistics.records == 1_000
    assert statistics.groups == 3  # the first one, a full group, and the rest
    assert count(fs, "fsync", "results.jsonl") == 3 + 1
    assert durable(fs) == records(1_000)


def test_a_record_goes_at_once_and_many_go_in_groups_that_are_a_while_apart():
    fs = machine()

    async def work(journal):
        start = anyio.current_time()
        await journal.finish(records(1)[0])
        assert anyio.current_time() - start < GROUP_EVERY_S / 2
        async with anyio.create_task_group() as workers:
            for line in records(1_000):
                workers.start_soon(journal.finish, line)
                await anyio.sleep(0.001)

    statistics = journalled(fs, work).statistics()
    assert statistics.records == 1_001
    assert 1 / GROUP_EVERY_S / 2 < statistics.groups <= 1 / GROUP_EVERY_S + 2


def test_a_full_group_and_the_end_of_the_run_do_not_wait():
    fs = machine()

    async def work(journal):
        start = anyio.current_time()
        await finish_all(journal, records(3 * MAX_RECORD_GROUP))
        assert anyio.current_time() - start < GROUP_EVERY_S
        async with anyio.create_task_group() as late:
            late.start_soon(journal.finish, records(1)[0])
            await anyio.lowlevel.checkpoint()
            journal.close()
        assert anyio.current_time() - start < GROUP_EVERY_S

    journalled(fs, work)
    assert len(durable(fs)) == 3 * MAX_RECORD_GROUP + 1


def test_a_group_is_bounded():
    fs = machine()
    journalled(fs, lambda journal: finish_all(journal, records(2 * MAX_RECORD_GROUP + 1)))
    assert count(fs, "write", "results.jsonl") == 3


def test_each_syncs_each_record():
    fs = machine()
    journalled(fs, lambda journal: finish_all(journal, records(5)), durability="each")
    assert count(fs, "fsync", "results.jsonl") == 5 + 1
    assert count(fs, "write", "results.jsonl") == 5


def test_a_record_is_one_write_together_with_its_group():
    fs = machine()
    journalled(fs, lambda journal: finish_all(journal, records(5)))
    assert count(fs, "write", "results.jsonl") == 1
    assert lines_of(fs, RESULTS) == records(5)


def test_what_was_handed_over_is_written_though_its_worker_and_the_run_are_cancelled():
    fs = machine()

    async def main():
        journal = Journal(fs, OUT)
        async with anyio.create_task_group() as services:
            await services.start(journal.run)
            for line in records(3):
                services.start_soon(journal.finish, line)
            await anyio.sleep(0.5)  # the first group is with the disk, which needs a second
            services.cancel_scope.cancel()
            journal.close()

    execute(main, disk_s=1)
    assert durable(fs) == records(3)
    assert not fs.open_descriptors


def test_a_record_after_the_end_is_refused_rather_than_forgotten():
    fs = machine()

    async def nothing(journal):
        pass

    journal = journalled(fs, nothing)
    with pytest.raises(OutputError, match="closed"):
        execute(lambda: journal.finish(b"late\n"))


# ── Deltas ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_deltas_reach_the_file_in_time_together_and_are_never_synced():
    fs = machine()

    async def work(journal):
        for _ in range(3):
            journal.delta(b"delta\n")
        await anyio.sleep(DELTA_FLUSH_S / 2)
        assert fs.content(DELTAS) == b""
        await anyio.sleep(DELTA_FLUSH_S)
        assert fs.content(DELTAS) == b"delta\n" * 3

    journalled(fs, work)
    assert count(fs, "write", "deltas.jsonl") == 1
    assert count(fs, "fsync", "deltas.jsonl") == 0


def test_many_deltas_do_not_wait_for_their_time():
    fs = machine()

    async def work(journal):
        await anyio.lowlevel.checkpoint()
        for _ in range(40):
            journal.delta(b"d" * 9_999 + b"\n")
            await anyio.sleep(0.0001)
        await anyio.sleep(DELTA_FLUSH_S / 4)
        assert fs.content(DELTAS)

    journalled(fs, work)


def test_a_jobs_deltas_stand_in_the_file_before_its_record_does():
    fs = machine()

    async def work(journal):
        journal.delta(b"delta\n")
        await journal.finish(record("j"))

    journalled(fs, work)
    assert fs.log.index(("write", "deltas.jsonl")) < fs.log.index(("write", "results.jsonl"))


def test_deltas_that_were_handed_over_are_written_at_the_end():
    fs = machine()

    async def work(journal):
        journal.delta(b"last\n")

    assert journalled(fs, work).statistics().delta_bytes == 5
    assert fs.content(DELTAS) == b"last\n"


def test_without_deltas_there_is_no_file():
    fs = MemoryFiles()
    fs.put(RESULTS, b"")

    async def work(journal):
        journal.delta(b"delta\n")
        await journal.finish(record("j"))

    assert journalled(fs, work, deltas=False).statistics().pending_bytes == 0
    assert not fs.exists(DELTAS)


# ── Back-pressure ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_who_wait_for_room_go_on_when_the_disk_has_caught_up():
    fs = machine()
    went_on = []

    async def wait(journal, number):
        await journal.room()
        went_on.append(number)

    async def work(journal):
        await journal.room()
        journal.delta(BIG)
        async with anyio.create_task_group() as workers:
            for number in range(3):
                workers.start_soon(wait, journal, number)
            await anyio.sleep(1)
            assert went_on == []

    journalled(fs, work, disk_s=10)
    assert sorted(went_on) == [0, 1, 2]


def test_what_the_disk_is_at_counts_as_waiting():
    fs = machine()

    async def work(journal):
        journal.delta(b"d" * 1_000)
        async with anyio.create_task_group() as workers:
            workers.start_soon(journal.finish, b"r" * 100)
            await anyio.sleep(1)
            workers.start_soon(journal.finish, b"r" * 10)
            journal.delta(b"d")
            await anyio.sleep(1)
            assert journal.statistics().pending_bytes == 1_111
        assert journal.statistics().pending_bytes == 0

    journalled(fs, work, disk_s=10)


def test_who_waits_for_room_gets_the_error_of_a_disk_that_fails():
    fs = machine(WriteFault(errno.EIO, frozenset({"write"})))
    errors = []

    async def wait(journal):
        with pytest.raises(OutputError) as raised:
            await journal.room()
        errors.append(raised.value)

    async def main():
        journal = Journal(fs, OUT)
        async with anyio.create_task_group() as services:
            services.start_soon(_run_to_error, journal)
            journal.delta(BIG)
            for _ in range(2):
                services.start_soon(wait, journal)
        await wait(journal)
        with pytest.raises(OutputError):
            await journal.finish(record("j"))

    execute(main, disk_s=1)
    assert [str(error) for error in errors] == [f"{DELTAS}: Input/output error"] * 3


def test_who_waits_in_the_queue_behind_the_failing_group_gets_its_error():
    fs = machine(WriteFault(errno.EIO, frozenset({"fsync"}), first=2))
    ends = []

    async def finish(journal, line):
        try:
            await journal.finish(line)
        except OutputError as error:
            ends.append(str(error))
        else:
            ends.append("acknowledged")

    async def main():
        journal = Journal(fs, OUT, durability="each")
        async with anyio.create_task_group() as services:
            services.start_soon(_run_to_error, journal)
            for line in records(4):
                services.start_soon(finish, journal, line)

    execute(main, disk_s=1)
    assert ends == ["acknowledged"] + [f"{RESULTS}: fsync: Input/output error"] * 3


async def _run_to_error(journal):
    with pytest.raises(OutputError):
        await journal.run()


# ── Write errors ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "jobs.jsonl", failing=frozenset({"j3"}))
    world.write_jobs(JOBS)
    return world


@pytest.mark.parametrize("times", [1, None], ids=["once", "for ever"])
@pytest.mark.parametrize("number", ERRNOS, ids=errno.errorcode.get)
@pytest.mark.parametrize(
    ("operation", "name"),
    [
        ("write", "results.jsonl"),
        ("write", "deltas.jsonl"),
        ("fsync", "results.jsonl"),
        ("create", None),
        ("write", "manifest.json.new"),
        ("fsync", "manifest.json.new"),
        ("rename", None),
        ("fsync_dir", None),
    ],
)
def test_an_error_of_the_disk_ends_the_run_in_one_line_and_the_next_run_completes_it(
    world, operation, name, number, times
):
    for first in (1, 2, 3):
        for short in (None, 1, 40) if operation == "write" else (None,):
            _fail_then_complete(world, WriteFault(number, frozenset({operation}), name, first, times, short))


def _fail_then_complete(world: World, fault: WriteFault) -> None:
    world.acknowledged.clear()
    fs = MemoryFiles(fault=fault)
    with suppress(OutputError), _one_clear_line(fault):
        assert run(fs, world)  # the fault may come too late, or be a short write that was got over
    _nothing_after_the_failure(fs, fault)
    assert fs.open_descriptors == {}
    for image in (fs.after_kill(), fs.after_power_loss(Tear.NOTHING, names_kept=False)):
        after = replace(world, acknowledged=list(world.acknowledged))
        assert run(image, after)
        check_finished(image, after, JOBS)
        check_finished(image.after_power_loss(Tear.NOTHING, names_kept=False), after, JOBS)


@contextmanager
def _one_clear_line(fault: WriteFault):
    try:
        yield
    except OutputError as error:
        clear = os.strerror(fault.number) in str(error) and str(OUT.parent) in str(error)
        if not clear or "\n" in str(error) or error.exit_code != 74:
            raise AssertionError(str(error)) from error
        raise


def _nothing_after_the_failure(fs: MemoryFiles, fault: WriteFault) -> None:
    """Each line is a record, nothing is glued; and a file whose fsync failed is only cut back."""
    data = fs.content(RESULTS) or b""
    assert data == b"".join(lines_of(fs, RESULTS))
    if fault.operations == {"fsync"} and fault.name == "results.jsonl":
        on_results = [operation for operation, name in fs.log if name == "results.jsonl"]
        assert on_results.count("fsync") == fault.first
        assert "write" not in on_results[on_results.index("truncate") :]


@pytest.mark.parametrize("short", [1, 100, 4_000])
def test_short_writes_that_the_disk_gets_over_are_not_noticed(world, short):
    fs = MemoryFiles(fault=WriteFault(errno.ENOSPC, frozenset({"write"}), "results.jsonl", 1, 1, short))
    assert run(fs, world)
    check_finished(fs, world, JOBS)
    assert world.answers == len(JOBS)


def test_a_fragment_that_cannot_be_cut_back_is_moved_aside_by_the_next_run(world):
    fault = WriteFault(errno.ENOSPC, frozenset({"write", "truncate"}), "results.jsonl", 2, None, 40)
    fs = MemoryFiles(fault=fault)
    with pytest.raises(OutputError, match="could not be cut back"):
        run(fs, world)
    assert not (fs.content(RESULTS) or b"").endswith(b"\n")
    _complete(fs.after_kill(), world)


def _complete(fs, world):
    assert run(fs, world)
    check_finished(fs, world, JOBS)


@pytest.mark.parametrize("workers", [1, 6])
def test_everybody_who_waits_hears_of_a_failed_fsync(world, workers):
    """Not one is acknowledged whose record isn't durable, whatever its place in the queue."""
    fs = MemoryFiles(fault=WriteFault(errno.EIO, frozenset({"fsync"}), "results.jsonl", 2))
    with pytest.raises(OutputError):
        run(fs, world, Options(workers=workers))
    assert set(world.acknowledged) == set(durable(fs))
    _complete(fs.after_kill(), world)


def test_a_crash_is_no_output_error():
    """The model's own exception passes through the journal as a kill would."""
    fs = machine()
    fs.crash_at = 1

    async def work(journal):
        await journal.finish(record("j"))

    with pytest.raises(BaseExceptionGroup) as raised:
        journalled(fs, work)
    assert raised.value.subgroup(Crashed)


async def test_the_more_streams_there_are_the_more_may_wait_for_the_disk():
    """Thousands of them would stop and wake each other, with a disk that has nothing to do."""
    few, many = (Journal(MemoryFiles(), OUT, streams=streams) for streams in (0, 5_000))
    for journal in (few, many):
        journal.delta(BIG)
    assert (few.has_room, many.has_room) == (False, True)
    many.delta(bytes(5_000 * PENDING_BYTES_PER_STREAM))
    assert not many.has_room
