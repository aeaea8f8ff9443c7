"""Files, standard input and byte ranges: the same jobs by every way, and a named error where there are none."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import socket
import sys
import threading
import tracemalloc
from contextlib import aclosing, contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import anyio
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from runner import cli, source
from runner.errors import InputError
from runner.jobs import Job
from runner.limits import READ_BLOCK_BYTES, SOURCE_BATCH_BYTES, SOURCE_BATCH_JOBS
from runner.lines import LineSplitter
from runner.parsing import JobParser
from runner.source import ByteRange, JobSource, Scan, check_readable

LINES = [b'{"custom_id":"%d","prompt":"%d"}\n' % (i, i) for i in range(200)]
DATA = b"".join(LINES)
COUNT = SOURCE_BATCH_JOBS


async def batches(path, **kwargs):
    async with aclosing(JobSource([str(path)], **kwargs).batches()) as found:
        return [batch async for batch in found]


async def items(*paths, **kwargs):
    async with aclosing(JobSource([str(path) for path in paths], **kwargs).batches()) as found:
        return [item async for batch in found for item in batch]


def read(*paths, **kwargs):
    return anyio.run(partial(items, *paths, **kwargs))


def scan(*paths, **kwargs):
    found = source.scan([str(path) for path in paths], **kwargs)
    assert found is not None
    return found


def ids(*paths, **kwargs):
    return [item.id for item in read(*paths, **kwargs)]


IDS = [str(i) for i in range(200)]


@pytest.fixture
def file(tmp_path):
    """Makes a file of a name and its bytes."""

    def make(name, data):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return make


# ── Plain and compressed files ───────────────────────────────────────────────────────────────────────────────────


def halves(compress):
    """Two members or frames, the cut in the middle of a line."""
    return compress(DATA[:1_001]) + compress(DATA[1_001:])


def streamed_zst(data):
    """Without the size of its content in its head, as a pipe's compressor writes it."""
    return zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compress(data)


SKIPPABLE = b"\x50\x2a\x4d\x18\x04\x00\x00\x00pad!"
WAYS = {
    "a.jsonl": DATA,
    "b.jsonl.gz": gzip.compress(DATA),
    "c.jsonl.gz": halves(gzip.compress),
    "d.jsonl.gz": gzip.compress(b"", mtime=0) + gzip.compress(DATA) + b"\0" * 512,
    "D.JSONL.GZ": gzip.compress(DATA),
    "e.jsonl.zst": zstandard.compress(DATA),
    "e.jsonl.Zst": zstandard.compress(DATA),
    "f.jsonl.zst": halves(zstandard.compress),
    "g.jsonl.zst": zstandard.compress(b"") + SKIPPABLE + halves(streamed_zst) + SKIPPABLE,
}


@pytest.mark.parametrize("name", WAYS)
def test_a_file_gives_the_same_jobs_and_the_same_hash_however_it_is_compressed(file, name):
    path = file(name, WAYS[name])
    check_readable([str(path)])
    assert ids(path) == IDS
    assert scan(path) == Scan(hashlib.sha256(DATA).hexdigest(), len(LINES), len(DATA))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", b""),
        ("a.jsonl", b"\n \r\n\n"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0)),
        ("a.jsonl.zst", zstandard.compress(b"")),
        ("a.jsonl.gz", b""),
        ("a.jsonl.zst", b""),
    ],
)
def test_an_empty_file_is_no_jobs_and_no_error(file, name, data):
    path = file(name, data)
    check_readable([str(path)])
    assert read(path) == []
    assert scan(path).lines == 0


