"""An ended request → its sample and its record's times."""

from __future__ import annotations

import pytest

from runner.attempt import Attempted
from runner.faults import Fault, FaultKind
from runner.load.stamps import counted, moments, sample_of, text_of, written_by
from runner.outcome import Completed, Failed, Usage
from runner.records import History, Retry
from runner.tokens import heuristic

ZERO_S = 100.0
USAGE = Usage(5, 11, reasoning_tokens=2)


def ns(seconds):
    return round((ZERO_S + seconds) * 1e9)


def attempted(**changes):
    stamps = {"sent_ns": ns(1.0), "headers_ns": ns(1.1), "first_chunk_ns": ns(1.15), "first_content_ns": ns(1.2)}
    later = {"first_text_ns": ns(1.3), "last_content_ns": ns(2.0), "ended_ns": ns(2.1)}
    outcome = Completed({}, "stop", USAGE)
    return Attempted(outcome, **(stamps | later | {"chunks": 4, "coalesced": 1} | changes))


def history(**changes):
    made = History("m", attempts=1, admitted_s=ZERO_S + 0.9, limiter_wait_s=0.25)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def sample(outcome=None, *, ok=True, tried=None, past=None, **more):
    outcome = outcome or Completed({}, "stop", USAGE)
    return sample_of(past or history(), tried or attempted(), outcome, ok=ok, zero_s=ZERO_S, **more)


def test_every_stamp_is_seconds_since_the_level_began():
    found = sample(scheduled=0.5)
    times = (found.scheduled, found.admitted, found.sent, found.headers, found.first_chunk, found.first_content)
    assert times == pytest.approx((0.5, 0.9, 1.0, 1.1, 1.15, 1.2))
    assert (found.first_text, found.last_content, found.end) == pytest.approx((1.3, 2.0, 2.1))
    assert (found.input_tokens, found.output_tokens, found.reasoning_tokens) == (5, 11, 2)
    assert (found.chunks, found.coalesced, found.limiter_wait_s, found.ending) == (4, 1, 0.25, "succeeded")


def test_a_request_that_is_ready_before_its_moment_has_no_stamp_and_no_wait_before_it():
    ready = sample(scheduled=0.95)
    assert (ready.admitted, ready.limiter_wait_s) == (0.95, 0.0)
    held_up = sample(scheduled=0.8)
    assert held_up.admitted == pytest.approx(0.9)
    assert held_up.limiter_wait_s == pytest.approx(0.1)


def test_a_usage_of_no_tokens_for_an_answer_that_has_chunks_is_no_usage():
    nothing = Completed({"choices": [{"message": {"content": "four words or so"}}]}, "stop", Usage(0, 0))
    assert sample(nothing).output_tokens is None
    assert sample(nothing, tried=attempted(chunks=0)).output_tokens == 0
    assert counted(nothing, lambda job: heuristic(job.body["prompt"])) == 4


def test_what_did_not_happen_has_no_time():
    found = sample(tried=attempted(first_text_ns=0, first_content_ns=0, last_content_ns=0, chunks=0))
    assert (found.first_text, found.first_content, found.last_content) == (None, None, None)


def test_a_request_that_was_never_sent_is_dropped():
    outcome = Failed(Fault(FaultKind.NEVER_FITS, "too large"))
    found = sample_of(History("m"), None, outcome, ok=False, zero_s=ZERO_S, scheduled=1.0)
    assert found.ending == "dropped"


def test_a_429_is_throttled_and_those_before_a_success_are_counted():
    refused = Fault(FaultKind.RATE_LIMITED, "slow down", status=429)
    assert sample(Failed(refused), ok=False).ending == "throttled"
    past = history(attempts=3, retries=[Retry(1, "rate_limited", "", 429), Retry(2, "server_error", "", 500)])
    assert sample(past=past).throttled_attempts == 1


def test_a_finish_that_the_user_counts_as_a_failure_is_one():
    found = sample(ok=False)
    assert (found.ending, found.fault) == ("failed", "unwanted_finish")


def test_the_record_says_what_happened_when_and_nothing_that_did_not():
    said = moments(sample(tried=attempted(first_text_ns=0)))
    assert said["sent_s"] == 1.0
    assert said["last_content_s"] == 2.0
    assert not {"scheduled_s", "first_text_s"} & said.keys()


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}]}, "a"),
        ({"choices": [{"text": "c"}]}, "c"),
        ({"output": [{"content": [{"text": "d"}, {"text": "e"}]}, {"type": "reasoning"}]}, "de"),
        ({"choices": []}, ""),
        ({"choices": [{"message": {"content": None}}]}, ""),
        ({"output": None}, ""),
        ({"choices": [None]}, ""),
    ],
)
def test_the_text_of_an_answer_is_what_a_reader_sees_of_its_first_choice(body, text):
    assert text_of(body) == text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}]}, "ab"),
        ({"choices": [{"message": {"content": "b", "reasoning_content": "a"}}]}, "ba"),
        ({"choices": [{"message": {"content": None, "reasoning": "a"}}]}, "a"),
        ({"choices": [{"message": {"content": "b", "reasoning": "a", "reasoning_content": "a"}}]}, "ba"),
        ({"choices": [{"message": {"refusal": "no", "role": "assistant"}}]}, "no"),
        (
            {"choices": [{"message": {"tool_calls": [{"id": "x", "function": {"name": "f", "arguments": "{}"}}]}}]},
            "f{}",
        ),
        ({"choices": [{"text": "c", "logprobs": {"tokens": ["c"]}}]}, "c"),
        (
            {
                "output": [
                    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}]},
                    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "d"}]},
                    {"type": "function_call", "call_id": "1", "name": "g", "arguments": "{1}"},
                ]
            },
            "sdg{1}",
        ),
        ({"choices": [None, {"message": None}]}, ""),
        ({"output": None}, ""),
    ],
)
def test_what_the_model_wrote_is_all_of_it_reasoning_and_tool_calls_included(body, text):
    assert sorted(written_by(body)) == sorted(text)


def test_the_tokenizer_counts_only_what_the_server_did_not():
    body = {"choices": [{"message": {"content": "four words or so"}}]}
    count = lambda job: heuristic(job.body["prompt"])  # noqa: E731
    assert counted(Completed(body, "stop", None), count) == 4
    thinks = {"choices": [{"message": {"content": "four words or so", "reasoning_content": "words, words, words or"}}]}
    assert (counted(Completed(thinks, "stop", None), count) or 0) > 6
    assert counted(Completed(body, "stop", USAGE), count) is None
    assert counted(Failed(Fault(FaultKind.SERVER_ERROR, "x")), count) is None
