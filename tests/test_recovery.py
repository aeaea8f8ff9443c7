from __future__ import annotations

import errno
from dataclasses import replace
from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import recovery, summary, written
from runner.digests import id_key
from runner.errors import DamagedOutputError, OutputError
from runner.recovery import Entry, failed, named, parse, read_lines, recover, set_aside, start_afresh
from runner.testing.memory_files import Crashed, MemoryFiles, Tear, WriteFault
from tests.memory_run import DELTAS, OUT, RESULTS, SUPERSEDED, TORN, World, check_finished, lines_of, record, run

JOBS = [f"j{n}" for n in range(5)]
NEW = RESULTS.with_name("results.jsonl.new")


def folder(results: bytes = b"", **others: bytes) -> MemoryFiles:
    fs = MemoryFiles()
    fs.put(RESULTS, results)
    for name, data in others.items():
        fs.put(OUT / f"{name}.jsonl", data)
    return fs


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "jobs.jsonl", failing=frozenset({"j3"}))
    world.write_jobs(JOBS)
    return world


@pytest.fixture
def finished(world):
    fs = MemoryFiles()
    assert run(fs, world)
    return fs


A, B, C = record("a"), record("b", ok=False), record("c", digest=7)

# ── Tails ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_results_cut_at_every_byte_of_the_last_two_records_are_completed(finished, world):
    whole = finished.content(RESULTS)
    *kept, last_but_one, last = whole.splitlines(keepends=True)
    cuts = range(len(b"".join(kept)), len(whole) + 1)
    for cut in cuts:
        fs, after = finished.after_kill(), replace(world, acknowledged=kept.copy())
        fs.put(RESULTS, whole[:cut])
        left = whole[:cut].splitlines(keepends=True)[len(kept) :]
        whole_left = [line for line in left if line.endswith(b"\n")]
        fragment = b"".join(line for line in left if not line.endswith(b"\n"))
        after.acknowledged += whole_left
        assert run(fs, after)
        check_finished(fs, after, JOBS)
        assert fs.content(TORN) == (fragment + b"\n" if fragment else None)
        assert after.answers - world.answers == sum(
            b"line-" not in line for line in (last_but_one, last) if line not in whole_left
        )
    assert len(cuts) > 250


@pytest.mark.parametrize(
    "tail", [b"\0", b"\0" * 50, b"\0\0\n", b"\0\n\0", b"garbage", b"garbage\n", b"\n", b"{}\n{}"], ids=repr
)
def test_a_tail_that_is_no_record_is_moved_aside_durably(tail):
    fs = folder(A + B + tail)
    assert recover(fs, OUT).torn_bytes == len(tail)
    disk = fs.after_power_loss(Tear.NOTHING, names_kept=False)
    assert disk.content(RESULTS) == A + B
    assert disk.content(TORN) == (tail if tail.endswith(b"\n") else tail + b"\n")
    assert recover(disk, OUT).torn_bytes == 0


def test_a_tail_longer_than_a_block_is_moved_whole(monkeypatch):
    monkeypatch.setattr(recovery, "_BLOCK_BYTES", 7)
    tail = b"0123456789" * 10
    fs = folder(A + tail)
    assert recover(fs, OUT).torn_bytes == 100
    assert fs.content(TORN) == tail + b"\n"


def test_fragments_of_several_crashes_stand_on_lines_of_their_own():
    fs = folder(A + b"one", torn=b"half a cop")
    recover(fs, OUT)
    fs.put(RESULTS, A + b"two")
    recover(fs, OUT)
    assert lines_of(fs, TORN) == [b"half a cop\n", b"one\n", b"two\n"]


def test_what_is_recovered_is_counted():
    found = recover(folder(A + B + C), OUT)
    assert (found.totals.succeeded, found.failed, found.torn_bytes) == (2, 1, 0)
    assert found.done.get(id_key("c")) == 7


def test_an_empty_folder_holds_nothing():
    fs = MemoryFiles()
    fs.put(OUT / "manifest.json", b"")
    assert len(recover(fs, OUT).done) == 0
    assert fs.after_power_loss(Tear.NOTHING, names_kept=False).exists(RESULTS), "its name is durable before it is used"


