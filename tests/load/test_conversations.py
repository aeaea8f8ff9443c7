from __future__ import annotations

import statistics

from runner.load.conversations import Conversation, Recorded, SyntheticTalk
from runner.load.draws import Constant, Exponential, Uniform
from runner.load.prompts import OutputLength
from runner.load.sharegpt import Dialogue
from runner.load.synthetic import Synthetic

DIALOGUE = Dialogue("d", "Be brief.", ("one?", "two?", "three?"), (5, None, 7))


def said(turn):
    return [message["content"] for message in turn.job.body["messages"]]


def run(conversation):
    turns, answer = [], None
    while (turn := conversation.next(answer)) is not None:
        turns.append(turn)
        answer = f"answer {len(turns)}"
    return turns


def test_every_turn_carries_all_that_was_said_before():
    turns = run(Conversation(DIALOGUE, 4))
    assert said(turns[0]) == ["Be brief.", "one?"]
    assert said(turns[1]) == ["Be brief.", "one?", "answer 1", "two?"]
    assert said(turns[2]) == ["Be brief.", "one?", "answer 1", "two?", "answer 2", "three?"]
    assert [m["role"] for m in turns[1].job.body["messages"]] == ["system", "user", "assistant", "user"]
    assert [turn.job.id for turn in turns] == ["d#4.0", "d#4.1", "d#4.2"]
    assert [turn.job.body.get("max_tokens") for turn in turns] == [5, None, 7]


def test_a_failed_answer_ends_the_conversation():
    conversation = Conversation(DIALOGUE, 0)
    assert conversation.next(None) is not None
    assert conversation.next("fine") is not None
    assert conversation.next(None) is None


def test_an_empty_answer_is_an_answer():
    conversation = Conversation(DIALOGUE, 0)
    conversation.next(None)
    assert conversation.next("") is not None


def test_a_turn_that_was_handed_out_does_not_change_later():
    conversation = Conversation(DIALOGUE, 0)
    first = conversation.next(None)
    assert first is not None
    before = said(first)
    conversation.next("x")
    assert said(first) == before


def test_the_user_thinks_before_every_turn_but_the_first():
    pauses = [run(Conversation(DIALOGUE, k, think=Exponential(3.0))) for k in range(2_000)]
    assert all(turns[0].think_s == 0 for turns in pauses)
    assert 2.8 < statistics.fmean(turn.think_s for turns in pauses for turn in turns[1:]) < 3.2


def test_recorded_conversations_come_in_order_and_again():
    other = Dialogue("e", None, ("hi",), (None,))
    source = Recorded([DIALOGUE, other], "f.json", think=Constant(2), output=OutputLength(exact=True))
    assert [source.conversation(k).turns for k in range(3)] == [3, 1, 3]
    first = source.conversation(2).next(None)
    assert first is not None
    assert first.job.id == "d#2.0"
    assert first.job.body["ignore_eos"] is True
    assert source.describe()["describe"] == "f.json: 2 conversations of 4 turns, 2 s to think"


def test_synthetic_turns_share_their_beginning_once_and_never_repeat_a_text():
    talk = SyntheticTalk(Synthetic(Constant(107), Constant(9), shared=0.5), Uniform(2, 4))
    made = [run(talk.conversation(k)) for k in range(20)]
    assert {len(turns) for turns in made} == {2, 3, 4}
    firsts = [said(turns[0])[0] for turns in made]
    assert len({first[: 53 * 4] for first in firsts}) == 1
    own = [text for turns in made for text in (said(turns[-1])[0][54 * 4 :], *said(turns[-1])[2::2])]
    assert len({text[:64] for text in own}) == len(own)
    assert made[0][0].job.body["max_tokens"] == 9
    assert [said(turn) for turn in run(talk.conversation(7))] == [said(turn) for turn in made[7]]


def test_ids_are_unique_over_all_conversations_and_turns():
    talk = SyntheticTalk(Synthetic(Constant(20), Constant(9)), Constant(3))
    ids = [turn.job.id for k in range(50) for turn in run(talk.conversation(k))]
    assert len(set(ids)) == 150
    assert "3 turns, 0 s to think" in talk.describe()["describe"]
