"""Scenarios that are a 200 and still no answer: what exactly stands on the wire, streamed and not."""

from __future__ import annotations

import gzip
import zlib

import orjson
import pytest

from runner.simulator import expected_text, running_app
from tests.simulator.simulator_client import FAST, chat, post
from tests.simulator.simulator_reference import BODIES, DELIVERIES, STREAMS, WHOLE, rehearse


async def both(name, endpoint, stream, **more):
    """The answer as it should be, and as the scenario has it."""
    path, body = BODIES[endpoint]
    async with running_app(FAST) as url:
        return await post(url, path, {**body, "stream": stream}), await post(
            url, path, rehearse(name, body, stream, **more)
        )


def every(deliveries):
    return pytest.mark.parametrize(("endpoint", "stream"), deliveries)


@every(DELIVERIES)
async def test_a_reset_before_the_headers_sends_nothing(endpoint, stream):
    _, bad = await both("reset_before_headers", endpoint, stream)
    assert (bad.status, bad.body, bad.ending) == (None, b"", "reset")


@every(DELIVERIES)
async def test_a_reset_in_the_middle_leaves_a_beginning(endpoint, stream):
    # RST may overtake what was sent: how much of the beginning is read is the kernel's affair
    good, bad = await both("reset_mid_stream", endpoint, stream)
    assert (bad.status, bad.ending) in {(200, "reset"), (None, "reset")}
    assert good.body.startswith(bad.body)
    assert len(bad.body) < len(good.body)


@every(DELIVERIES)
async def test_a_cut_chunk_ends_inside_the_chunk_that_http_announced(endpoint, stream):
    good, bad = await both("cut_chunk", endpoint, stream)
    assert (bad.status, bad.ending) == (200, "eof")
    assert good.body.startswith(bad.body + bad.rest)
    assert bad.rest


@every(DELIVERIES)
async def test_half_an_event_is_a_prefix_that_http_calls_whole(endpoint, stream):
    good, bad = await both("half_event", endpoint, stream)
    assert (bad.status, bad.ending) == (200, "whole")
    assert good.body.startswith(bad.body)
    assert not bad.body.endswith(b"\n\n")


@every(DELIVERIES)
async def test_half_a_character_is_no_utf8(endpoint, stream):
    good, bad = await both("half_utf8", endpoint, stream)
    with pytest.raises(UnicodeDecodeError, match="unexpected end of data"):
        bad.body.decode()
    assert good.body.startswith(bad.body[:-2])


@every(STREAMS)
async def test_a_fault_in_the_middle_comes_after_half_of_the_content_or_where_the_request_says(endpoint, stream):
    good, bad = await both("fin_mid_stream", endpoint, stream)
    _, early = await both("fin_mid_stream", endpoint, stream, after=3)
    _, never = await both("fin_mid_stream", endpoint, stream, after=10**6)
    total, half = content(good), content(bad)
    assert half == total // 2
    assert content(early) == 3
    # a cut is never beyond a finish reason, and the shorter of two choices has its own before the longer is done
    assert content(never) == total or (endpoint == "chat, two choices" and half < content(never) < total)
    assert b'"finish_reason":"' not in never.body
    assert b"response.completed" not in never.body


def content(raw):
    """Events that bring a token."""
    found = 0
    for payload in raw.payloads:
        one = orjson.loads(payload) if payload != b"[DONE]" else {}
        if str(one.get("type")).endswith(".delta"):
            found += 1
        for choice in one.get("choices", ()):
            delta = choice.get("delta", {})
            arguments = [call["function"]["arguments"] for call in delta.get("tool_calls", ())]
            said = delta.get("content") or delta.get("reasoning_content") or choice.get("text") or "".join(arguments)
            found += bool(said)
    return found


@every(STREAMS)
async def test_the_four_ways_to_end_a_stream_differ_only_in_their_last_events(endpoint, stream):
    good, no_finish = await both("no_finish", endpoint, stream)
    _, only_done = await both("done_without_finish", endpoint, stream)
    _, only_finish = await both("finish_without_done", endpoint, stream)
    done = b"data: [DONE]\n\n"
    assert only_done.body == no_finish.body + done
    kept = no_finish.body.split(b"\n\n")
    assert [event for event in good.body.split(b"\n\n") if event in kept] == kept
    assert good.body in (only_finish.body, only_finish.body + done)
    assert content(no_finish) == content(good)
    finishes = b"response.completed" if endpoint.startswith("responses") else b'"finish_reason":"'
    assert finishes in only_finish.body
    assert finishes not in no_finish.body


