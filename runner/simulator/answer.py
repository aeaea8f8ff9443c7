"""A request → what the model says, before anybody renders it. Pure.

An answer is a function of the request's content, the seed and the profile's lengths alone: streamed or not, the first
time or the tenth, it is the same. A choice is a list of segments, and a segment a list of tokens; the maximum that
the request sets is spent over them in order.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import Final, NamedTuple, overload

import orjson

from runner.limits import SIMULATOR_TOKENS
from runner.simulator import schema, text
from runner.simulator.asked import Asked, Tool
from runner.simulator.profile import token_range
from runner.simulator.refusals import bad_request
from runner.simulator.rehearsal import digest

TEXT: Final = "text"
REFUSAL: Final = "refusal"
REASONING: Final = "reasoning"
CALL: Final = "call"


class Segment(NamedTuple):
    """A stretch of one kind."""

    kind: str
    tokens: Sequence[str]
    name: str = ""
    """Of the function, for a call."""

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.tokens)


class Padded(Sequence[str]):
    """Tokens with a filler before them, so often that a list of it would be too large."""

    def __init__(self, filler: str, count: int, tokens: Sequence[str]) -> None:
        self._filler = filler
        self._count = count
        self._tokens = tokens

    def __len__(self) -> int:
        return self._count + len(self._tokens)

    def __iter__(self) -> Iterator[str]:
        return chain(repeat(self._filler, self._count), self._tokens)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """As of a list."""
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        at = range(len(self))[index]
        return self._filler if at < self._count else self._tokens[at - self._count]


class Choice(NamedTuple):
    """One choice of an answer."""

    segments: list[Segment]
    finish: str
    """`stop`, `length`, `tool_calls` or `function_call`."""

    def of(self, kind: str) -> list[Segment]:
        """Its segments of a kind."""
        return [segment for segment in self.segments if segment.kind == kind]

    def text(self, kind: str = TEXT) -> str:
        """All that it says of a kind."""
        return "".join(segment.text for segment in self.of(kind))

    def text_tokens(self) -> Iterator[str]:
        """Its visible text, token by token: never as a list, for it may be endless."""
        return chain.from_iterable(segment.tokens for segment in self.of(TEXT))

    @property
    def tokens(self) -> int:
        """What it costs."""
        return sum(len(segment.tokens) for segment in self.segments)


@dataclass(frozen=True, slots=True)
class Answer:
    """Everything a renderer needs."""

    key: str
    """The request's identity, see `prompt_key`; ids are made of it."""
    asked: Asked
    choices: list[Choice]

    @property
    def created(self) -> int:
        """Unix time that the answer claims: fixed for a prompt, so that every delivery is the same."""
        return 1_750_000_000 + int(self.key[:6], 16)

    @property
    def tokens(self) -> int:
        """Output tokens over all choices."""
        return sum(choice.tokens for choice in self.choices)

    @property
    def reasoning_tokens(self) -> int:
        """The part of them that is reasoning."""
        return sum(len(segment.tokens) for choice in self.choices for segment in choice.of(REASONING))

    def id(self, prefix: str, *position: int) -> str:
        """An id, the same whenever the same thing is asked."""
        return f"{prefix}{digest(self.key, *position):032x}" if position else f"{prefix}{self.key}"

    def limited(self, tokens: int) -> Answer:
        """The same, cut off after so many tokens of each choice as if the maximum had been reached."""
        return replace(self, choices=[_limit(choice, tokens) for choice in self.choices])

    def padded(self, filler: str, count: int) -> Answer:
        """The same with `count` tokens of filler before the last segment of its first choice."""
        first = self.choices[0]
        *before, last = first.segments or [Segment(TEXT, [])]
        padded = first._replace(segments=[*before, last._replace(tokens=Padded(filler, count, last.tokens))])
        return replace(self, choices=[padded, *self.choices[1:]])


def compose(
    asked: Asked, key: str, seed: int, output_tokens: int | tuple[int, int], tokens: int | None = None
) -> Answer:
    """The answer to a request; `tokens` sets the length that it would have without a maximum.

    Raises:
        ApiError: 400: all choices together are longer than the simulator composes.
    """
    width = asked.n * max(1, len(asked.prompts))
    if width * (tokens or token_range(output_tokens)[1]) > SIMULATOR_TOKENS:
        raise bad_request(f"Too long: at most {SIMULATOR_TOKENS} tokens over all choices.", "n", "invalid_value")
    choices = []
    for index in range(width):
        salt = digest(key, seed, index)
        length = tokens or text.natural_length(salt, output_tokens, asked.empty_at(index // asked.n))
        choices.append(_choice(asked, seed, salt, length))
    return Answer(key, asked, choices)


def _choice(asked: Asked, seed: int, salt: int, length: int) -> Choice:
    segments = [] if asked.effort is None else [Segment(REASONING, _thoughts(asked, seed, salt))]
    calls = _calls(asked, random.Random(salt >> 1))
    if calls:
        finish = "function_call" if asked.legacy_functions else "tool_calls"
        return _limit(Choice(segments + calls, finish), asked.maximum)
    kind = REFUSAL if asked.refuse else TEXT
    spoken = Segment(kind, _spoken(asked, seed, salt, length))
    return _stop(_limit(Choice([*segments, spoken], "stop"), asked.maximum), asked.stop)


def _thoughts(asked: Asked, seed: int, salt: int) -> list[str]:
    return text.prose(seed, salt ^ 0x5EED, text.reasoning_length(asked.effort))


def _spoken(asked: Asked, seed: int, salt: int, length: int) -> list[str]:
    if asked.schema is None or asked.refuse:
        return text.prose(seed, salt, length)
    value = schema.example(asked.schema, random.Random(salt))
    return text.fragments(orjson.dumps(value).decode())


def _calls(asked: Asked, rng: random.Random) -> list[Segment]:
    """The functions that the model calls: none, one or two."""
    if not asked.tools or (not asked.must_call and rng.random() < 0.5):
        return []
    first = rng.randrange(len(asked.tools))
    chosen = asked.tools[first : first + 1]
    if asked.parallel and len(asked.tools) > 1:
        chosen.append(asked.tools[(first + 1) % len(asked.tools)])
    return [_call(tool, rng) for tool in chosen]


def _call(tool: Tool, rng: random.Random) -> Segment:
    arguments = orjson.dumps(schema.example(tool.parameters, rng)).decode()
    return Segment(CALL, text.fragments(arguments), tool.name)


def _limit(choice: Choice, maximum: int | None) -> Choice:
    if maximum is None or choice.tokens <= maximum:
        return choice
    left, kept = maximum, []
    for segment in choice.segments:
        if left <= 0:
            break
        kept.append(segment._replace(tokens=segment.tokens[:left]))
        left -= len(kept[-1].tokens)
    return Choice(kept, "length")


def _stop(choice: Choice, stops: Iterable[str]) -> Choice:
    """The choice cut before the first stop sequence in what it says; the API doesn't return the sequence."""
    last = choice.segments[-1] if choice.segments else None
    if last is None or last.kind == REASONING:
        return choice
    said = last.text
    at = min((said.find(stop) for stop in stops if stop in said), default=-1)
    if at < 0:
        return choice
    kept: list[str] = []
    for token in last.tokens:
        kept.append(token[:at])
        at -= len(token)
        if at <= 0:
            break
    tokens = [token for token in kept if token]
    return Choice([*choice.segments[:-1], last._replace(tokens=tokens)], "stop")
