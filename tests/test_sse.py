"""The decoder: the WHATWG rules, any cutting of the bytes, agreement with the SDK's decoder, and its bounds."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from runner.sse import Decoder, Event, LineTooLong


def decode(*blocks: bytes, limit: int = 1 << 20) -> list[Event]:
    decoder = Decoder(limit)
    return [event for block in blocks for event in decoder.feed(block)]


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:end] for start, end in itertools.pairwise(bounds)]


END = st.sampled_from([b"\n", b"\r\n", b"\r"])
VALUE = st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=12).map(str.encode)
FIELD = st.sampled_from(
    [b"data: ", b"data:", b"data", b"event: ", b"event:", b": ", b":", b"nonsense: ", b"", b"data : "]
)
# Fields without id and retry, which the SDK takes for events of their own.
LINE = st.one_of(st.just(b""), st.just(b"data: {}"), st.tuples(FIELD, VALUE).map(b"".join))
LINES = st.lists(st.tuples(LINE, END).map(b"".join), max_size=20).map(b"".join)
# Lines of any kind, and bytes that are none.
ANYTHING = st.one_of(
    LINES,
    st.lists(
        st.sampled_from([b"\r", b"\n", b"d", b"data:", b" ", b"x", b"\xef\xbb\xbf", b"\xff", b"id:1", b"event:e"])
    ).map(b"".join),
    st.binary(max_size=60),
)


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [("", b"a")]),
        (b"data:a\n\n", [("", b"a")]),
        (b"data:  a\n\n", [("", b" a")]),  # one space is the format's, the next is data
        (b"data: a\r\rdata: b\r\n\r\n", [("", b"a"), ("", b"b")]),
        (b"data: a\ndata\ndata: b\n\n", [("", b"a\n\nb")]),
        (b"data\n\ndata\ndata\n\ndata:", [("", b""), ("", b"\n")]),  # the specification's own example
        (b"event: e\ndata: a\n\ndata: b\n\n", [("e", b"a"), ("", b"b")]),
        (b"event: e\n\ndata: b\n\n", [("", b"b")]),  # without data only the name is forgotten
        (b": ping\n\n: ping\n\n", []),
        (b"id: 1\nretry: 5\ndata: a\nunknown: x\n\n", [("", b"a")]),
        (b"\xef\xbb\xbfdata: a\n\n", [("", b"a")]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),  # only one mark is dropped
        (b"data: a\n\xef\xbb\xbfdata: b\n\n", [("", b"a")]),
        (b"data: a\n", []),
        (b"data: \xe2\x80\xa8\x0b\x0c\x85\n\n", [("", b"\xe2\x80\xa8\x0b\x0c\x85")]),  # no line ends, these
    ],
)
def test_stream_is_read_as_the_specification_says(stream: bytes, events: list[Event]) -> None:
    assert decode(stream) == events
    assert decode(*(bytes([byte]) for byte in stream)) == events


@given(ANYTHING, st.lists(st.integers(0, 10_000), max_size=8))
def test_events_do_not_depend_on_how_the_bytes_are_cut(stream: bytes, places: list[int]) -> None:
    whole = decode(stream)
    assert decode(*cut(stream, places)) == whole
    assert decode(*(bytes([byte]) for byte in stream)) == whole


@given(ANYTHING, st.integers(4, 30), st.lists(st.integers(0, 10_000), max_size=8))
def test_the_bound_does_not_depend_on_how_the_bytes_are_cut(stream: bytes, limit: int, places: list[int]) -> None:
    def passes(*blocks: bytes) -> bool:
        try:
            decode(*blocks, limit=limit)
        except LineTooLong:
            return False
        return True

    assert passes(stream) == passes(*cut(stream, places)) == passes(*(bytes([byte]) for byte in stream))


@given(LINES, st.lists(st.integers(0, 10_000), max_size=8))
def test_events_are_those_of_the_sdk(stream: bytes, places: list[int]) -> None:
    theirs = [
        (event.event or "", event.data.encode())
        for event in SSEDecoder().iter_bytes(iter(cut(stream, places)))
        if event.data or not event.event  # the SDK also dispatches a name without data
    ]
    ours = [(name, data) for name, data in decode(stream) if data or not name]
    assert ours == theirs


@pytest.mark.parametrize(
    ("stream", "idle"),
    [
        (b"", True),
        (b"data: a\n\n", True),
        (b"data: a\r\n\r\n", True),
        (b": comment\n", True),
        (b"data: a\r\n\r", False),  # a line feed that came next would belong to it
        (b"data: a\n", False),
        (b"data: a", False),
        (b"event: e\n", False),
        (b"\xef\xbb", False),
    ],
)
def test_it_is_idle_when_the_next_byte_begins_an_event(stream: bytes, idle: bool) -> None:
    decoder = Decoder()
    decoder.feed(stream)
    assert decoder.is_idle is idle


def test_a_line_of_exactly_the_limit_passes_and_one_byte_more_does_not() -> None:
    assert decode(b"data: " + b"x" * 94 + b"\n\n", limit=100) == [("", b"x" * 94)]
    with pytest.raises(LineTooLong, match="100 bytes") as error:
        decode(b"data: " + b"x" * 95 + b"\n\n", limit=100)
    assert error.value.limit == 100


def test_joined_data_is_bounded_as_one_line_is() -> None:
    with pytest.raises(LineTooLong):
        decode(*[b"data:\n"] * 102, limit=100)
    with pytest.raises(LineTooLong):
        decode(b"data: " + b"x" * 60 + b"\ndata: " + b"x" * 60 + b"\n\n", limit=100)


def test_an_endless_line_stops_at_the_limit() -> None:
    decoder = Decoder(1 << 20)
    block = b"x" * 65_536
    for _ in range((1 << 20) // len(block)):
        decoder.feed(block)
    with pytest.raises(LineTooLong):
        decoder.feed(b"x")


@pytest.mark.parametrize("block_bytes", [1, 64])
def test_time_is_linear_in_a_line_that_comes_in_small_blocks(block_bytes: int) -> None:
    def seconds(size: int) -> float:
        block, times = b"x" * block_bytes, []
        for _ in range(3):
            decoder, start = Decoder(), time.process_time()
            for _ in range(size // block_bytes):
                decoder.feed(block)
            times.append(time.process_time() - start)
        return min(times)

    assert seconds(320_000 * block_bytes // 4) < 10 * seconds(80_000 * block_bytes // 4)  # quadratic: 16 times