@every(DELIVERIES)
async def test_other_content_under_a_200(endpoint, stream):
    _, html = await both("html_200", endpoint, stream)
    _, error = await both("json_error_200", endpoint, stream)
    _, empty = await both("empty_200", endpoint, stream)
    assert (html.status, html.headers["content-type"]) == (200, "text/html")
    assert b"<html>" in html.body
    assert (error.status, error.headers["content-type"]) == (200, "application/json")
    assert orjson.loads(error.body)["error"]["type"] == "server_error"
    assert (empty.status, empty.body, empty.ending) == (200, b"", "whole")


@every(DELIVERIES)
async def test_the_right_body_in_the_wrong_wrapping(endpoint, stream):
    good, renamed = await both("wrong_content_type", endpoint, stream)
    _, packed = await both("gzip_200", endpoint, stream)
    assert renamed.headers["content-type"] == "application/octet-stream"
    assert renamed.body == good.body
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == good.body


@every(DELIVERIES)
async def test_a_bomb_is_small_on_the_wire_and_a_thousand_times_as_large_unpacked(endpoint, stream):
    _, bad = await both("gzip_bomb", endpoint, stream)
    assert bad.headers["content-encoding"] == "gzip"
    unpacked = zlib.decompressobj(31).decompress(bad.body)
    assert unpacked == b"data: " + b"a" * (2 << 20)
    assert len(unpacked) > 900 * len(bad.body)


@every(DELIVERIES)
async def test_harmless_deliveries_bring_the_same_bytes(endpoint, stream):
    good, split = await both("split_bytes", endpoint, stream)
    _, joined = await both("coalesced", endpoint, stream)
    assert split.body == joined.body == good.body


@every(DELIVERIES)
async def test_unknown_fields_are_all_that_is_new(endpoint, stream):
    good, odd = await both("unknown_fields", endpoint, stream)
    if not stream:
        assert orjson.loads(odd.body).pop("x_unheard_of")
        assert {**orjson.loads(odd.body), "x_unheard_of": 0} == {**orjson.loads(good.body), "x_unheard_of": 0}
        return
    for line in (b": a comment\n", b"retry: 1000\n", b"x-line: 1\n", b'"x_unheard_of":{"nested":[1,null,"\xc3\xa9"]},'):
        assert line in odd.body
        odd = odd._replace(body=odd.body.replace(line, b""))
    assert odd.body == good.body


@every(DELIVERIES)
async def test_one_line_is_as_long_as_asked_and_the_rest_of_the_answer_is_there(endpoint, stream):
    good, bad = await both("huge_line", endpoint, stream)
    assert bad.ending == "whole"
    longest = max(bad.body.split(b"\n"), key=len)
    assert len(longest) >= 3_000_000
    shrunk = bad.body.replace(b"a" * 3_000_000, b"", 1)
    assert shrunk.replace(b'"padding":"",', b"") == good.body if not stream else shrunk == good.body


async def test_sizes_that_a_request_names_are_exact():
    async with running_app(FAST) as url:
        for size in (1, 1 << 20, (1 << 20) + 1):
            raw = await post(url, "/chat/completions", rehearse("huge_line", chat(), False) | {
                "simulate": {"fault": "huge_line", "bytes": size},
            })  # fmt: skip
            assert orjson.loads(raw.body)["padding"] == "a" * size


