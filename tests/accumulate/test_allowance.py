"""How much of an answer may come: what was asked for, what the others leave, and what all of it takes in memory."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.accumulate import for_stream
from runner.accumulate.abridged import abridged
from runner.accumulate.allowance import Allowance, Room, allowance_of, has_too_many_values
from runner.accumulate.held import Entries, Held, Text, plain, weigh
from runner.jobs import Api
from runner.limits import ANSWER_SLACK_BYTES, KIB, MAX_ANSWER_TOKENS, MIB, MIN_PARSED_BYTES, MIN_ROOM_BYTES
from tests.accumulate.accumulate_streams import TEXT, Json, chat_streams, response_streams, to_sse
from tests.scripted import chat_job


def allowed(body: Json | None = None, /, choices: int = 1, api: Api = Api.CHAT) -> Allowance:
    return allowance_of(chat_job(api=api, body=body or {}), choices)


# ── What was asked for ───────────────────────────────────────────────────────────────────────────────────────────


def test_the_longest_answer_of_the_api_fits_in_any_script() -> None:
    utf8_bytes_a_token = 10
    assert allowed().bound > MAX_ANSWER_TOKENS * utf8_bytes_a_token


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "max_output_tokens"])
def test_a_maximum_of_tokens_bounds_the_answer_and_every_choice_has_it(name: str) -> None:
    few, many = allowed({name: 10}), allowed({name: 1_000_000})
    assert ANSWER_SLACK_BYTES < few.bound < ANSWER_SLACK_BYTES + KIB
    assert 10 * MIB < many.bound < 20 * MIB
    assert many.share > 5_000_000, "what is asked for has room"
    assert allowed({name: 1_000_000}, choices=4).bound > 3.9 * (many.bound - ANSWER_SLACK_BYTES)


@pytest.mark.parametrize("wrong", [None, True, -1, "many", 1.5, []])
def test_a_maximum_that_is_none_counts_as_none(wrong: Any) -> None:
    assert allowed({"max_tokens": wrong}) == allowed()


@pytest.mark.parametrize(
    ("api", "body"),
    [
        (Api.CHAT, {"logprobs": True, "top_logprobs": 20}),
        (Api.COMPLETIONS, {"logprobs": 20}),
        (Api.RESPONSES, {"include": ["message.output_text.logprobs"], "top_logprobs": 20}),
    ],
)
def test_log_probabilities_have_room_where_they_were_asked_for(api: Api, body: dict[str, Any]) -> None:
    longest_entry = {"token": "ऀ" * 4, "logprob": -10.123456789, "bytes": [224] * 12}
    size = 21 * len(orjson.dumps(longest_entry))
    assert allowed({"max_tokens": 4_000, **body}, api=api).bound > 4_000 * size
    assert allowed({"max_tokens": 4_000}, api=api).bound < 2 * MIB


@pytest.mark.parametrize(
    "body", [{"modalities": ["text", "audio"]}, {"tools": [{"type": "image_generation"}]}, {"tools": [{"type": "mcp"}]}]
)
def test_media_have_room_where_they_were_asked_for(body: dict[str, Any]) -> None:
    assert allowed(body).bound > 60 * MIB
    assert allowed({"tools": [{"type": "function"}, "wrong"], "modalities": ["text"]}) == allowed()


def test_embeddings_have_room_for_every_input() -> None:
    def vectors(given: Any) -> int:
        return allowed({"input": given}, api=Api.EMBEDDINGS).bound - ANSWER_SLACK_BYTES

    assert vectors(["a"] * 8) == vectors([[1, 2]] * 8) == 8 * vectors("a") == 8 * vectors([1, 2, 3])


@given(
    st.dictionaries(
        st.sampled_from(["max_tokens", "logprobs", "top_logprobs", "include", "tools", "modalities", "input"]),
        st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.lists(st.one_of(st.none(), st.text()))),
    ),
    st.sampled_from(Api),
)
def test_whatever_a_line_says_it_has_an_allowance(body: dict[str, Any], api: Api) -> None:
    found = allowance_of(chat_job(api=api, body=body), 1)
    assert 0 < found.share <= found.bound


# ── What the others leave ────────────────────────────────────────────────────────────────────────────────────────


def test_a_share_is_free_whatever_others_hold() -> None:
    room = Room(MIN_ROOM_BYTES)
    greedy, modest = (room.open(10**9, 1 * MIB) for _ in range(2))
    assert greedy.refusal(2 * MIN_ROOM_BYTES) is not None
    assert modest.refusal(1 * MIB) is None
    assert modest.refusal(1 * MIB + 1) is not None


def test_endless_answers_hold_no_more_than_all_shares_together() -> None:
    room, allowance = Room(MIN_ROOM_BYTES), allowed()
    places = [room.open(*allowance) for _ in range(64)]
    most = 0
    for held in range(0, allowance.bound, 64 * KIB):
        for place in places[:]:
            if place.refusal(held) is not None:
                place.close()
                places.remove(place)
        most = max(most, room.held)
    assert most <= 64 * (allowance.share + 64 * KIB)


def test_a_long_answer_goes_on_where_others_are_short_and_ends_at_its_own_bound() -> None:
    room, allowance = Room(MIN_ROOM_BYTES), allowed()
    long, short = room.open(*allowance), room.open(*allowance)
    assert short.refusal(20 * KIB) is None
    assert long.refusal(allowance.bound) is None
    assert long.refusal(allowance.bound + 1) is not None


def test_what_has_ended_holds_nothing() -> None:
    room = Room(MIN_ROOM_BYTES)
    place = room.open(*allowed())
    place.refusal(5)
    assert room.held == 5
    place.close()
    assert (room.held, room.shares) == (0, 0)


# ── What it takes in memory ──────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(TEXT), st.integers(1, 80))
def test_a_text_is_what_was_added(parts: list[str], times: int) -> None:
    held = Held()
    text = Text(held)
    for part in parts * times:
        text.add(part)
    assert str(text) == "".join(parts * times) == str(text)
    assert held.bytes >= len("".join(parts * times).encode()) - 4 * 4_096
    text.drop()
    assert held.bytes == 0


@given(st.lists(st.one_of(st.integers(), st.text(), st.just("\ud83d"), st.lists(st.floats(allow_nan=False)))))
def test_entries_can_be_written_and_are_counted_off(values: list[Any]) -> None:
    held = Held()
    entries = Entries(held)
    for value in values * 20:
        entries.add(value)
    assert len(orjson.loads(entries.json())) == len(values) * 20
    entries.drop()
    assert held.bytes == 0


@pytest.mark.parametrize(
    ("api", "delta"),
    [
        (Api.CHAT, {"content": " again"}),
        (Api.CHAT, {"content": "नमस्ते"}),
        (Api.CHAT, {"reasoning_content": "x" * 300}),
        (Api.CHAT, {"tool_calls": [{"index": 0, "function": {"arguments": " again"}}]}),
        (Api.CHAT, {"x": [{"a": [1, 2, {}]}]}),
        (Api.CHAT, "key"),
        (Api.CHAT, "call"),
        (Api.RESPONSES, "text"),
        (Api.RESPONSES, "item"),
        (Api.RESPONSES, "annotation"),
    ],
    ids=str,
)
def test_what_is_counted_is_what_is_held(api: Api, delta: Any) -> None:
    accumulator = for_stream(api)
    datas = [chunk_of(delta, number) for number in range(3_000)]
    tracemalloc.start()
    try:
        for data in datas:
            accumulator.feed("", data)
        traced = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert traced <= accumulator.held * 1.25 + 10_000
    assert accumulator.held <= traced * 8 + 10_000


def chunk_of(delta: Any, number: int) -> bytes:
    where = {"output_index": 0, "content_index": 0, "item_id": "m"}
    made: dict[str, Callable[[], Json]] = {
        "key": lambda: {f"x{number}": {}},
        "call": lambda: {"tool_calls": [{"index": number % 1_000, "id": f"c{number % 1_000}", "function": {}}]},
        "text": lambda: {"type": "response.output_text.delta", "delta": " again", "logprobs": [], **where},
        "annotation": lambda: {"type": "response.output_text.annotation.added", "annotation": {"a": number}, **where},
        "item": lambda: {
            "type": "response.output_item.done",
            "output_index": number,
            "item": {"type": "message", "content": [{"type": "output_text", "text": "x" * 50}]},
        },
    }
    value: Json = made[delta]() if isinstance(delta, str) else delta
    return orjson.dumps(value if "type" in value else {"choices": [{"index": 0, "delta": value}]})


@pytest.mark.parametrize("api", [Api.CHAT, Api.COMPLETIONS])
def test_what_repeats_or_replaces_adds_nothing(api: Api) -> None:
    accumulator = for_stream(api)
    empty = {"delta": {"content": "", "x": None, "y": {"z": None}, "role": "assistant"}, "text": "", "index": 0}
    filtered = {"content_filter_results": {"hate": {"filtered": False, "severity": "safe"}}}
    held = []
    for number in range(2_000):
        usage = {"prompt_tokens": 1, "completion_tokens": number, "total_tokens": number + 1}
        accumulator.feed("", orjson.dumps({"id": "c", "choices": [empty | filtered], "usage": usage}))
        held.append(accumulator.held)
    assert held[-1] <= held[2] + 64


@given(response_streams())
def test_events_that_repeat_the_answer_do_not_count_it_twice(stream: Any) -> None:
    accumulator = for_stream(Api.RESPONSES)
    for event in stream.chunks[:-1]:
        accumulator.feed("", orjson.dumps(event))
    once = accumulator.held
    for event in stream.chunks[:-1]:
        if event["type"].endswith("output_item.done"):
            accumulator.feed("", orjson.dumps({**event, "sequence_number": None}))
    assert accumulator.held == once


@given(st.one_of(chat_streams(), response_streams()), st.integers(0, 500))
def test_an_abridged_body_is_plain_and_short(stream: Any, limit: int) -> None:
    short = abridged(stream.body, limit)
    assert plain(short) == short
    assert sum(len(text) for text in strings_of(short)) <= limit
    assert to_sse([short])


def strings_of(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [*value, *(text for item in value.values() for text in strings_of(item))]
    return [text for item in value for text in strings_of(item)] if isinstance(value, list) else []


def test_the_beginning_of_a_text_survives() -> None:
    assert abridged({"a": ["x" * 100, "y"], "b": 1}, 50) == {"a": ["x" * 47]}


def test_a_value_weighs_what_it_takes() -> None:
    value = [{"a": "x" * 10_000, "b": [[], {}, 1.5, None]}]
    assert sys.getsizeof("x" * 10_000) < weigh(value) < 11_000


@pytest.mark.parametrize("text", ["x" * 10_000, "é" * 10_000, "語" * 10_000, "😀" * 10_000], ids=lambda text: text[0])
def test_no_text_and_no_key_weighs_less_than_it_takes(text: str) -> None:
    assert weigh(text) >= 0.9 * sys.getsizeof(text)
    assert weigh([{text: None}]) >= 0.9 * sys.getsizeof(text)


def test_a_number_of_thousands_of_digits_weighs_what_it_takes() -> None:
    assert weigh(10**4_000) >= 0.9 * sys.getsizeof(10**4_000)


# ── Values ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "data", [b"[" + b"[]," * 400_000 + b"[]]", b"{" + b'"a":{},' * 400_000 + b"}", b"[" + b'"",' * 400_000 + b"0]"]
)
def test_very_many_values_are_seen_before_they_are_parsed(data: bytes) -> None:
    assert has_too_many_values(data, 1)
    assert not has_too_many_values(data, 100 * MIN_PARSED_BYTES), "they may have been asked for"


@pytest.mark.parametrize("text", [b"1,2,", b'\\",', b"\\\\,", b"[{},"])
def test_commas_in_a_long_text_are_no_values(text: bytes) -> None:
    assert not has_too_many_values(b'{"delta":"' + text * 500_000 + b'"}', 1)


@pytest.mark.parametrize("junk", [b'"', b'\\"', b'"\\', b'"x\\"', b"\\"])
def test_what_is_no_json_is_looked_at_once(junk: bytes) -> None:
    """A search that begins again at every quote would take minutes here."""
    has_too_many_values(junk * 300_000 + b"," * 300_000 + b'"' + junk * 300_000, 1)
