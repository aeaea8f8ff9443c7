from __future__ import annotations

import tracemalloc
from hashlib import blake2b
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.lines import Line, LineSplitter

BOM = b"\xef\xbb\xbf"
BOUND = 16
PIECES = [
    b"\n",
    b"\r",
    b"\r\n",
    BOM,
    BOM[:1],
    BOM[:2],
    b" ",
    b"\t",
    b"\x00",
    b"\xff",
    "\u2028".encode(),
    b"{}",
    b"x" * 17,
]
INPUTS = st.lists(st.sampled_from(PIECES) | st.binary(max_size=6), max_size=20).map(b"".join)


def split(*blocks, max_bytes=BOUND):
    splitter = LineSplitter(max_bytes)
    return [line for block in blocks for line in splitter.feed(block)] + splitter.finish()


def texts(*blocks):
    return [line.data for line in split(*blocks)]


def reference(data, bound):
    """The rules in their plainest form, on the whole input."""
    offset = len(BOM) if data.startswith(BOM) else 0
    lines = []
    for number, raw in enumerate(data[offset:].split(b"\n"), 1):
        if len(raw) > bound:
            lines.append(Line(number, None, len(raw), blake2b(raw, digest_size=16).digest(), offset))
        elif raw.strip():
            lines.append(Line(number, raw.removesuffix(b"\r"), len(raw), b"", offset))
        offset += len(raw) + 1
    return lines


@given(data=INPUTS, bound=st.integers(0, 20))
def test_one_chunk_is_byte_by_byte_is_the_rules(data, bound):
    expected = reference(data, bound)
    assert split(data, max_bytes=bound) == expected
    assert split(*(data[i : i + 1] for i in range(len(data))), max_bytes=bound) == expected


@given(data=INPUTS, cuts=st.lists(st.integers(0, 60), max_size=8))
def test_any_cutting_gives_the_same_lines(data, cuts):
    at = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    assert split(*(data[i:j] for i, j in pairwise(at))) == split(data)


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"", []),
        (b"\n\n \n\t\r\n\r\n", []),
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\nb", [b"a", b"b"]),
        (b"a\r\nb\r\n", [b"a", b"b"]),
        (b"a\r", [b"a"]),
        (b"a\r\r\n", [b"a\r"]),
        (b"a\rb\n", [b"a\rb"]),
        (BOM, []),
        (BOM + b"a\n", [b"a"]),
        (BOM + BOM + b"a", [BOM + b"a"]),
        (b"a\n" + BOM + b"b", [b"a", BOM + b"b"]),
        (BOM[:2], [BOM[:2]]),
        (BOM[:1] + b"\n", [BOM[:1]]),
        (b"\x00\n\x00", [b"\x00", b"\x00"]),
        ("a\u2028b\x85\x0b\x0cc\n".encode(), ["a\u2028b\x85\x0b\x0cc".encode()]),
        (b"\xff\xfe", [b"\xff\xfe"]),
    ],
)
def test_only_a_newline_ends_a_line(data, lines):
    assert texts(data) == lines


def test_blank_lines_are_skipped_and_counted():
    assert [(line.number, line.offset) for line in split(b"\n\na\n \r\nb")] == [(3, 2), (5, 7)]


def test_offsets_are_those_of_the_input_with_its_byte_order_mark():
    data = BOM + b"aa\r\n\nb\n" + b"x" * 99 + b"\nc"
    for line in split(data):
        assert data[line.offset :].startswith(line.data or b"x" * 99)


@pytest.mark.parametrize(("size", "held"), [(BOUND - 1, True), (BOUND, True), (BOUND + 1, False)])
def test_the_bound_is_the_longest_line(size, held):
    (line,) = split(b"x" * size + b"\n")
    assert (line.data is not None, line.size_bytes) == (held, size)


def test_a_line_over_the_bound_is_told_by_its_size_and_digest_and_the_next_is_whole():
    long = b"0123456789" * 5
    first, second = split(long[:7], long[7:] + b"\nnext\n")
    assert first == Line(1, None, 50, blake2b(long, digest_size=16).digest(), 0)
    assert second == Line(2, b"next", 4, b"", 51)


def test_two_long_lines_that_differ_have_different_digests():
    first, second, third = split(b"a" * 40 + b"\n" + b"b" * 40 + b"\n" + b"a" * 40)
    assert first.digest == third.digest != second.digest


@given(sizes=st.lists(st.integers(0, 40), max_size=30))
def test_no_more_than_the_bound_is_ever_held(sizes):
    splitter = LineSplitter(BOUND)
    for size in sizes:
        splitter.feed(b"x" * size)
        assert splitter.held_bytes <= BOUND


def test_a_huge_line_passes_without_being_held():
    bound, block = 1 << 16, b"x" * (1 << 16)
    splitter = LineSplitter(bound)
    tracemalloc.start()
    try:
        for _ in range(1_000):  # 64 MiB
            assert splitter.feed(block) == []
            assert splitter.held_bytes <= bound
        assert splitter.held_bytes == 0
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    (line,) = splitter.feed(b"\n")
    assert (line.data, line.size_bytes) == (None, 1_000 * len(block))
    assert peak < 8 * bound


def test_a_long_line_that_comes_byte_by_byte_takes_no_more_than_its_length():
    splitter = LineSplitter(1 << 20)
    tracemalloc.start()
    try:
        for _ in range(1 << 17):
            splitter.feed(b"x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * (1 << 17)  # a list of the pieces would take eight times the line, and more
    assert splitter.held_bytes == 1 << 17


def test_finishing_twice_ends_one_line():
    splitter = LineSplitter()
    splitter.feed(b"a")
    assert [line.data for line in splitter.finish()] == [b"a"]
    assert splitter.finish() == []
