from __future__ import annotations

import anyio
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.load import scrape
from runner.load.scrape import GaugeRecord, Recorder, ScrapeError, parse
from runner.testing.virtual_time import run_virtual

VLLM = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a}b\\"c, x"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0 1700000000
vllm:num_requests_running_total{engine="1"} 40
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0"} 0.5
vllm:kv_cache_usage_perc{engine="1"} 1e-1
vllm:num_requests_waiting{engine="0"} NaN
"""


def test_engines_are_summed_and_shares_averaged():
    assert parse(VLLM) == {"vllm:num_requests_running": 7.0, "vllm:kv_cache_usage_perc": pytest.approx(0.3)}


def test_ranks_of_one_group_report_the_same_requests_and_count_once():
    body = b'sglang:num_running_reqs{model_name="m",tp_rank="0"} 4\n'
    body += b'sglang:num_running_reqs{tp_rank="1",model_name="m"} 4\n'
    assert parse(body) == {"sglang:num_running_reqs": 4.0}


def test_a_gauge_without_labels_is_read():
    assert parse(b"tgi_queue_size 7\ntgi_batch_current_size{} 2\r\n") == {
        "tgi_queue_size": 7.0,
        "tgi_batch_current_size": 2.0,
    }


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>not found</html>",
        b"tgi_queue_size",
        b"tgi_queue_size seven\n",
        b'tgi_queue_size{a="b 7\n',
        b"xtgi_queue_size 7\n",
        b"# tgi_queue_size 7\n",
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_known_sample_is_passed_over(body):
    assert parse(body) == {}


@given(st.binary(max_size=300) | st.text('tgi_queue_size{}="\\, 7\n', max_size=80).map(str.encode))
def test_whatever_bytes_come_parse_returns(data):
    assert all(isinstance(value, float) for value in parse(b"tgi_queue_size" + data).values())


def test_a_long_broken_line_takes_no_quadratic_time():
    body = b'tgi_queue_size{a="' + b'\\"' * 500_000 + b"\n" + b"tgi_queue_size 1\n"
    assert parse(body) == {"tgi_queue_size": 1.0}


def test_mean_max_and_last_are_of_all_polls():
    gauge = GaugeRecord()
    for value in (0.5, 2.0, 0.5, 1.0):
        gauge.add(value)
    assert gauge.summary() == {"mean": 1.0, "max": 2.0, "last": 1.0}


def polled(answers, seconds, **options):
    """Runs a poll over scripted answers: bytes, an error to raise, or seconds to take before answering nothing."""
    recorder = Recorder()
    warnings: list[str] = []
    times: list[float] = []

    async def fetch():
        times.append(anyio.current_time())
        answer = answers[min(len(times), len(answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, float):
            await anyio.sleep(answer)
            return b""
        return answer

    async def main():
        with anyio.move_on_after(seconds):
            await scrape.poll(fetch, lambda: recorder, warnings.append, **options)

    run_virtual(main)
    return recorder, warnings, times


def test_it_polls_on_time_and_records_what_came():
    recorder, warnings, times = polled([b"tgi_queue_size 1\n", b"tgi_queue_size 3\n"], 9.5)
    assert times == [pytest.approx(float(i), abs=1e-3) for i in range(10)]
    assert recorder.summary() == {"tgi_queue_size": {"mean": pytest.approx(2.8), "max": 3.0, "last": 3.0}}
    assert warnings == []


@pytest.mark.parametrize("answer", [ScrapeError("the server answered 404"), b"<html></html>", 60.0])
def test_a_server_without_metrics_costs_one_warning_and_ends_nothing(answer):
    recorder, warnings, times = polled([answer], 3600)
    assert len(warnings) == 1
    assert len(times) == scrape.MAX_FAILURES
    assert recorder.summary() is None


def test_a_gap_in_between_is_warned_of_once_and_polling_goes_on():
    error = ScrapeError("ConnectError")
    answers = [b"tgi_queue_size 1\n", *[error] * 10, b"tgi_queue_size 5\n"]
    recorder, warnings, times = polled(answers, 20.5)
    assert len(warnings) == 1
    assert len(times) == 21
    assert recorder.summary() == {"tgi_queue_size": {"mean": pytest.approx(51 / 11), "max": 5.0, "last": 5.0}}


def test_a_slow_answer_is_given_up_and_not_made_up_for():
    _, warnings, times = polled([b"tgi_queue_size 1\n", 60.0, b"tgi_queue_size 1\n"], 6.5, timeout_s=2.0)
    assert "2 s" in warnings[0]
    assert [round(t, 3) for t in times] == [0, 1, 3, 4, 5, 6]


def fetched(handler, url="http://server/metrics?token=canary"):
    async def main():
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(handler)) as client:
            return await scrape.fetcher(client, url)()

    return anyio.run(main)


def test_a_good_answer_is_fetched_whole():
    assert fetched(lambda request: httpx2.Response(200, content=VLLM)) == VLLM


def refuse(request):
    raise httpx2.ConnectError(f"no way to {request.url}")


@pytest.mark.parametrize(
    ("handler", "said"),
    [
        (lambda request: httpx2.Response(404), "404"),
        (lambda request: httpx2.Response(302, headers={"location": "http://elsewhere/"}), "302"),
        (lambda request: httpx2.Response(200, content=b"x" * (scrape.MAX_BODY_BYTES + 1)), "larger"),
        (refuse, "ConnectError"),
    ],
)
def test_what_cannot_be_fetched_is_one_error_that_names_no_url(handler, said):
    with pytest.raises(ScrapeError, match=said) as caught:
        fetched(handler)
    assert "canary" not in str(caught.value)