# ── Holes ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("results", "kept", "torn"),
    [
        (A + bytes(50) + B, A, bytes(50) + B),
        (A + bytes(50) + b"\n" + B, A + B, bytes(50) + b"\n"),
        (bytes(len(A)) + B[20:] + C, C, bytes(len(A)) + B[20:]),
        (A[:9] + bytes(len(A) - 9) + B + C + A[:30], C, A[:9] + bytes(len(A) - 9) + B + A[:30] + b"\n"),
        (A + b"\0\n\0\n" + B + b"\0\n" + C, A + B + C, b"\0\n\0\n\0\n"),
    ],
    ids=["eats a newline", "a line", "from the start", "over two, and a torn tail", "several"],
)
def test_zeros_before_a_record_are_moved_aside_and_the_records_round_them_stay(results, kept, torn):
    fs = folder(results)
    found = recover(fs, OUT)
    assert found.torn_bytes > 0
    assert len(found.done) == kept.count(b"\n")
    disk = fs.after_power_loss(Tear.NOTHING, names_kept=False)
    assert disk.content(RESULTS) == kept
    assert disk.content(TORN) == (torn if torn.endswith(b"\n") else torn + b"\n") or kept == A
    assert recover(disk, OUT).torn_bytes == 0


def test_a_zero_inside_a_string_of_a_record_is_no_hole():
    line = record("a\0b")
    assert b"\0" not in line
    assert recover(folder(line + B), OUT).torn_bytes == 0


# ── Damage ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "damage",
    [
        b"garbage\n",
        b"\n",
        b"{}\n",
        b"[]\n",
        b"null\n",
        B[:40] + C,
        B[:-1] + C,
        B.replace(b'"error"', b'"err"'),
        B.replace(b'"id":"b"', b'"id":3'),
        b"garbage\n\0\0\n",
        b"\0\0\ngarbage\n",
        b"\xff\xfe\n",
    ],
)
def test_damage_in_the_middle_is_refused_by_line_number_with_advice_and_nothing_is_touched(damage):
    fs = folder(A + damage + record("d"))
    line = 3 if damage.startswith(b"\0") else 2
    with pytest.raises(DamagedOutputError, match=rf"results\.jsonl:{line}: .*remove that line.*--fresh") as raised:
        recover(fs, OUT)
    assert raised.value.exit_code == 2
    assert "\n" not in str(raised.value)
    assert fs.log == []
    assert fs.open_descriptors == {}


def test_a_second_record_of_one_job_is_refused_by_line_number():
    with pytest.raises(DamagedOutputError, match=r"results\.jsonl:3: a second record of 'a'.*--fresh"):
        recover(folder(A + B + record("a", answer=2)), OUT)


def test_a_line_longer_than_any_record_is_refused_with_all_that_is_behind_it(monkeypatch):
    monkeypatch.setattr(recovery, "MAX_RECORD_BYTES", 1_000)
    monkeypatch.setattr(recovery, "_BLOCK_BYTES", 100)
    fs = folder(A + b"x" * 5_000 + b"\n" + B)
    with pytest.raises(DamagedOutputError, match=r"results\.jsonl:2"):
        recover(fs, OUT)
    assert fs.log == []


@pytest.mark.parametrize("digest", ['"-1"', '"10000000000000000"', '"x"', "3", "[]", '""', "1.5", "true"])
def test_a_digest_that_is_none_makes_no_record(digest):
    assert parse(A.replace(b'"0000000000000001"', digest.encode())) is None


def test_a_rejected_lines_record_has_no_digest():
    line = orjson.dumps({"id": "line-1", "error": {}, "runner": {"digest": None}})
    assert parse(line) == Entry("line-1", 0, ok=False)


_json = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3), st.lists, max_leaves=3)


@given(
    st.binary() | st.fixed_dictionaries({}, optional=dict.fromkeys(("id", "error", "runner"), _json)).map(orjson.dumps)
)
def test_any_line_is_a_record_or_none(data):
    entry = parse(data)
    assert entry is None or isinstance(entry.id, str)


