from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import InputError
from runner.load import sharegpt
from runner.load.prompts import CAPPED
from runner.load.reading import read_dialogues, read_sharegpt
from runner.load.sharegpt import dialogues, first_turn
from runner.tokens import heuristic


def item(*turns, **keys):
    return {"id": "x", "conversations": [{"from": who, "value": text} for who, text in turns], **keys}


ITEMS = [
    item(("human", "Tell me of the sea."), ("gpt", "It is wide, and it is deep."), ("human", "More!"), id="a_0"),
    item(("gpt", "Hello."), ("system", "Be kind."), ("human", '日本語 [x] {y} "q" \\'), ("gpt", "é" * 30), id="b"),
    {"id": "none", "conversations": []},
    {"items": 3},
    {"conversations": ["x", {"from": "human"}, {"from": "human", "value": 3}]},
    item(("human", "No answer."), id=None),
]
FORMS = [
    json.dumps(ITEMS),
    json.dumps(ITEMS, indent=2, ensure_ascii=False),
    "\ufeff" + "\r\n".join(json.dumps(i) for i in ITEMS),
]


def parse(*blocks):
    return list(dialogues(blocks, "f.json"))


@pytest.mark.parametrize("text", FORMS)
def test_arrays_and_lines_give_the_same_conversations(text):
    found = parse(text)
    assert [d.id for d in found] == ["sharegpt-a_0", "sharegpt-b", "sharegpt-5"]
    assert found[0].user == ("Tell me of the sea.", "More!")
    assert found[0].answer_tokens == (heuristic("It is wide, and it is deep."), None)
    assert found[1].system == "Be kind."
    assert found[1].answer_tokens == (20,)
    assert found[2].answer_tokens == (None,)


@given(st.sampled_from(FORMS), st.lists(st.integers(0, 900), max_size=8))
def test_any_cutting_of_the_file_gives_the_same(text, cuts):
    edges = [0, *sorted(cuts), len(text)]
    assert parse(*(text[a:b] for a, b in pairwise(edges))) == parse(text)


def test_character_by_character_too():
    assert parse(*FORMS[1]) == parse(FORMS[1])


@pytest.mark.parametrize(
    "text",
    ["{", '[{"a": 1}', '[{"a": 1}, 3]', "hello", "[1, 2]", '"x"', '[{"a": }]', "{" * 50, '{"a":' * 100_000, "null"],
)
def test_what_is_no_json_of_conversations_is_refused(text):
    if text == '[{"a": 1}':
        assert parse(text) == []  # the bracket's end alone is missing
        return
    with pytest.raises(InputError, match=r"f\.json"):
        parse(text)


def test_a_conversation_without_end_is_refused_before_it_fills_the_memory(monkeypatch):
    monkeypatch.setattr(sharegpt, "MAX_ITEM_CHARS", 1_000)
    asked = 0

    def blocks():
        nonlocal asked
        yield '[{"conversations": "'
        while asked < 500:
            asked += 1
            yield "x" * 100

    with pytest.raises(InputError, match="more than 1000 characters"):
        list(dialogues(blocks(), "f.json"))
    assert asked <= 21


def test_a_long_conversation_is_not_parsed_again_with_every_block(monkeypatch):
    calls = 0
    decode = sharegpt._whole

    def counted(*args):
        nonlocal calls
        calls += 1
        return decode(*args)

    monkeypatch.setattr(sharegpt, "_whole", counted)
    text = json.dumps([item(("human", "x" * 100_000))])
    assert len(parse(*(text[i : i + 100] for i in range(0, len(text), 100)))) == 1
    assert calls < 20


def test_half_a_surrogate_pair_can_not_be_sent_and_is_left_out():
    assert parse('[{"id": "a", "conversations": [{"from": "human", "value": "\\ud83d"}]}]') == []


@pytest.mark.parametrize(
    ("prompt", "answer", "usual"),
    [(4, 4, True), (3, 4, False), (4, 3, False), (1024, 1024, True), (1025, 4, False), (1024, 1025, False)],
)
def test_the_first_turns_that_vllm_takes_are_taken(prompt, answer, usual):
    [found] = parse(json.dumps([item(("human", "x" * 4 * prompt), ("gpt", "y" * 4 * answer))]))
    assert found.usual is usual


def test_the_first_turn_asks_for_as_much_as_the_model_had_said():
    job = first_turn(parse(FORMS[0])[1], 1, CAPPED)
    assert job.body == {
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": '日本語 [x] {y} "q" \\'},
        ],
        "max_tokens": 20,
    }
    assert job.id == "sharegpt-b"


def test_a_file_becomes_a_supply(tmp_path):
    path = tmp_path / "share.json"
    path.write_text(FORMS[0])
    supply = read_sharegpt(str(path), CAPPED)
    assert supply.job(3).id == "sharegpt-b#3"
    assert supply.describe()["source"] == "sharegpt"
    assert len(supply.pool.jobs) == 2
    assert len(read_dialogues(str(path))) == 3


@pytest.mark.parametrize("text", ["[]", '[{"conversations": [{"from": "human", "value": "x"}]}]'])
def test_a_file_without_a_usual_turn_is_refused(tmp_path, text):
    path = tmp_path / "share.json"
    path.write_text(text)
    with pytest.raises(InputError, match="no conversation"):
        read_sharegpt(str(path), CAPPED)