DAMAGED = {
    "truncated.gz": gzip.compress(DATA)[:-9],
    "without-trailer.gz": gzip.compress(DATA)[:-8],
    "second-member-cut.gz": halves(gzip.compress)[:-20],
    "flipped.gz": gzip.compress(DATA)[:300] + b"\xff\xff" + gzip.compress(DATA)[302:],
    "no-deflate.gz": gzip.compress(DATA)[:10] + b"\xff" * 50,
    "rubbish-behind.gz": gzip.compress(DATA) + b"rubbish",
    "wrong-checksum.gz": gzip.compress(DATA)[:-8] + b"\0" * 8,
    "truncated.zst": zstandard.compress(DATA)[:-1],
    "without-checksum.zst": streamed_zst(DATA)[:-4],
    "second-frame-cut.zst": halves(zstandard.compress)[:-20],
    "flipped.zst": streamed_zst(DATA)[:300] + b"\xff\xff" + streamed_zst(DATA)[302:],
    "rubbish-behind.zst": zstandard.compress(DATA) + b"rubbish",
    "window-of-2-gib.zst": b"\x28\xb5\x2f\xfd\x00\xa8" + b"\x01\x00\x00",
    "wrong-checksum.zst": streamed_zst(DATA)[:-4] + b"\0" * 4,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_archive_is_an_error_that_names_it_and_never_a_shorter_file(file, name):
    path = file(name, DAMAGED[name])
    with pytest.raises(InputError, match=name):
        read(path)
    with pytest.raises(InputError, match=name):
        scan(path)


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_every_prefix_of_an_archive_is_an_error_but_the_empty_and_the_whole(file, suffix):
    whole = (gzip.compress if suffix == "gz" else streamed_zst)(DATA)
    for size in range(1, len(whole)):
        with pytest.raises(InputError, match="cut"):
            scan(file(f"cut.{suffix}", whole[:size]))


@pytest.mark.parametrize("name", ["plain.gz", "plain.zst"])
def test_a_file_that_is_not_what_its_suffix_says_is_found_before_anything_begins(file, name):
    with pytest.raises(InputError, match=name):
        check_readable([str(file(name, DATA))])


def test_a_zstandard_bomb_is_taken_in_bounded_pieces(file):
    path = file("bomb.zst", zstandard.compress(b"\0" * (1 << 26)))
    assert path.stat().st_size < 1 << 14
    tracemalloc.start()
    try:
        (item,) = read(path, max_line_bytes=1 << 16)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert item.code == "line_too_long"
    assert peak < 40 << 20  # 16 MiB at once, and twice that while they are joined; all of it would be 64


@given(cuts=st.lists(st.integers(0, len(DATA)), max_size=5), sizes=st.lists(st.integers(1, 3_000), min_size=1))
def test_frames_and_reads_of_any_size_give_the_same_bytes(cuts, sizes):
    at = sorted({0, len(DATA), *cuts})
    packed = b"".join(streamed_zst(DATA[i:j]) for i, j in pairwise(at))
    found, unpacked = source._ZstdFile(io.BytesIO(packed)), b""
    while block := found.read(sizes[len(unpacked) % len(sizes)]):
        unpacked += block
    assert unpacked == DATA


# ── What is no file ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_missing_file_is_named(tmp_path):
    path = tmp_path / "missing.jsonl"
    for call in (partial(check_readable, [str(path)]), partial(scan, path), partial(read, path)):
        with pytest.raises(InputError, match=r"missing\.jsonl: No such file or directory"):
            call()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_directory_is_named(tmp_path, suffix):
    folder = tmp_path / f"folder{suffix}"
    folder.mkdir()
    with pytest.raises(InputError, match=r"folder.*: Is a directory"):
        check_readable([str(folder)])


def test_a_file_that_vanishes_between_two_readings_is_named(file):
    path = file("a.jsonl", DATA)
    check_readable([str(path)])
    path.unlink()
    with pytest.raises(InputError, match=r"a\.jsonl"):
        read(path)


def test_the_second_of_two_files_that_vanishes_is_named_after_the_jobs_of_the_first(file):
    seen = []

    async def both():
        async with aclosing(JobSource([str(file("a.jsonl", DATA)), "gone.jsonl"]).batches()) as found:
            async for batch in found:
                seen.extend(batch)

    with pytest.raises(InputError, match="gone"):
        anyio.run(both)
    # The rest of the first file's last batch waits for the second file's jobs, and is run the next time.
    assert len(seen) == len(LINES) // COUNT * COUNT


def test_a_named_pipe_is_refused_at_once_and_nothing_is_taken_from_it(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(InputError, match=r"not a regular file.*name it -"):
        check_readable([str(path)])  # no writer: opening it plainly would wait for ever
    reader, writer = os.open(path, os.O_RDONLY | os.O_NONBLOCK), os.open(path, os.O_WRONLY)
    try:
        os.write(writer, DATA[:100])
        with pytest.raises(InputError, match="not a regular file"):
            read(path)
        assert os.read(reader, 1_000) == DATA[:100]
    finally:
        os.close(reader)
        os.close(writer)


def test_a_device_is_refused():
    with pytest.raises(InputError, match="not a regular file"):
        check_readable(["/dev/null"])


def test_a_socket_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's whole path is short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        with pytest.raises(InputError, match="s: "):
            check_readable(["s"])


def test_a_name_with_a_nul_is_an_input_error():
    with pytest.raises(InputError, match="null byte"):
        check_readable(["a\0b"])


def test_a_file_name_that_is_not_utf8_is_read(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jsonl")
    Path(path).write_bytes(b"{\n")
    (item,) = read(path)
    assert "\\udcff.jsonl:1: " in item.reason


@pytest.mark.parametrize("command", ["run", "check"])
@pytest.mark.parametrize("name", ["missing.jsonl", "folder", "cut.gz", "cut.zst"])
def test_input_that_cannot_be_read_exits_with_2_and_one_line(file, tmp_path, monkeypatch, capsys, command, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-unused")
    (tmp_path / "folder").mkdir()
    file("cut.gz", gzip.compress(DATA)[:5])
    file("cut.zst", zstandard.compress(DATA)[:9])
    with pytest.raises(SystemExit) as exit_:
        cli.main([command, name])
    assert exit_.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"runner: {name}: ")
    assert told.count("\n") == 1


# ── Many files, line numbers, hash ───────────────────────────────────────────────────────────────────────────────


def test_files_are_one_input_whose_lines_are_numbered_each(file):
    a, b = (
        file("a.jsonl", b'{"prompt":"x"}\n{"custom_id":"y","prompt":"y"}'),
        file("b.jsonl", b'\n{"prompt":"x"}\n{"id":"y"}'),
    )
    found = read(a, b)
    assert [item.line for item in found] == [1, 2, 2, 3]
    assert found[0].id != found[2].id  # the second occurrence
    assert found[3].code == "duplicate_custom_id"
    assert found[3].reason.startswith(f"{b}:3: ")


def test_each_file_may_begin_with_a_byte_order_mark(file):
    a, b = file("a.jsonl", b"\xef\xbb\xbf" + LINES[0]), file("b.jsonl", b"\xef\xbb\xbf" + LINES[1])
    assert ids(a, b) == ["0", "1"]


def test_the_hash_is_that_of_the_plain_bytes_of_all_files(file):
    plain, packed = file("a.jsonl", DATA[:777]), file("b.jsonl.zst", zstandard.compress(DATA[777:]))
    assert scan(plain, packed)[0::2] == (hashlib.sha256(DATA).hexdigest(), len(DATA))


def test_one_byte_more_is_another_hash(file):
    first, second = file("a.jsonl", DATA), file("b.jsonl", DATA + b"\n")
    assert scan(first).sha256 != scan(second).sha256
    assert scan(first).lines == scan(second).lines


_pieces = st.lists(
    st.sampled_from([b"\n", b"\r\n", b"{}", b"  ", b"x" * 9, b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\t"])
).map(b"".join)


@given(data=_pieces, bound=st.integers(1, 12), cuts=st.lists(st.integers(1, 9), min_size=1))
def test_lines_are_counted_as_they_are_split(data, bound, cuts):
    counter, splitter = source._LineCounter(bound), LineSplitter(bound)
    counted, rest = len(splitter.feed(data)) + len(splitter.finish()), data
    for size in cuts * len(data):
        counter.feed(rest[:size])
        rest = rest[size:]
        if not rest:
            break
    assert counter.finish() == counted


def names(*paths):
    return list(source.given_ids([str(path) for path in paths]))


@pytest.mark.parametrize("block", [1, 7, 100, 1 << 18])
def test_the_ids_of_all_lines_are_those_of_the_jobs(file, monkeypatch, block):
    monkeypatch.setattr(source, "READ_BLOCK_BYTES", block)
    found = names(
        file("a.jsonl", b"\n" + DATA[:-1].replace(b"\n", b"\r\n")), file("b.jsonl.gz", gzip.compress(LINES[0]))
    )
    assert [name for some in found for name in some] == [*IDS, "0"]


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"{}",
        b'{"id":"x"}',
        b'{"custom_id":1}',
        b'{"custom_id":"line-0"}',
        b'{"custom_id":"\xff"}',
        b"[" * 5_000,
        b"1",
    ],
)
def test_a_line_without_an_id_that_a_job_may_have_ends_the_ids(file, line):
    assert names(file("a.jsonl", DATA + line + b"\n" + DATA))[-1] is None


def test_a_line_over_the_bound_is_not_held(file, monkeypatch):
    monkeypatch.setattr(source, "MAX_LINE_BYTES", 1_000)
    monkeypatch.setattr(source, "READ_BLOCK_BYTES", 100)
    assert names(file("a.jsonl", LINES[0] + b'{"custom_id":"x","prompt":"' + b"y" * 5_000 + b'"}\n'))[-1] is None


def test_the_scan_counts_the_lines_that_a_run_takes(file):
    path = file("a.jsonl", b"\n\n{\r\n \n[]\n" + b"x" * 50 + b"\n" + LINES[0].rstrip())
    assert scan(path, max_line_bytes=40).lines == len(read(path, max_line_bytes=40)) == 4


# ── Back-pressure ────────────────────────────────────────────────────────────────────────────────────────────────


class Endless(io.RawIOBase):
    """A file that is made while it is read."""

    def __init__(self, line):
        self.taken = 0
        self._line = line

    def read(self, size=-1):
        begin = self.taken % len(self._line)
        self.taken += size
        return (self._line * (size // len(self._line) + 2))[begin : begin + size]


@pytest.fixture
def endless(monkeypatch):
    """Puts an endless file in the place of every file."""

    def make(line):
        made = Endless(line)

        @contextmanager
        def opened(path):
            with made:
                yield made

        monkeypatch.setattr(source, "open_input", opened)
        return made

    return make


def test_nothing_is_read_ahead_of_the_batch_that_was_asked_for_but_its_block(endless):
    line = b'{"prompt":"' + b"x" * 16_370 + b'"}\n'  # 16 KiB
    assert READ_BLOCK_BYTES % len(line) == 0
    made = endless(line)

    async def take():
        async with aclosing(JobSource(["endless"]).batches()) as found:
            assert made.taken == 0
            seen = 0
            for _ in range(20):
                seen += len(line) * len(await anext(found))
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
                assert made.taken <= seen + READ_BLOCK_BYTES

    anyio.run(take)


@pytest.mark.parametrize(
    ("size", "jobs"), [(100, SOURCE_BATCH_JOBS), (SOURCE_BATCH_BYTES // 4, 4), (SOURCE_BATCH_BYTES * 2, 1)]
)
def test_a_batch_is_bounded_by_jobs_and_by_bytes(endless, size, jobs):
    endless(b'{"prompt":"' + b"x" * (size - 13) + b'"}\n')

    async def first():
        async with aclosing(JobSource(["endless"]).batches()) as found:
            return await anext(found)

    assert len(anyio.run(first)) == jobs


def test_a_limit_takes_the_first_jobs_and_closes_the_file(endless):
    made = endless(b'{"prompt":"x"}\n')

    async def limited():
        async with aclosing(JobSource(["endless"]).batches()) as found:
            async for batch in found:
                return batch[:10]
        return []

    assert len(anyio.run(limited)) == 10
    assert made.closed
    assert made.taken == READ_BLOCK_BYTES


def test_lines_are_parsed_beside_the_loop_and_not_in_it(file, monkeypatch):
    threads = set()

    class Noting(JobParser):
        def parse(self, line):
            threads.add(threading.get_ident())
            return super().parse(line)

    monkeypatch.setattr(source, "JobParser", Noting)
    assert ids(file("a.jsonl", DATA)) == IDS
    assert threads
    assert threading.get_ident() not in threads


# ── A byte range ─────────────────────────────────────────────────────────────────────────────────────────────────


MIXED = b'\xef\xbb\xbf{"prompt":"a"}\n\n{"prompt":"a"}\r\n{\n{"prompt":"a"}\n{"custom_id":"x"}\n{"id":"x","prompt":"b"}'


@given(cuts=st.lists(st.integers(0, len(MIXED) + 5), max_size=6))
def test_ranges_that_share_their_ends_share_no_line_and_lose_none(tmp_path_factory, cuts):
    path = tmp_path_factory.mktemp("range") / "a.jsonl"
    path.write_bytes(MIXED)
    ends = [0, *sorted(cuts), None]
    parts = [item for start, end in pairwise(ends) for item in read(path, within=ByteRange(start, end))]
    assert parts == read(path)  # ids, line numbers and duplicates included
    assert len(parts) == 6


def test_a_line_belongs_to_the_range_that_it_begins_in(file):
    path = file("a.jsonl", DATA)
    first = len(LINES[0])
    assert ids(path, within=ByteRange(0, first)) == ["0"]
    assert ids(path, within=ByteRange(1, first)) == []
    assert ids(path, within=ByteRange(1, first + 1)) == ["1"]
    assert ids(path, within=ByteRange(first)) == IDS[1:]
    assert ids(path, within=ByteRange(0, 0)) == []


def test_a_range_is_one_of_the_decompressed_bytes(file):
    path = file("a.jsonl.gz", gzip.compress(DATA))
    middle = DATA.index(LINES[100])
    assert ids(path, within=ByteRange(middle)) == IDS[100:]


def test_nothing_behind_the_range_is_read(endless):
    made = endless(b'{"prompt":"x"}\n')
    assert len(read("endless", within=ByteRange(0, 150))) == 10
    assert made.taken == READ_BLOCK_BYTES


@pytest.mark.parametrize("paths", [["a", "b"], ["-"], []])
def test_a_range_needs_a_single_file(paths):
    with pytest.raises(ValueError, match="single file"):
        JobSource(paths, within=ByteRange())


# ── Standard input ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def pipe(monkeypatch):
    """A pipe as standard input; the value is its writing end."""
    reading, writing = os.pipe()
    with open(reading) as stdin, open(writing, "wb", buffering=0) as writer:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield writer


def test_standard_input_is_read_to_its_end(pipe):
    pipe.write(DATA[:4_000])
    pipe.close()
    found = read("-")
    assert [item.id for item in found[:-1]] == IDS[: len(found) - 1]
    assert found[-1].reason.startswith("<stdin>:")


def test_what_a_pipe_has_brought_is_run_before_more_comes(pipe):
    async def slowly():
        seen = []
        async with aclosing(JobSource(["-"]).batches()) as found:
            for line in LINES[:3]:
                pipe.write(line)
                seen.append([item.id for item in await anext(found)])
            pipe.write(LINES[3].rstrip())
            pipe.close()
            seen.append([item.id for item in await anext(found)])
        return seen

    assert anyio.run(slowly) == [["0"], ["1"], ["2"], ["3"]]


@pytest.mark.usefixtures("pipe")
def test_a_run_that_is_cancelled_leaves_an_idle_pipe_at_once_and_its_thread_ends(monkeypatch):
    waiting, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    class Pipe(JobSource):
        def _batches(self):
            try:
                yield from super()._batches()
            finally:
                ended.set()

    def no_bytes_yet(*_):
        waiting.set()
        go_on.wait()
        return [], [], []

    monkeypatch.setattr(source, "select", SimpleNamespace(select=no_bytes_yet))

    async def first():
        async with aclosing(Pipe(["-"]).batches()) as found:
            await anext(found)

    async def cancelled():
        async with anyio.create_task_group() as group:
            group.start_soon(first)
            await anyio.to_thread.run_sync(waiting.wait)
            group.cancel_scope.cancel()
        assert not ended.is_set()  # the thread waits still, and nobody waits for it
        go_on.set()

    anyio.run(cancelled)
    assert ended.wait(60)


def test_half_a_line_of_an_abandoned_pipe_is_no_job(pipe):
    pipe.write(b'{"prompt":"half')
    jobs = JobSource(["-"])
    blocks = jobs._lines("-")
    assert next(blocks) is None  # all that has come so far
    jobs._stopped = True
    assert list(blocks) == []


def test_standard_input_is_not_hashed_and_not_opened_ahead(pipe):
    pipe.write(LINES[0])
    pipe.close()
    check_readable(["-"])
    assert source.scan(["-"]) is None
    assert ids("-") == ["0"]


def test_standard_input_may_be_a_file(file, monkeypatch):
    with open(file("a.jsonl", DATA)) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert ids("-") == IDS


def test_a_closed_standard_input_is_an_input_error(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="closed"):
        read("-")


def test_a_standard_input_without_a_descriptor_is_an_input_error(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(DATA)))
    with pytest.raises(InputError, match="-: "):
        read("-")


def test_jobs_of_a_file_are_jobs(file):
    assert all(isinstance(item, Job) for item in read(file("a.jsonl", DATA)))


def test_batches_are_of_the_bound_but_the_last(file):
    found = anyio.run(partial(batches, file("a.jsonl", DATA)))
    assert [len(batch) for batch in found] == [COUNT] * (len(LINES) // COUNT) + [len(LINES) % COUNT]
