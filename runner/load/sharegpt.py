"""ShareGPT's form → prompts and conversations, from a file of any size. No file is opened here: text comes in blocks.

The form: a JSON array (or lines) of `{"id", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"},
…]}`. The first human turn is the prompt, the estimate of the first gpt turn's tokens is the length that is asked for.

Taken is what `vllm bench serve` takes by default, so that figures can be laid side by side: two turns at least, prompt
and answer of 4 tokens at least, a prompt of 1,024 at most, both of 2,048 at most (is_valid_sequence of its datasets).
There a tokenizer counts, here the estimate of this project: at the edges the choice differs.

One conversation at a time is in memory, and no more than MAX_ITEM_CHARS of text; ijson would do the same, for a
dependency more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from runner.errors import InputError
from runner.jobs import Job
from runner.limits import MIB
from runner.load.prompts import OutputLength, chat_job
from runner.tokens import heuristic

MIN_TOKENS: Final = 4
MAX_PROMPT_TOKENS: Final = 1_024
MAX_TOTAL_TOKENS: Final = 2_048
MAX_ITEM_CHARS: Final = 16 * MIB
"""The longest conversation of ShareGPT_V3 has about 1 MB."""
_HUMAN: Final = frozenset({"human", "user"})
_MODEL: Final = frozenset({"gpt", "assistant", "chatgpt", "bing", "bard"})
_BETWEEN: Final = re.compile(r"[\ufeff\s,\[\]]*")
_DECODER: Final = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One conversation: what the user says in each turn, and how long the model's answers were."""

    id: str
    system: str | None
    user: tuple[str, ...]
    answer_tokens: tuple[int | None, ...]
    """Of each turn; None: it has no answer in the file."""

    @property
    def usual(self) -> bool:
        """Whether vLLM's benchmark would take its first turn."""
        prompt, answer = heuristic(self.user[0]), self.answer_tokens[0] or 0
        return min(prompt, answer) >= MIN_TOKENS and prompt <= MAX_PROMPT_TOKENS and prompt + answer <= MAX_TOTAL_TOKENS


def dialogues(blocks: Iterable[str], name: str) -> Iterator[Dialogue]:
    """The conversations of a file in ShareGPT's form that have a human turn; `name` is the file's, for errors.

    Raises:
        InputError: it is no JSON, or one conversation is too long.
    """
    for number, item in enumerate(_items(blocks, name)):
        if (found := _dialogue(item, number)) is not None:
            yield found


def first_turn(dialogue: Dialogue, k: int, output: OutputLength) -> Job:
    """The job that asks for a conversation's first answer."""
    messages = [*system_message(dialogue), {"role": "user", "content": dialogue.user[0]}]
    return chat_job(dialogue.id, k, messages, output.keys(dialogue.answer_tokens[0]))


def system_message(dialogue: Dialogue) -> list[dict[str, str]]:
    """The system message, where there is one."""
    return [] if dialogue.system is None else [{"role": "system", "content": dialogue.system}]


# ── Reading ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _items(blocks: Iterable[str], name: str) -> Iterator[Any]:
    """The objects of an array, or those that stand one after another."""
    held, least = "", 0
    for block in blocks:
        held += block
        # Twice as much as at the last try, so that a long object isn't parsed again with every block.
        if len(held) < least:
            continue
        items, held = _whole(held, name)
        yield from items
        least = 2 * len(held)
        if len(held) > MAX_ITEM_CHARS:
            raise InputError(f"{name}: not JSON, or a conversation of more than {MAX_ITEM_CHARS} characters")
    items, held = _whole(held, name)
    yield from items
    if held:
        raise InputError(f"{name}: not JSON at {held[:60]!r}")


def _whole(text: str, name: str) -> tuple[list[Any], str]:
    """The objects that are there to their ends, and what is left."""
    items: list[Any] = []
    at = 0
    while True:
        between = _BETWEEN.match(text, at)
        at = between.end() if between else at
        if at < len(text) and text[at] != "{":
            raise InputError(f"{name}: not a list of conversations at {text[at : at + 60]!r}")
        try:
            item, at = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            return items, text[at:]
        items.append(item)


def _dialogue(item: dict[str, Any], number: int) -> Dialogue | None:
    turns = item.get("conversations", item.get("conversation"))
    if not isinstance(turns, list):
        return None
    system: str | None = None
    user: list[str] = []
    answers: list[int | None] = []
    for turn in turns:
        who, text = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if not isinstance(text, str):
            continue
        if not _is_text(text):
            return None
        if who in _HUMAN:
            user.append(text)
            answers.append(None)
        elif who in _MODEL and user and answers[-1] is None:
            answers[-1] = max(1, heuristic(text))
        elif who == "system" and not user:
            system = text
    given = item.get("id")
    name = given if isinstance(given, str) and 0 < len(given) <= 100 and _is_text(given) else number
    return Dialogue(f"sharegpt-{name}", system, tuple(user), tuple(answers)) if user else None


def _is_text(text: str) -> bool:
    """Whether it can be sent: half of a surrogate pair, which an escape in the file can make, can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
