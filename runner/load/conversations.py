"""Conversations of several turns: the next turn is sent when the answer came and the user has thought. No clock.

What drives one calls `next(None)` for its first turn, and then `next(answer)` with the text of every answer: each turn
carries all that was said before, the model's own words included, as a chat client does (and a prefix cache likes).
`next(None)` after the first turn says that the answer failed; the conversation is then over, since no user would go
on from nothing. A turn is sent `think_s` after the answer's end; the first one has none.

Conversation k has the turns `<id>#<k>.0`, `<id>#<k>.1`, …

Accepted: the answers are the server's own and differ from run to run, hence so do the prompts of later turns; with
an exact `OutputLength` their lengths are the same at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple, Protocol

from runner.jobs import Job
from runner.load.draws import Constant, Draw, uniforms
from runner.load.prompts import CAPPED, OutputLength, chat_job
from runner.load.sharegpt import Dialogue, system_message
from runner.load.synthetic import Synthetic

MAX_TURNS: Final = 1_000
"""Of one synthetic conversation."""
_AT_ONCE: Final = Constant(0)


class Turn(NamedTuple):
    """What to send next."""

    job: Job
    think_s: float  # to wait before it is sent, from the end of the answer before


class Conversation:
    """One conversation on its way."""

    def __init__(
        self,
        dialogue: Dialogue,
        k: int,
        *,
        think: Draw = _AT_ONCE,
        seed: int = 0,
        output: OutputLength = CAPPED,
    ) -> None:
        self._dialogue = dialogue
        self._k = k
        self._think = think
        self._seed = seed
        self._output = output
        self._messages = system_message(dialogue)
        self._turn = 0

    def next(self, answer: str | None) -> Turn | None:
        """The next turn after this answer; None: the conversation is over."""
        turn = self._turn
        if turn:
            if answer is None or turn >= len(self._dialogue.user):
                return None
            self._messages = [*self._messages, {"role": "assistant", "content": answer}]
        self._messages = [*self._messages, {"role": "user", "content": self._dialogue.user[turn]}]
        self._turn += 1
        return Turn(self._job(turn), self._pause_s(turn))

    @property
    def turns(self) -> int:
        """How many it has if nothing fails."""
        return len(self._dialogue.user)

    def _job(self, turn: int) -> Job:
        name = f"{self._dialogue.id}#{self._k}.{turn}"
        return chat_job(name, self._k, self._messages, self._output.keys(self._dialogue.answer_tokens[turn]))

    def _pause_s(self, turn: int) -> float:
        return self._think.at(uniforms(1, "think", self._seed, self._k, turn)[0], turn) if turn else 0.0


class Conversations(Protocol):
    """Where conversations come from."""

    def conversation(self, k: int) -> Conversation:
        """Conversation k."""

    def describe(self) -> dict[str, Any]:
        """`workload` of load.json."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """Conversations of a file, in order and again from the start."""

    dialogues: Sequence[Dialogue]
    name: str
    think: Draw = _AT_ONCE
    seed: int = 0
    output: OutputLength = CAPPED

    def conversation(self, k: int) -> Conversation:
        """Conversation k."""
        dialogue = self.dialogues[k % len(self.dialogues)]
        return Conversation(dialogue, k, think=self.think, seed=self.seed, output=self.output)

    def describe(self) -> dict[str, Any]:
        """`workload` of load.json."""
        turns = sum(len(dialogue.user) for dialogue in self.dialogues)
        text = f"{self.name}: {len(self.dialogues)} conversations of {turns} turns, {_pauses(self.think)}"
        return {"source": "sharegpt", "describe": text, "conversations": len(self.dialogues), "turns": turns}


@dataclass(frozen=True, slots=True)
class SyntheticTalk:
    """Conversations of synthetic turns: each turn of the user is as long as `supply` makes a prompt."""

    supply: Synthetic
    turns: Draw
    think: Draw = _AT_ONCE

    def conversation(self, k: int) -> Conversation:
        """Conversation k."""
        supply, seed = self.supply, self.supply.seed
        n = min(MAX_TURNS, max(1, round(self.turns.at(uniforms(1, "turns", seed, k)[0], k))))
        # What all share is at the beginning of the conversation, not of every turn.
        later = replace(supply, shared=0.0)
        numbers = range(k * MAX_TURNS, k * MAX_TURNS + n)
        lengths = [supply.lengths(number) for number in numbers]
        texts = [
            (supply if number == numbers[0] else later).text(number, asked)
            for number, (asked, _) in zip(numbers, lengths, strict=True)
        ]
        dialogue = Dialogue("synthetic", None, tuple(texts), tuple(answer for _, answer in lengths))
        return Conversation(dialogue, k, think=self.think, seed=seed, output=supply.output)

    def describe(self) -> dict[str, Any]:
        """`workload` of load.json."""
        said = self.supply.describe()
        text = f"{said['describe']}, conversations of {self.turns.describe()} turns, {_pauses(self.think)}"
        return {**said, "describe": text, "turns": self.turns.describe(), "think": self.think.describe()}


def _pauses(think: Draw) -> str:
    return f"{think.describe()} s to think"
