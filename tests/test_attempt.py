from __future__ import annotations

import anyio
import httpx2
import orjson
import pytest

from runner.attempt import run_attempt
from runner.deadlines import Deadlines
from runner.faults import FaultKind
from runner.jobs import Api, StopAfter
from runner.outcome import Completed, Failed, Usage
from runner.testing.virtual_time import run_virtual
from tests.scripted import FOREVER, HELLO, ListSink, ScriptedBody, ScriptedClient, chat_chunk, chat_job, sse

DEADLINES = Deadlines(first_token_s=300, idle_s=60, total_s=1800)


async def attempt(script, *, job=None, choices=1, headers=None, sink=None, client=None):
    client = client or ScriptedClient([script])
    if headers is not None:
        client.headers = headers
    result = await run_attempt(
        client,
        job or chat_job(),
        b"{}",
        choices=choices,
        deadlines=DEADLINES,
        sink=sink or ListSink(),
        on_headers=lambda response: None,
    )
    assert all(body.closed for body in client.bodies), "a connection was left open"
    return result


def virtual(*args, **kwargs):
    return run_virtual(lambda: attempt(*args, **kwargs))


def fault(result):
    assert isinstance(result.outcome, Failed), result.outcome
    return result.outcome.fault.kind


def text(result):
    outcome = result.outcome
    body = outcome.body if isinstance(outcome, Completed) else outcome.partial
    return body["choices"][0]["message"]["content"]


async def test_a_whole_stream_is_a_success_with_its_body_usage_and_deltas():
    sink = ListSink()
    result = await attempt([HELLO], sink=sink)
    assert result.outcome.finish == "stop"
    assert result.outcome.usage == Usage(input_tokens=3, output_tokens=2)
    assert text(result) == "Hello"
    assert [d.payload for d in sink.deltas] == [{"index": 0, "content": "Hel"}, {"index": 0, "content": "lo"}]
    assert (result.chunks, result.status, result.request_id, result.gaps.count) == (2, 200, "req", 1)


async def test_every_prefix_is_a_success_only_with_the_finish_reason_in_it():
    finish_at = HELLO.index(b'"stop"')
    end_of_event = HELLO.index(b"\n\n", finish_at) + 2
    for cut in range(len(HELLO)):
        result = await attempt([HELLO[:cut]])
        assert isinstance(result.outcome, Completed) == (cut >= end_of_event), cut
        if cut < end_of_event:
            assert fault(result) is FaultKind.TRUNCATED


async def test_every_prefix_followed_by_a_reset_is_a_success_only_with_the_finish_reason_in_it():
    end_of_event = HELLO.index(b"\n\n", HELLO.index(b'"stop"')) + 2
    for cut in range(0, len(HELLO), 7):
        result = await attempt([HELLO[:cut], httpx2.ReadError("reset")])
        assert isinstance(result.outcome, Completed) == (cut >= end_of_event), cut
        if cut < end_of_event:
            assert fault(result) is FaultKind.BROKEN


async def test_byte_by_byte_is_the_same_as_in_one_piece():
    pieces = [HELLO[i : i + 1] for i in range(len(HELLO))]
    assert (await attempt(pieces)).outcome == (await attempt([HELLO])).outcome


async def test_done_without_finish_reason_is_no_success_and_keeps_the_partial_text():
    result = await attempt([sse(chat_chunk("Hel"), "[DONE]")])
    assert fault(result) is FaultKind.TRUNCATED
    assert text(result) == "Hel"


async def test_a_missing_choice_is_no_success():
    assert fault(await attempt([sse(chat_chunk("a"), chat_chunk(finish="stop"))], choices=2)) is FaultKind.TRUNCATED


async def test_an_error_inside_the_stream_fails_even_after_a_finish_reason():
    late = sse(chat_chunk("a"), chat_chunk(finish="stop"), {"error": {"code": "server_error", "message": "m"}})
    assert fault(await attempt([late])) is FaultKind.SERVER_ERROR
    early = sse({"error": {"code": "rate_limit_exceeded", "message": "m"}})
    assert fault(await attempt([early])) is FaultKind.RATE_LIMITED


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/html"},
        {},
        {"content-type": "text/event-stream", "content-encoding": "gzip"},
        {"content-type": "application/octet-stream"},
    ],
)
async def test_what_is_not_announced_as_a_stream_is_not_read(headers):
    sink = ListSink()
    assert fault(await attempt([HELLO], headers=headers, sink=sink)) is FaultKind.WRONG_CONTENT
    assert sink.deltas == []