@given(st.binary(max_size=60) | st.lists(st.sampled_from([b"\n", b"ab", b"\0", b"\r", b"\xe2\x80\xa8"])).map(b"".join))
def test_lines_are_the_same_whatever_the_size_of_the_blocks(data):
    fs = folder(data)
    fd = fs.open_append(RESULTS)
    readings = []
    for size in (1, 2, 3, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(recovery, "_BLOCK_BYTES", size)
            readings.append(list(read_lines(fs, fd)))
    assert all(reading == readings[0] for reading in readings)
    assert b"".join(line.data + b"\n" * line.whole for line in readings[0]) == data
    for number, line in enumerate(readings[0], 1):
        assert line.number == number
        assert data[line.offset :].startswith(line.data)


# ── Many at once ─────────────────────────────────────────────────────────────────────────────────────────────────────


PLAIN = [record(f"p{n}", digest=n, ok=n % 3 > 0, answer=n) for n in range(40)]
ODD = [A.replace(b'"a"', b'"odd%d"' % n).replace(b'"0000000000000001"', b'"1"') for n in range(5)]
"""Records that only the tolerant way takes: their digests lack leading zeros."""
BAD = [b"garbage\n", b"\n", b"\0\0\0\n", b"{}\n", b"\xff\n", PLAIN[0][:40] + b"\n", PLAIN[1][:60] + b"\0" * 30 + b"\n"]


def outcome(results: bytes) -> Any:
    """What recovery makes of a file: the error and what stands in the folder afterwards, or what was found in it."""
    fs = folder(results)
    try:
        found = recover(fs, OUT)
    except DamagedOutputError as error:
        return str(error), fs.content(RESULTS), fs.content(TORN)
    counts = [found.totals.succeeded, found.totals.failed, found.torn_bytes, found.size_bytes, len(found.done)]
    known = [found.done.get(id_key(name)) for name in NAMES]
    assert found.size_bytes == len(fs.content(RESULTS) or b"")
    return counts, known, fs.content(RESULTS), fs.content(TORN)


NAMES = [orjson.loads(line)["id"] for line in [*PLAIN, *ODD]]
_lines = st.lists(st.sampled_from(PLAIN + ODD), unique=True, max_size=45)
_extra = st.lists(st.tuples(st.integers(0, 50), st.sampled_from(BAD + PLAIN[:5] + ODD[:2])), max_size=2)


@given(
    lines=_lines, extra=_extra, cut=st.integers(0, 90) | st.just(0), block=st.sampled_from([50, 700, 4_000, 1 << 20])
)
def test_many_lines_together_are_recovered_as_one_by_one(lines, extra, cut, block):
    for place, line in extra:
        lines = [*lines[:place], line, *lines[place:]]
    results = b"".join(lines)
    results = results[: len(results) - cut]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recovery, "_BLOCK_BYTES", block)
        together = outcome(results)
        patch.setattr(recovery, "read", lambda lines: None)
        assert outcome(results) == together


def test_one_odd_record_does_not_make_its_neighbours_slow(monkeypatch):
    looked_at: list[bytes] = []

    def noted(data):
        looked_at.append(data)
        return written.read_any(data)

    monkeypatch.setattr(recovery, "read_any", noted)
    recover(folder(b"".join([*PLAIN[:20], ODD[0], *PLAIN[20:]])), OUT)
    assert looked_at == [ODD[0].rstrip()]


def test_what_a_run_adds_stands_behind_what_was_recovered():
    fs = folder(A + B + b"torn")
    found = recover(fs, OUT)
    fs.put(RESULTS, (fs.content(RESULTS) or b"") + C)
    added = (fs.content(RESULTS) or b"")[found.size_bytes :]
    again = summary.summarize((A + B + C).splitlines(keepends=True))
    assert summary.summarize([added], found.totals) == again


@pytest.mark.parametrize("error", [b"3", b'"x"', b"[]", b"true"])
def test_an_error_that_is_no_object_makes_no_record(error):
    assert parse(A.replace(b'"error":null', b'"error":' + error)) is None


# ── deltas.jsonl ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("deltas", [None, b"", b'{"custom_id":"j0"', bytes(100), b"\xff garbage\n\n{]", b"stale\n" * 9])
def test_deltas_missing_torn_or_stale_do_not_matter(finished, world, deltas):
    whole = finished.content(RESULTS)
    for results in (whole, whole[:-1], b""):
        fs, after = finished.after_kill(), replace(world, acknowledged=[])
        fs.put(RESULTS, results)
        fs.remove(DELTAS)
        if deltas is not None:
            fs.put(DELTAS, deltas)
        assert run(fs, after)
        check_finished(fs, after, JOBS)
        new = fs.content(DELTAS) or b""
        assert new.startswith(deltas or b"")
        ended = (deltas or b"\n").endswith(b"\n") or not deltas
        assert ended or new[len(deltas) : len(deltas) + 1] == b"\n"


# ── Moving aside ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_chosen_records_move_and_the_others_keep_their_order():
    fs = folder(A + B + C)
    fs.put(NEW, b"of an earlier crash\n")
    assert set_aside(fs, OUT, failed) == 1
    assert set_aside(fs, OUT, named({id_key("c")})) == 1
    disk = fs.after_power_loss(Tear.NOTHING, names_kept=False)
    assert (disk.content(RESULTS), disk.content(SUPERSEDED)) == (A, B + C)
    assert not disk.exists(NEW)
    assert fs.open_descriptors == {}


