"""The fast way back from a record says what the tolerant way says, or nothing."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.digests import id_key
from runner.faults import Fault, FaultKind
from runner.jobs import Rejected
from runner.outcome import Completed, Failed, Usage
from runner.records import Retry, of_rejected, record_line
from runner.totals import Totals
from runner.written import of_any, of_record, read, read_any
from tests.test_records import record

USAGE = Usage(10, 5, cached_tokens=4, reasoning_tokens=2)
BODY = {"id": "c", "model": "m", "choices": [{"message": {"content": 'né "quoted" \\ \u2028 \U0001f600 {"runner":{'}}]}
RETRIES = [Retry(1, "rate_limited", "slow down", 429, "b"), Retry(2, "truncated", "cut", None)]
OURS: list[dict[str, Any]] = [
    record(Completed(BODY, "stop", USAGE), retries=RETRIES, cost=0.5),
    record(Completed(BODY, "length", None)),
    record(Completed(BODY, "tool_calls", USAGE)),
    record(Failed(Fault(FaultKind.TRUNCATED, "cut"), partial=BODY)),
    record(Failed(Fault(FaultKind.BAD_REQUEST, "no", status=400, body={"error": {"code": "x"}}))),
    of_rejected(Rejected(id="line-1", custom_id=None, line=7, code="bad_json", reason="é", metadata={"a": [1]})),
]
LINES = [record_line(made).rstrip() for made in OURS]
NUMBERS = (True, False, 0, 1, -1, 0.0, 1.5, 1e300, 2**63, 2**64 - 1, -(2**63))
TEXTS = (
    "",
    "x",
    "é",
    "0" * 16,
    " " * 16,
    "0x00000000000000",
    "+000000000000001",
    "0000_0000_0000_0",
    "ABCDEF0123456789",
)
NESTED: tuple[Any, ...] = (
    [],
    {},
    [None],
    [{}],
    [{"reason": "r"}],
    [{"reason": 1}],
    {"code": "c"},
    {"p50": 1},
    {"input_tokens": -1},
)
JUNK = st.sampled_from([None, *NUMBERS, *TEXTS, *NESTED])
INNER = [*OURS[0]["runner"], "unknown"]


@st.composite
def altered(draw):
    """A record with some members replaced, removed or repeated under the same name."""
    made = orjson.loads(draw(st.sampled_from(LINES)))
    for part, names in ((made, ["id", "error", "runner", "more"]), (made["runner"], INNER)):
        for name in draw(st.lists(st.sampled_from(names), max_size=2)):
            if draw(st.booleans()):
                part.pop(name, None)
            else:
                part[name] = draw(JUNK)
    line = orjson.dumps(made)
    if draw(st.booleans()):
        line = line[:-1] + b"," + orjson.dumps({draw(st.sampled_from(["id", "error", "runner"])): draw(JUNK)})[1:]
    return line


@st.composite
def damaged(draw):
    """A record with a part cut out, zeroed or replaced."""
    line = draw(st.sampled_from(LINES))
    start = draw(st.integers(0, len(line)))
    end = draw(st.integers(start, min(len(line), start + draw(st.sampled_from([1, 3, 400])))))
    new = draw(st.one_of(st.just(b""), st.just(bytes(end - start)), st.binary(max_size=4), st.sampled_from(LINES)))
    return line[:start] + new + line[end:]


def summed(lines, *, fast):
    totals = Totals()
    if fast:
        block = read(lines)
        assert block is not None
        totals.add(block.records)
    else:
        for line in lines:
            found_any = read_any(line)
            assert found_any is not None
            totals.add([of_any(found_any[1])])
    return totals


def check_same(left, right):
    """But for how sums of floats were rounded."""
    (left_exact, left_sums), (right_exact, right_sums) = state(left), state(right)
    assert left_exact == right_exact
    assert left_sums == pytest.approx(right_sums)


def state(totals):
    sketches = {name: sketch.to_dict() for name, sketch in totals.times.items()}
    sums = [sketch.pop("total") for sketch in sketches.values()]
    counts = {name: value for name, value in vars(totals).items() if name not in ("times", "cost")}
    return (counts, sketches, totals.cost is None), [*sums, totals.cost or 0.0]


@pytest.mark.parametrize("line", LINES)
def test_what_we_write_is_read_the_fast_way(line):
    assert read([line]) is not None


@given(altered() | damaged())
def test_what_is_read_the_fast_way_is_the_same_the_tolerant_way(line):
    found = read([line])
    if found is None:
        return
    tolerant = read_any(line)
    assert tolerant is not None, "damage got through"
    entry, _ = tolerant
    (only,) = found.records
    assert (only.id, only.error is None) == (entry.id, entry.ok)
    assert list(found.keys()) == [id_key(entry.id)]
    assert list(found.digests) == [entry.digest]
    check_same(summed([line], fast=True), summed([line], fast=False))


@given(altered())
def test_a_record_in_memory_counts_what_its_line_counts(line):
    found = read_any(line)
    if found is None:
        return
    in_memory = Totals()
    in_memory.add([of_record(orjson.loads(line))])
    check_same(in_memory, summed([line], fast=False))


@given(st.lists(st.sampled_from(LINES), max_size=30))
def test_many_records_sum_up_to_the_same_together_and_one_by_one(lines):
    check_same(summed(lines, fast=True), summed(lines, fast=False))


@pytest.mark.parametrize(
    "inside",
    [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\0", b"\x1f", b"\\q", b"\\ud800", b"\\u12", b'"', b"\\"],
    ids=repr,
)
def test_damage_in_what_is_passed_over_is_damage(inside):
    line = LINES[0].replace(b"quoted", inside)
    assert line != LINES[0]
    assert read_any(line) is None
    assert read([line]) is None


@pytest.mark.parametrize("deep", [900, 1_100, 100_000])
def test_a_line_nested_too_deeply_is_no_error(deep):
    line = LINES[0].replace(b'"runner"', b'"deep":' + b"[" * deep + b"]" * deep + b',"runner"')
    assert read([line]) is None or read_any(line) is not None


def test_half_a_pair_of_lines_that_would_be_json_together_is_none():
    first, second = LINES[0], LINES[1]
    assert read([first + b"," + second]) is None
    assert read([first[:50], first[50:]]) is None


@pytest.mark.parametrize("value", [0.0, 1e-12, 5e9, math.inf, math.nan, -1.0])
def test_a_value_outside_of_a_sketch_counts_the_same_together(value):
    values = [0.5, value, 0.25, value, 7.0]
    together, each = Totals().times["ttft_s"], Totals().times["ttft_s"]
    together.add_all(values)
    for one in values:
        each.add(one)
    assert together.to_dict() == each.to_dict()
