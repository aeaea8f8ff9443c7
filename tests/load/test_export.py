from __future__ import annotations

import math

import orjson
import pytest

from runner.errors import UsageError
from runner.load.export import LAYOUTS, export
from tests.load import examples
from tests.load.test_results import ALL

# What `vllm bench serve --save-result` writes without --save-detailed (vllm/benchmarks/serve.py).
VLLM_KEYS = {
    *("date", "endpoint_type", "backend", "label", "model_id", "tokenizer_id", "num_prompts"),
    *("request_rate", "burstiness", "max_concurrency"),
    *("duration", "completed", "failed", "total_input_tokens", "total_output_tokens"),
    *("request_throughput", "request_goodput", "output_throughput", "total_token_throughput"),
    *(f"{s}_{m}_ms" for s in ("mean", "median", "std", "p99") for m in ("ttft", "tpot", "itl", "e2el")),
}
VLLM_MORE = {f"{s}_{m}_ms" for s in ("p90", "p95") for m in ("ttft", "tpot", "itl", "e2el")}
"""With --metric-percentiles 90,95,99."""
AIPERF_KEYS = {
    *("schema_version", "start_time", "end_time", "was_cancelled", "run_info", "error_summary"),
    *("time_to_first_token", "time_to_first_output_token", "inter_token_latency", "inter_chunk_latency"),
    *("request_latency", "input_sequence_length", "output_sequence_length"),
    *("request_throughput", "goodput", "output_token_throughput", "total_token_throughput"),
    *("output_token_throughput_per_user", "input_token_throughput", "total_isl", "total_osl"),
    *("request_count", "error_request_count", "benchmark_duration"),
}
AIPERF_RECORD = {"unit", "avg", "min", "max", "p50", "p90", "p95", "p99", "std", "count", "sum"}


def exported(result, layout):
    return [orjson.loads(data) for data in export(result, layout).values()]


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_is_one_file_a_level_with_a_name_of_our_own(make, layout):
    result = make()
    files = export(result, layout)
    assert len(files) == len(result.levels)
    assert all(name.replace("-", "").replace(".", "").isalnum() for name in files)
    for data in files.values():
        assert isinstance(orjson.loads(data), dict)


def test_vllm_has_every_documented_key_and_no_other_where_n_supports_it():
    last = exported(examples.healthy(), "vllm")[-1]
    assert set(last) == VLLM_KEYS | VLLM_MORE


def test_a_percentile_that_n_cannot_support_is_left_out_of_an_export():
    first = exported(examples.healthy(), "vllm")[0]
    assert "median_ttft_ms" in first
    assert not {"p90_ttft_ms", "p95_ttft_ms", "p99_ttft_ms"} & set(first)
    assert "p99" not in exported(examples.healthy(), "aiperf")[0]["time_to_first_token"]


def test_vllm_names_mean_what_they_mean_there():
    level = examples.healthy().levels[-1]
    last = exported(examples.healthy(), "vllm")[-1]
    assert last["mean_tpot_ms"] == pytest.approx(1000 * (level.metric("itl").mean or math.nan))
    assert last["mean_itl_ms"] == pytest.approx(1000 * (level.metric("icl").mean or math.nan))
    assert last["p99_ttft_ms"] == pytest.approx(1000 * (level.metric("ttft").p99 or math.nan))
    assert (last["request_rate"], last["burstiness"]) == ("inf", 1)
    assert last["max_concurrency"] == 64
    assert last["date"] == "20261121-090000"


def test_vllm_in_an_open_loop_has_the_rate_and_no_concurrency():
    [first, *_] = exported(examples.open_loop(), "vllm")
    assert (first["request_rate"], first["max_concurrency"], first["burstiness"]) == (2, None, 1)


@pytest.mark.parametrize("kind", ["trace", "ramp", "step"])
def test_a_rate_that_changes_is_exported_as_what_was_offered_and_not_as_the_levels_own_value(kind):
    level = examples.level(2, kind="open")
    level["rates"]["offered_per_s"] = 3.5
    result = examples.result([level], arrival={"kind": kind})
    assert exported(result, "vllm")[0]["request_rate"] == 3.5
    assert exported(result, "aiperf")[0]["run_info"]["variation_values"] == {"request_rate": 3.5}


def test_aiperf_totals_are_sums_and_a_users_speed_is_that_of_its_own_itl():
    level = examples.healthy().levels[-1]
    last = exported(examples.healthy(), "aiperf")[-1]
    tokens = level.metric("output_tokens")
    assert last["total_osl"] == {"unit": "tokens", "avg": round((tokens.mean or 0) * tokens.n)}
    speed = last["output_token_throughput_per_user"]
    assert (speed["unit"], speed["p50"]) == ("tokens/sec/user", level.metric("output_tokens_per_s_per_user").p50)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_completed_and_failed_add_up_to_what_counts(layout):
    for level, made in zip(examples.stalled().levels, exported(examples.stalled(), layout), strict=True):
        if layout == "vllm":
            found = made["completed"], made["failed"]
        else:
            found = made["request_count"]["avg"], made["error_request_count"]["avg"]
        assert sum(found) == level.requests.in_window
        assert found[1] > 0


def test_aiperf_has_every_documented_key_and_no_other():
    last = exported(examples.healthy(), "aiperf")[-1]
    assert set(last) == AIPERF_KEYS
    assert set(last["request_latency"]) == AIPERF_RECORD
    assert set(last["request_throughput"]) == {"unit", "avg"}
    assert last["time_to_first_token"]["unit"] == "ms"
    assert last["schema_version"] == "1.5"


def test_aiperf_tells_errors_and_an_interruption():
    assert exported(examples.interrupted(), "aiperf")[1]["was_cancelled"] is True
    details = [error["error_details"] for error in exported(examples.stalled(), "aiperf")[0]["error_summary"]]
    assert {each["type"] for each in details} == {"read_timeout", "truncated", "rate_limited"}
    assert all(each["message"] for each in details)  # their reader refuses one without


def test_aiperf_counts_429s_among_the_errors():
    level = examples.level(4) | {"throttled": 7, "errors": {"truncated": 2}}
    [made] = exported(examples.result([level]), "aiperf")
    assert {error["error_details"]["type"]: error["count"] for error in made["error_summary"]} == {
        "truncated": 2,
        "rate_limited": 7,
    }


def test_nothing_measured_exports_no_figure():
    [made] = exported(examples.empty(), "aiperf")
    assert "time_to_first_token" not in made
    [made] = exported(examples.empty(), "vllm")
    assert made["total_output_tokens"] is None
    assert "mean_ttft_ms" not in made


def test_an_unknown_layout_is_a_usage_error_that_names_the_known():
    with pytest.raises(UsageError, match="vllm or aiperf"):
        export(examples.healthy(), "guidellm")
