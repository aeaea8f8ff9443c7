"""Chunks that are read by what they have in common say what they would have said if they had been parsed."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runner.accumulate import MalformedChunk, StreamError, for_stream
from runner.accumulate.repeated import Repeated
from runner.deltas import Texts
from runner.jobs import Api
from runner.sse import FRAME, Decoder

WRITERS = (
    orjson.dumps,
    lambda chunk: json.dumps(chunk).encode(),
    lambda chunk: json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"),
    lambda chunk: json.dumps(chunk).replace('"delta": {"content"', '"delta": {"\\u0063ontent"').encode(),
)
TEXTS = st.text(max_size=6) | st.sampled_from(
    ["", "x", "x", " a", '"', "\\", '","content":"', "}", "é", "😀", "\u2028", "\x00"]
)
ODD = st.sampled_from(
    [
        {"content": "x", "role": "assistant"},
        {"content": "x", "refusal": None, "tool_calls": None},
        {"content": "x", "reasoning_content": "hm"},
        {"content": "x", "reasoning_content": ""},
        {"content": "x", "nested": {"content": "x"}},
        {"content": None},
        {"refusal": "no"},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
        {},
    ]
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "index": st.sampled_from([0, 0, 0, 1, None]),
        "finish_reason": st.sampled_from([None, "", "stop"]),
        "logprobs": st.sampled_from([None, None, {"content": [{"token": "x"}]}, {"tokens": ["x"]}]),
        "content_filter_results": st.sampled_from([{}, {"hate": {"filtered": False}}]),
        "stop_reason": st.none(),
    },
)
TOPS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["c", "d"]),
        "created": st.sampled_from([1, 2]),
        "content": st.just("x"),
        "usage": st.sampled_from([None, {"prompt_tokens": 1, "completion_tokens": 2}]),
        "obfuscation": st.text(alphabet="ab", max_size=3),
        "error": st.none(),
    },
)


@st.composite
def streams(draw):
    """Mostly one template with other texts, now and then something else."""
    write, top, entry = draw(st.sampled_from(WRITERS)), draw(TOPS), draw(ENTRIES)
    common = draw(st.sampled_from([{}, {}, {}]) | ODD)
    blocks = []
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["text"] * 6 + ["odd", "top", "entry", "cut", "done"]))
        if kind == "top":
            top = draw(TOPS)
        elif kind == "entry":
            entry = draw(ENTRIES)
        delta = draw(ODD) if kind == "odd" else {**common, "content": draw(TEXTS)}
        block = write({**top, "choices": [{**entry, "delta": delta}]})
        if kind == "cut":
            at = draw(st.integers(0, len(block)))
            block = block[:at] + draw(st.sampled_from([b"", b'"', b",", b"\\ud83d", b"\xff", b" "])) + block[at:]
        blocks.append(b"[DONE]" if kind == "done" else block)
    return blocks


def take(answer, block, *, looks=True):
    """Takes an event as a stream is taken: what repeats is not fed."""
    template = answer.repeated if looks else None
    if template is None or (found := template.texts_of([b"data: %b\n\n" % block], FRAME)) is None:
        return answer.feed("", block)
    written, texts = found
    answer.take_text("".join(texts))
    return Texts([0], written, texts, template.before, template.behind).deltas


def fed(blocks, *, looks, api=Api.CHAT):
    answer: Any = for_stream(api)
    if not looks:
        answer._tries = 0
    said: list[Any] = []
    for block in blocks:
        try:
            said.append([tuple(delta) for delta in take(answer, block, looks=looks)])
        except (MalformedChunk, StreamError) as error:
            said.append(repr(error))
            break
    return orjson.dumps([[str(deltas)] for deltas in said]), orjson.dumps(answer.body()), answer.usage, answer.complete


@given(streams())
def test_it_says_what_parsing_every_chunk_says(blocks):
    assert fed(blocks, looks=True) == fed(blocks, looks=False)


@given(streams())
def test_a_legacy_completion_says_so_too(blocks):
    blocks = [block.replace(b'"delta"', b'"rest"').replace(b'"choices": [{', b'"choices":[{') for block in blocks]
    blocks = [block.replace(b'"choices":[{', b'"choices":[{"text":"ab",') for block in blocks]
    assert fed(blocks, looks=True, api=Api.COMPLETIONS) == fed(blocks, looks=False, api=Api.COMPLETIONS)


@pytest.mark.parametrize("write", WRITERS[:3])
def test_a_plain_stream_is_not_parsed_again(write, monkeypatch):
    answer: Any = for_stream(Api.CHAT)
    fed = []
    feed = answer.feed

    def counted(self, name, data):
        fed.append(data)
        return feed(name, data)

    monkeypatch.setattr(type(answer), "feed", counted)
    for number in range(100):
        choice = {"index": 0, "delta": {"content": f" wörd {number}"}, "finish_reason": None}
        take(answer, write({"id": "c", "choices": [choice]}))
    assert len(fed) == 2, "the first text, and the one that shows what is common"
    assert answer.body()["choices"][0]["message"]["content"] == "".join(f" wörd {number}" for number in range(100))


def test_the_text_is_that_which_is_read_and_none_that_looks_like_it():
    answer = for_stream(Api.CHAT)
    chunk = b'{"content":"x","choices":[{"delta":{"\\u0063ontent":"x"}}]}'
    texts = [delta.text for data in [chunk] * 3 + [chunk.replace(b':"x",', b':"y",')] for delta in take(answer, data)]
    assert texts == ["x"] * 4


@pytest.mark.parametrize(
    ("event", "garbage"),
    [
        (b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', b'data: {"choices":[{"delta":{"content":"b"\r}}]}\n\n'),
        (b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', b'data: {"choices":[{"delta":{"content":\r"b"}}]}\n\n'),
        (b'data: {"id":1,\ndata: "choices":[{"delta":{"content":"a"}}]}\n\n', None),
    ],
    ids=["a line that ends behind the text", "…before it", "events of two lines, then of two fields"],
)
def test_what_is_no_such_event_is_not_taken_for_one(event, garbage):
    decoder, answer = Decoder(), for_stream(Api.CHAT)
    garbage = garbage or event.replace(b"\ndata: ", b"\n")
    for _ in range(3):
        for name, data in decoder.feed(event):
            answer.feed(name, data)
    assert answer.repeated is None or answer.repeated.texts_of([garbage], FRAME) is None
    ((name, data),) = decoder.feed(garbage)
    with pytest.raises(MalformedChunk):
        answer.feed(name, data)


def test_the_text_that_is_tried_in_its_place_is_another_one():
    """Of two texts under one name the last one counts."""
    answer = for_stream(Api.CHAT)
    chunk = b'{"choices":[{"delta":{"content":"\\u0000","content" :"\\u0000"}}]}'
    for data in [chunk] * 3 + [chunk.replace(b':"\\u0000",', b':"x",')]:
        take(answer, data)
    assert answer.body()["choices"][0]["message"]["content"] == "\x00" * 4


def test_a_stream_without_a_template_is_soon_left_alone(monkeypatch):
    looked = []
    monkeypatch.setattr("runner.accumulate.choices.repeated_of", lambda *args: looked.append(args))
    answer = for_stream(Api.CHAT)
    for number in range(100):
        take(answer, orjson.dumps({"id": f"c{number}", "choices": [{"delta": {"content": "x"}}]}))
    assert len(looked) == 8


PIECES = st.lists(
    st.sampled_from(['"a"', '"b,"', "a", '"', ",", "\n", "[", "]", "{}", "1", "null", '""', "\\"]), max_size=4
)


@given(st.lists(PIECES.map("".join).map(str.encode), min_size=1, max_size=5))
@example([b'"a","', b'"'])
def test_a_run_of_events_says_what_each_says_for_itself_or_nothing(written):
    """Whatever a server writes where the texts should be: halves of strings, joints of ours, nothing at all."""
    template: Any = Repeated(b'{"choices":[{"delta":{"content":', b"}}]}", {"content": "x"}, "content")
    events = [b'data: {"choices":[{"delta":{"content":%b}}]}\n\n' % piece for piece in written]
    alone = [template.texts_of([event], FRAME) for event in events]
    together = template.texts_of(events, FRAME)
    if None in alone:
        assert together is None
    else:
        assert together == ([piece for pieces, _ in alone for piece in pieces], [t for _, ts in alone for t in ts])


@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=5), st.data())
def test_only_blocks_that_are_one_event_each_are_read_so(texts, data):
    """However the same bytes are cut: a text has the time of the block in which its event ends."""
    template: Any = Repeated(b'{"choices":[{"delta":{"content":', b"}}]}", {"content": "x"}, "content")
    events = [b'data: {"choices":[{"delta":{"content":%b}}]}\n\n' % orjson.dumps(text) for text in texts]
    whole = b"".join(events)
    places = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=5)))
    blocks = [whole[start:end] for start, end in zip([0, *places], [*places, len(whole)], strict=True)]
    assert template.texts_of(events, FRAME) == ([orjson.dumps(text) for text in texts], texts)
    assert (template.texts_of(blocks, FRAME) is None) == (blocks != events)


def test_a_run_of_many_blocks_is_not_written_anew_at_the_length_of_a_long_template():
    template: Any = Repeated(b'{"pad":"%b","choices":[{"delta":{"content":' % (b"x" * 50_000), b"}}]}", {"c": ""}, "c")
    tracemalloc.start()
    try:
        assert template.texts_of([b"\n\n"] * 5_000, FRAME) is None
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