@every(DELIVERIES)
async def test_empty_deltas_come_before_an_answer_that_is_true(endpoint, stream):
    good, bad = await both("empty_deltas", endpoint, stream)
    if not stream:
        assert bad.body == b" " * (500 // 64 * 64) + good.body
        return
    assert len(bad.payloads) == len(good.payloads) + 500
    assert len([p for p in bad.payloads if b'""' in p]) >= 500


def test_an_empty_delta_adds_nothing_to_the_expected_text():
    assert expected_text(rehearse("empty_deltas", chat())) == expected_text(chat())


@every(WHOLE)
async def test_a_bad_body_is_bad_as_a_whole_where_there_are_no_events(endpoint, stream):
    for name, begins in [("bad_json", b'{"id"'), ("bad_utf8", b'{"id":"\xff'), ("null_chunk", b"null"),
                         ("list_chunk", b"[1,2,3]")]:  # fmt: skip
        _, bad = await both(name, endpoint, stream)
        assert (bad.status, bad.ending, bad.headers["content-type"]) == (200, "whole", "application/json")
        assert bad.body.startswith(begins)
    _, bad = await both("nan_usage", endpoint, stream)
    assert b":NaN" in bad.body
    assert orjson.loads(bad.body.replace(b":NaN", b":0"))


@every(STREAMS)
@pytest.mark.parametrize("name", ["bad_json", "bad_utf8", "null_chunk", "list_chunk", "wrong_types"])
async def test_garbage_takes_the_place_of_one_event_and_the_stream_goes_on(endpoint, stream, name):
    good, bad = await both(name, endpoint, stream)
    before, after = good.body.split(b"\n\n"), bad.body.split(b"\n\n")
    different = [(one, other) for one, other in zip(before, after, strict=True) if one != other]
    assert len(different) == 1


@every(STREAMS)
async def test_counts_that_are_not_numbers_are_in_the_usage_alone(endpoint, stream):
    good, bad = await both("nan_usage", endpoint, stream)
    events = [event for event in bad.body.split(b"\n\n") if b"NaN" not in event]
    assert [event for event in good.body.split(b"\n\n") if event in events] == events
    assert bad.body.count(b":NaN") >= 2


@every(STREAMS)
@pytest.mark.parametrize(
    ("name", "code"),
    [
        *(("in_stream_error", "server_error"), ("in_stream_rate_limit", "rate_limit_exceeded")),
        *(("error_event", "server_error"), ("response_failed", "server_error")),
    ],
)
async def test_an_error_inside_a_stream_is_its_last_event(endpoint, stream, name, code):
    good, bad = await both(name, endpoint, stream)
    last = orjson.loads(bad.payloads[-1])
    assert (bad.status, bad.ending) == (200, "whole")
    assert good.payloads[: len(bad.payloads) - 1] == bad.payloads[:-1]
    if not endpoint.startswith("responses"):
        assert set(last) == {"error"}
        assert code in (last["error"]["code"], last["error"]["type"])
        return
    assert last["sequence_number"] == len(bad.payloads) - 1
    if name == "response_failed":
        assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
        assert last["response"]["error"]["code"] == code
    elif name == "error_event":
        assert (last["type"], last["code"]) == ("error", code)
    else:
        assert last["type"] == "error"
        assert code in (last["error"]["code"], last["error"]["type"])


@every(WHOLE)
async def test_an_error_inside_a_stream_is_a_status_where_there_is_none(endpoint, stream):
    for name, status in [("in_stream_error", 500), ("in_stream_rate_limit", 429), ("error_event", 500)]:
        _, bad = await both(name, endpoint, stream)
        assert bad.status == status
    _, failed = await both("response_failed", endpoint, stream)
    responses = endpoint.startswith("responses")
    assert failed.status == (200 if responses else 500)
    assert not responses or orjson.loads(failed.body)["status"] == "failed"


@every([delivery for delivery in DELIVERIES if delivery[0] != "embeddings"])
async def test_an_incomplete_answer_says_so_and_counts_what_it_brought(endpoint, stream):
    good, bad = await both("response_incomplete", endpoint, stream)
    if endpoint.startswith("responses"):
        final = orjson.loads(bad.payloads[-1])["response"] if stream else orjson.loads(bad.body)
        assert (final["status"], final["incomplete_details"]["reason"]) == ("incomplete", "max_output_tokens")
        whole = orjson.loads(good.payloads[-1])["response"] if stream else orjson.loads(good.body)
        assert final["usage"]["output_tokens"] == whole["usage"]["output_tokens"] // 2
    else:
        objects = [orjson.loads(p) for p in bad.payloads if p != b"[DONE]"] if stream else [orjson.loads(bad.body)]
        finishes = {choice["finish_reason"] for one in objects for choice in one["choices"]} - {None}
        assert finishes == {"length"}
