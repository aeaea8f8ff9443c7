"""What the simulator says: fixed by content and seed, and never by the delivery."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.simulator import Profile, expected_text, prompt_key, running_app
from runner.simulator.answer import Padded
from runner.simulator.schema import example
from runner.simulator.sse import Cut, Event, Kind
from runner.simulator.text import fragments, prose
from tests.simulator.simulator_client import FAST, chat, post


async def text_of(url, body):
    raw = await post(url, "/chat/completions", body)
    if not body.get("stream"):
        return json.loads(raw.body)["choices"][0]["message"]["content"]
    chunks = [json.loads(payload) for payload in raw.payloads[:-1]]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


async def test_the_expected_text_is_what_comes_streamed_or_not():
    profile = Profile(ttft_s=0, tokens_per_s=float("inf"), seed=7, output_tokens=(5, 90))
    async with running_app(profile) as url:
        for number in range(20):
            body = chat(f"prompt {number}", max_tokens=60)
            expected = expected_text(body, seed=7, output_tokens=(5, 90))
            assert expected
            assert await text_of(url, body) == expected
            assert await text_of(url, body | {"stream": True, "stream_options": {"include_usage": True}}) == expected


async def test_responses_and_rehearsals_give_the_expected_text_too():
    async with running_app(FAST) as url:
        raw = await post(url, "/responses", body := {"model": "m", "input": "x", "max_output_tokens": 9})
        assert json.loads(raw.body)["output"][0]["content"][0]["text"] == expected_text(body)
        body = chat("x", simulate={"tokens": 100})
        assert await text_of(url, body) == expected_text(body)
        assert len(prose(0, 1, 100)) == 100


def test_every_prompt_every_seed_and_every_choice_has_a_text_of_its_own():
    texts = {
        expected_text(chat(f"prompt {i}", n=3), seed, choice)
        for i in range(300)
        for seed in (0, 1)
        for choice in range(3)
    }
    assert len(texts) == 1_800


def test_some_texts_hold_more_than_ascii():
    texts = [expected_text(chat(f"prompt {i}")) for i in range(50)]
    assert sum(not text.isascii() for text in texts) > 10
    assert any(character > "\uffff" for text in texts for character in text)


def test_an_answer_is_as_long_as_the_profile_says():
    lengths = {len(prose(0, seed, 40)) for seed in range(50)}
    assert lengths == {40}
    words = [len(expected_text(chat(str(i)), output_tokens=(100, 120)).split()) for i in range(50)]
    assert min(words) > 70
    assert max(words) <= 120


@given(st.permutations(["model", "messages", "temperature", "stream", "simulate", "stream_options"]))
def test_the_key_knows_content_and_not_delivery_nor_order(names):
    full = chat("x", temperature=1, stream=True, simulate={"fault": "endless"}, stream_options={"include_usage": True})
    assert prompt_key({name: full[name] for name in names}) == prompt_key(chat("x", temperature=1))
    assert prompt_key(full) != prompt_key(chat("y", temperature=1))
    assert prompt_key(full) == prompt_key(full | {"model": "m#http_500"})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.dictionaries(
        st.sampled_from(["type", "properties", "items", "enum", "anyOf", "$ref", "minimum", "minItems"]), json_values
    )
)
def test_no_schema_however_strange_stops_an_answer(schema):
    json.dumps(example(schema, random.Random(0)))


def test_a_recursive_schema_comes_to_an_end():
    node = {"type": "object", "properties": {"next": {"$ref": "#"}}}
    assert json.dumps(example(node, random.Random(0))).count("next") < 10


@given(st.text(min_size=0, max_size=200))
def test_fragments_join_to_the_whole_and_are_several(text):
    parts = fragments(text)
    assert "".join(parts) == text
    assert len(parts) >= min(2, len(text))


def test_padded_tokens_behave_as_the_list_would():
    padded, plain = Padded("x", 3, ["a", "b"]), ["x", "x", "x", "a", "b"]
    assert list(padded) == plain
    assert len(padded) == 5
    assert padded[1:4] == plain[1:4]
    assert (padded[-1], padded[0]) == ("b", "x")


def events(kinds):
    return iter([Event(Kind[kind], kind.encode()) for kind in kinds.split()])


@pytest.mark.parametrize(
    ("after", "sent", "victim"),
    [(0, "OPEN", "CONTENT"), (1, "OPEN CONTENT OPEN", "CONTENT"), (9, "OPEN CONTENT OPEN CONTENT", "FINISH")],
)
def test_a_cut_stops_before_the_next_content_and_never_sends_a_finish(after, sent, victim):
    cut = Cut(events("OPEN CONTENT OPEN CONTENT FINISH DONE"), after)
    assert " ".join(event.kind.name for event in cut) == sent
    assert cut.victim is not None
    assert cut.victim.kind.name == victim
