from __future__ import annotations

import csv
import io
import math

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import UsageError
from runner.load import results, sheet
from runner.load.definitions import METRICS
from tests.load import examples

ALL = {
    "healthy": examples.healthy,
    "repeated": examples.repeated,
    "open_loop": examples.open_loop,
    "stalled": examples.stalled,
    "interrupted": examples.interrupted,
    "empty": examples.empty,
    "hostile": examples.hostile,
}


def rows_of(result):
    return list(csv.DictReader(io.StringIO(sheet.to_csv(result).decode(), newline="")))


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_what_is_written_is_read_back_the_same(make):
    result = make()
    data = results.encode(result)
    assert results.decode(data, "load.json") == result
    assert results.encode(results.decode(data, "load.json")) == data


def test_failures_as_infinity_survive_json_which_has_no_number_for_it():
    data = results.encode(examples.stalled())
    found = orjson.loads(data)["levels"][0]["metrics_with_failures"]["ttft"]
    assert found["p99"] == "inf"
    assert results.decode(data, "x").levels[0].metrics_with_failures["ttft"].p99 == math.inf


def test_keys_of_a_later_version_are_left_out_and_not_refused():
    data = orjson.loads(results.encode(examples.healthy()))
    data["levels"][0]["colour"] = data["weather"] = "blue"
    assert results.decode(orjson.dumps(data), "x") == examples.healthy()


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        (("schema",), 2, "schema"),
        (("levels", 0, "kind"), "ajar", "levels.0.kind"),
        (("levels", 1, "requests", "failed"), -1, "levels.1.requests.failed"),
        (("levels", 1, "requests", "failed"), "3", "levels.1.requests.failed"),
        (("levels", 1, "goodput"), True, "levels.1.goodput"),
        (("levels", 1, "requests", "failed"), 1.5, "levels.1.requests.failed"),
        (("levels", 2, "metrics", "ttft", "p50"), "fast", "levels.2.metrics.ttft.p50"),
        (("levels", 2, "window_s"), [1.0], "levels.2.window_s"),
        (("levels", 0, "client", "verdict"), "fine", "levels.0.client.verdict"),
        (("name",), None, "name"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place(place, value, named):
    data = orjson.loads(results.encode(examples.healthy()))
    at = data
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    with pytest.raises(UsageError, match=named.replace(".", r"\.")) as caught:
        results.decode(orjson.dumps(data), "a/load.json")
    assert "a/load.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[]", b"{}", b"\xff\xfe", b'{"schema": 1, "levels": [NaN]}', b"[" * 100_000, b'{"schema":1'],
)
def test_what_is_no_load_test_is_a_usage_error(data):
    with pytest.raises(UsageError, match="schema 1"):
        results.decode(data, "x")


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e999"])
def test_no_figure_is_infinite_or_no_number(number):
    level = b'{"label":"1","kind":"closed","value":1,"goodput":%s}' % number
    with pytest.raises(UsageError, match="goodput"):
        results.decode(b'{"schema":1,"levels":[%s]}' % level, "x")


def test_a_percentile_with_failures_may_be_infinite_but_is_a_number():
    level = b'{"label":"1","kind":"closed","value":1,"metrics_with_failures":{"ttft":{"n":1,"p99":%s}}}'
    assert results.decode(b'{"schema":1,"levels":[%s]}' % (level % b'"inf"'), "x")
    with pytest.raises(UsageError, match="p99"):
        results.decode(b'{"schema":1,"levels":[%s]}' % (level % b"NaN"), "x")


@given(st.binary(max_size=200) | st.recursive(st.none() | st.text() | st.floats(), st.lists).map(orjson.dumps))
def test_whatever_bytes_come_they_are_a_load_test_or_one_named_error(data):
    with pytest.raises(UsageError):
        results.decode(data, "x")


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_the_csv_has_one_row_a_level_and_every_documented_column(make):
    result = make()
    rows = rows_of(result)
    assert len(rows) == len(result.levels)
    for row in rows:
        assert list(row) == [*sheet.LEVEL_COLUMNS, *sheet.metric_columns()]


def test_numbers_in_the_csv_are_plain_and_unknown_is_empty():
    [first, *_] = rows_of(examples.healthy())
    assert float(first["ttft_p50_s"]) == pytest.approx(examples.healthy().levels[0].metric("ttft").p50)
    assert first["succeeded"].isdigit()
    assert first["ttft_p99_9_s"] == first["ttft_from_schedule_p50_s"] == ""
    assert first["complete"] == "true"


def test_every_metric_has_its_columns_with_the_unit_in_the_name():
    columns = sheet.metric_columns()
    assert len(columns) == len(set(columns)) == len(METRICS) * len(results.STATISTICS)
    assert {"ttft_p99_s", "ttft_n", "output_tokens_p50", "send_lag_max_s"} <= set(columns)


def test_no_cell_of_the_csv_is_a_formula_or_a_control_code():
    data = sheet.to_csv(examples.hostile())
    for row in csv.reader(io.StringIO(data.decode(), newline="")):
        for cell in row:
            assert not cell.startswith(("=", "+", "@", "\t", "\r"))
            assert not cell.startswith("-") or float(cell) < 0
    assert not set(range(32)) - {10, 13} & set(data)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝"])
def test_text_that_begins_like_a_formula_is_disarmed(start):
    [row] = rows_of(examples.result([examples.level(4)], name=f"{start}1+1"))
    assert row["name"].startswith("'")


def test_a_figure_below_zero_stays_a_number():
    made = examples.level(4) | {"goodput": -0.5}
    assert rows_of(examples.result([made]))[0]["goodput"] == "-0.5"