@pytest.mark.parametrize("earlier", [{}, {"superseded": b"earlier\nhalf"}], ids=["first", "again"])
def test_moving_aside_loses_nothing_wherever_it_crashes(earlier):
    for tear in Tear:
        for crash_at in range(1, 30):
            fs = folder(A + B + C, **earlier)
            fs.crash_at, fs.tear = crash_at, Tear.HALF
            try:
                set_aside(fs, OUT, failed)
            except Crashed:
                pass
            else:
                break
            together = [fs.after_power_loss(tear, names_kept=kept) for kept in (False, True)]
            apart = [fs.after_random_power_loss(Random(seed)) for seed in range(8)]
            for image in (fs.after_kill(), *together, *apart):
                recover(image, OUT)
                set_aside(image, OUT, failed)
                assert lines_of(image, RESULTS) == [A, C]
                assert B in lines_of(image, SUPERSEDED)
                assert not earlier or b"earlier\n" in lines_of(image, SUPERSEDED)
                assert not image.exists(NEW)
        assert crash_at > 8


@pytest.mark.parametrize("operation", ["create", "write", "fsync", "fsync_dir", "rename", "read"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_an_error_while_moving_aside_loses_nothing(operation, number):
    for first in range(1, 4):
        fs = MemoryFiles(fault=WriteFault(number, frozenset({operation}), first=first, times=1))
        fs.put(RESULTS, A + B + C)
        try:
            set_aside(fs, OUT, failed)
        except OutputError:
            assert fs.open_descriptors == {}
            assert {*lines_of(fs, RESULTS), *lines_of(fs, SUPERSEDED)} == {A, B, C}
        again = fs.after_kill()
        recover(again, OUT)
        set_aside(again, OUT, failed)
        disk = again.after_power_loss(Tear.NOTHING, names_kept=False)
        assert lines_of(disk, RESULTS) == [A, C]
        assert B in lines_of(disk, SUPERSEDED)


def test_what_a_crash_left_of_moving_aside_is_removed():
    fs = folder(A)
    fs.put(NEW, B)
    recover(fs, OUT)
    assert not fs.exists(NEW)
    assert fs.content(RESULTS) == A


@pytest.mark.parametrize("operation", ["read", "write", "fsync", "truncate", "create", "fsync_dir"])
def test_an_error_while_recovering_is_an_output_error_and_the_next_recovery_is_whole(operation):
    fs = MemoryFiles(fault=WriteFault(errno.EIO, frozenset({operation}), times=1))
    fs.put(RESULTS, A + b"torn")
    with pytest.raises(OutputError, match="Input/output error"):
        recover(fs, OUT)
    assert fs.open_descriptors == {}
    assert len(recover(fs, OUT).done) == 1
    assert fs.after_power_loss(Tear.NOTHING, names_kept=False).content(RESULTS) == A


# ── --fresh ──────────────────────────────────────────────────────────────────────────────────────────────────────────

FILES = ("results.jsonl", "deltas.jsonl", "manifest.json")


def test_a_fresh_start_moves_what_is_there_and_nothing_into_nowhere():
    fs = folder(A, deltas=b"d\n")
    old = start_afresh(fs, OUT, "1", FILES)
    assert old == OUT / "old-1"
    disk = fs.after_power_loss(Tear.NOTHING, names_kept=False)
    assert disk.content(old / "results.jsonl") == A
    assert disk.content(old / "deltas.jsonl") == b"d\n"
    assert not disk.exists(RESULTS)
    assert start_afresh(disk, OUT, "2", FILES) is None


def test_a_fresh_start_that_crashes_keeps_every_file_and_the_manifest_to_the_last():
    for crash_at in range(1, 30):
        fs = folder(A, deltas=b"d\n")
        fs.put(OUT / "manifest.json", b"m")
        fs.crash_at = crash_at
        try:
            start_afresh(fs, OUT, "1", FILES)
        except Crashed:
            pass
        else:
            break
        images = [fs.after_power_loss(Tear.NOTHING, names_kept=kept) for kept in (False, True)]
        for image in (fs.after_kill(), *images):
            for name, data in zip(FILES, (A, b"d\n", b"m"), strict=True):
                assert data in (image.content(OUT / name), image.content(OUT / "old-1" / name))
            if image.exists(RESULTS) or image.exists(DELTAS):
                assert image.exists(OUT / "manifest.json")
    assert crash_at > 9