async def test_a_json_body_in_place_of_a_stream_is_judged_as_a_body():
    headers = {"content-type": "application/json"}
    error = orjson.dumps({"error": {"code": "server_error", "message": "m"}})
    assert fault(await attempt([error], headers=headers)) is FaultKind.SERVER_ERROR
    whole = orjson.dumps(
        {"id": "c", "object": "chat.completion", "created": 1, "model": "m",
         "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}]}
    )  # fmt: skip
    assert (await attempt([whole], headers=headers)).outcome.finish == "stop"
    assert fault(await attempt([whole[:-9]], headers=headers)) is FaultKind.MALFORMED


async def test_a_job_that_does_not_stream_is_read_whole():
    whole = orjson.dumps({"object": "list", "model": "e", "data": [{"index": 0, "embedding": [1.0]}],
                          "usage": {"prompt_tokens": 2, "total_tokens": 2}})  # fmt: skip
    job = chat_job(api=Api.EMBEDDINGS, stream=False)
    result = await attempt([whole[:20], whole[20:]], job=job, headers={"content-type": "application/json"})
    assert result.outcome.body["data"][0]["embedding"] == [1.0]
    assert result.outcome.usage == Usage(input_tokens=2, output_tokens=0)
    assert result.ttft_s is None


@pytest.mark.parametrize("garbage", [b"data: {\n\n", b"data: null\n\n", b"data: []\n\n", b"data: \xff\n\n"])
async def test_garbage_in_the_stream_is_a_named_fault(garbage):
    assert fault(await attempt([sse(chat_chunk("a")), garbage])) is FaultKind.MALFORMED


async def test_a_line_without_end_stops_at_the_bound(monkeypatch):
    monkeypatch.setattr("runner.streaming.MAX_STREAM_BYTES", 10_000)
    assert fault(await attempt([b"data: " + b"x" * 1000] * 100)) is FaultKind.TOO_LARGE


async def test_stop_after_chunks_takes_exactly_so_many():
    job = chat_job(stop_after=StopAfter(chunks=1))
    result = await attempt([HELLO], job=job)
    assert (text(result), result.outcome.finish, result.chunks) == ("Hel", "stop_after", 1)
    assert result.outcome.body["choices"][0]["finish_reason"] == "stop_after"


async def test_stop_after_chars_stops_at_the_chunk_that_reaches_them():
    result = await attempt([HELLO], job=chat_job(stop_after=StopAfter(chars=4)))
    assert (text(result), result.outcome.finish) == ("Hello", "stop_after")


async def test_what_stop_after_asked_for_stands_whatever_happens_before_the_task_goes_on(monkeypatch):
    """Blocks are taken where they arrive; the task that waits for them resumes later."""

    async def pour(body, take):
        assert take([await body.read()], [body.arrived_ns])
        raise httpx2.ReadError("cut")

    monkeypatch.setattr(ScriptedBody, "pour", pour)
    result = await attempt([HELLO], job=chat_job(stop_after=StopAfter(chunks=1)))
    assert (text(result), result.outcome.finish) == ("Hel", "stop_after")


async def test_an_answer_shorter_than_stop_after_ends_by_itself():
    result = await attempt([HELLO], job=chat_job(stop_after=StopAfter(chunks=99)))
    assert result.outcome.finish == "stop"


def test_silence_before_the_first_token():
    assert fault(virtual([sse(chat_chunk("")), FOREVER])) is FaultKind.FIRST_TOKEN_TIMEOUT


def test_silence_between_deltas():
    assert fault(virtual([sse(chat_chunk("a")), FOREVER])) is FaultKind.IDLE_TIMEOUT


def test_comments_do_not_keep_a_stream_alive():
    comments = [step for _ in range(200) for step in (b": keep-alive\n\n", 1.0)]
    assert fault(virtual([sse(chat_chunk("a")), *comments])) is FaultKind.IDLE_TIMEOUT


def test_empty_deltas_do_not_keep_a_stream_alive():
    empty = [step for _ in range(200) for step in (sse(chat_chunk("")), 1.0)]
    assert fault(virtual([sse(chat_chunk("a")), *empty])) is FaultKind.IDLE_TIMEOUT


def test_steady_deltas_meet_the_total_deadline():
    steady = [step for _ in range(200) for step in (sse(chat_chunk("a")), 20.0)]
    assert fault(virtual(steady)) is FaultKind.TOTAL_TIMEOUT


def test_silence_after_the_finish_reason_is_a_success_without_usage():
    result = virtual([sse(chat_chunk("a"), chat_chunk(finish="stop")), FOREVER])
    assert (result.outcome.finish, result.outcome.usage) == ("stop", None)


def test_a_body_that_never_ends_after_done_is_given_up_soon():
    async def timed():
        start = anyio.current_time()
        result = await attempt([HELLO, FOREVER])
        return result.outcome.finish, round(anyio.current_time() - start, 3)

    assert run_virtual(timed) == ("stop", 0.25)


async def test_cancelled_at_any_step_it_closes_the_connection():
    for at in range(1, 12):
        client = ScriptedClient([[HELLO[i : i + 40] for i in range(0, len(HELLO), 40)]])
        with anyio.CancelScope() as scope:

            class Cancelling(ListSink):
                steps = 0
                has_room = False

                async def room(self):
                    self.steps += 1
                    if self.steps == at:  # noqa: B023 - called within the iteration
                        scope.cancel()
                    await super().room()

            await attempt([], client=client, sink=Cancelling())
        assert all(body.closed for body in client.bodies)
