from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import InputError
from runner.load import traces
from runner.load.traces import parse_trace

MOONCAKE = b"""\
{"timestamp": 27000, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}
{"timestamp": 30000, "input_length": 6472, "output_length": 26, "hash_ids": [46, 57]}

{"timestamp": 27500, "input_length": 1, "output_length": 0, "hash_ids": []}
"""
BURST_GPT = b"""\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
118,GPT-4,417,276,693,Conversation log
"""
AZURE = b"""\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.6805900,396,109
"""


def parse(data, **kwargs):
    trace = parse_trace(data.splitlines(keepends=True), "t", **kwargs)
    return list(trace.times_s), list(trace.input_tokens), list(trace.output_tokens)


def test_mooncakes_whole_numbers_are_milliseconds_and_rows_are_put_in_order():
    times, inputs, outputs = parse(MOONCAKE)
    assert times == pytest.approx([0, 0.5, 3])
    assert inputs == [6955, 1, 6472]
    assert outputs == [52, 0, 26]


def test_burstgpts_whole_numbers_are_seconds():
    assert parse(BURST_GPT) == ([0, 40, 113], [472, 1087, 417], [18, 230, 276])


def test_azures_dates_need_no_unit():
    assert parse(AZURE)[0] == pytest.approx([0, 4])
    assert parse(AZURE, unit="ms")[0] == pytest.approx([0, 4])


@pytest.mark.parametrize(
    ("lines", "unit", "expected"),
    [
        (b'{"timestamp": 1}\n{"timestamp": 3.5}', None, 2.5),
        (b'{"timestamp": 1}\n{"timestamp": 3}', "s", 2),
        (b'{"timestamp": 1.0}\n{"timestamp": 3.0}', "ms", 0.002),
        (b'{"timestamp_s": 1}\n{"timestamp_s": 3}', None, 2),
        (b'{"timestamp_ms": 1.5}\n{"timestamp_ms": 3.5}', None, 0.002),
        (b"timestamp_ms\n1\n3", None, 0.002),
        (b"timestamp\n1\n3", "ms", 0.002),
        (b"\xef\xbb\xbfTimestamp\r\n1\r\n3\r\n", None, 2),
        (b'\xef\xbb\xbf{"TimeStamp": 0}\r\n{"TimeStamp": 3}\r\n', None, 0.003),
        (b"timestamp\n2024-01-01T00:00:00+02:00\n2023-12-31T22:00:01Z", None, 1),
    ],
)
def test_the_unit_is_told_apart_as_stated_or_named(lines, unit, expected):
    assert parse(lines, unit=unit)[0][-1] == pytest.approx(expected)


def test_a_file_of_lengths_alone_keeps_its_order():
    assert parse(b'{"input_tokens": 3}\n{"input_tokens": 1}') == ([], [3, 1], [])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\n \n", "empty"),
        (b"timestamp\n", "no row"),
        (b"a,b\n1,2", "t:2: none of timestamp"),
        (b"{}", "t:1: none of"),
        (b'{"timestamp": 1}\n{"timestamp": }', "t:2: not JSON"),
        (b'{"timestamp": 1}\n[1]', "t:2: an object"),
        (b'{"timestamp": 1}\n{}', "t:2: the row has no usable time"),
        (b'{"timestamp": true}', "no usable time"),
        (b'{"timestamp": "soon"}', "neither a number nor a date"),
        (b"timestamp\nnan", "no usable time"),
        (b"timestamp\n1e999", "no usable time"),
        (b"timestamp,input_length\n1", "t:2: a length"),
        (b'{"input_length": -1}', "a length"),
        (b'{"input_length": "x"}', "a length"),
        (b'{"input_length": true}', "a length"),
        (b'{"input_length": 1e99}', "a length"),
        (b'timestamp\n"' + b"x" * 200_000, "not CSV"),
    ],
)
def test_what_is_no_trace_is_refused_with_its_place(data, message):
    with pytest.raises(InputError, match=message):
        parse(data)


def test_a_trace_of_more_rows_than_the_bound_is_refused(monkeypatch):
    monkeypatch.setattr(traces, "MAX_ROWS", 2)
    with pytest.raises(InputError, match="t:4: a trace has at most 2 rows"):
        parse(b"timestamp\n1\n2\n3")


@given(st.binary(max_size=200))
def test_whatever_comes_it_is_a_trace_or_refused(data):
    for prefix in (b"", b"timestamp,input_length\n", b'{"timestamp": 1}\n'):
        try:
            times, _, _ = parse(prefix + data)
        except InputError:
            continue
        assert times == sorted(times)
