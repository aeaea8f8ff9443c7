"""One request, understood: what it will be answered, and how that is rendered for its endpoint. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final, NamedTuple

import orjson

from runner.simulator import asked as bodies
from runner.simulator import chat, completions, embeddings, responses, sse
from runner.simulator.answer import TEXT, Answer, compose
from runner.simulator.asked import Asked
from runner.simulator.profile import DEFAULT_MODEL, DEFAULT_OUTPUT_TOKENS, Profile, mean_tokens
from runner.simulator.rehearsal import Rehearsal, prompt_key, read
from runner.simulator.sse import Event, Kind


class _Api(NamedTuple):
    parse: Callable[..., Asked]
    body: Callable[[Answer], dict[str, Any]]
    events: Callable[[Answer], Iterator[Event]]


_APIS: Final = {
    bodies.CHAT: _Api(bodies.chat, chat.body, chat.events),
    bodies.RESPONSES: _Api(bodies.responses, responses.body, responses.events),
    bodies.COMPLETIONS: _Api(bodies.completions, completions.body, completions.events),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What one request will be answered."""

    api: str
    """The endpoint, as the path below the base URL."""
    answer: Answer
    rehearsal: Rehearsal
    seed: int
    skipped: int = 0
    """Events at the beginning of the stream that are left out: the client has them."""
    shown: dict[str, Any] | None = None
    """In place of the body: what there is of a background response."""

    @property
    def background(self) -> bool:
        """Whether it is generated without its connection."""
        return self.api == bodies.RESPONSES and self.answer.asked.body.get("background") is True

    @property
    def stream(self) -> bool:
        """Whether it is delivered as events."""
        return self.answer.asked.stream

    @property
    def tokens(self) -> int:
        """Output tokens."""
        return self.answer.tokens

    @property
    def width(self) -> int:
        """Choices that are generated side by side."""
        return max(1, len(self.answer.choices))

    def body(self) -> dict[str, Any]:
        """The answer of the non-streaming API."""
        if self.shown is not None:
            return self.shown
        if self.api == bodies.EMBEDDINGS:
            return embeddings.body(self.answer.asked, self.seed)
        return _APIS[self.api].body(self.answer)

    def events(self) -> Iterator[Event]:
        """The answer in the order in which it is sent: events of a stream, or parts of a body."""
        if self.stream:
            return islice(_APIS[self.api].events(self.answer), self.skipped, None)
        return sse.pieces(orjson.dumps(self.body()))

    def after(self) -> int:
        """Content events that are sent before a fault in the middle: half of them, unless the request says."""
        if self.rehearsal.after is not None:
            return self.rehearsal.after
        return max(1, self.tokens // 2) if self.stream else 2

    def limited(self) -> Plan:
        """The same answer, cut off there as if the maximum had been reached."""
        after = self.tokens // 2 if self.rehearsal.after is None else self.rehearsal.after
        return replace(self, answer=self.answer.limited(after // self.width))

    def skipped_content(self) -> int:
        """Tokens among what is left out."""
        if not self.skipped:
            return 0
        return sum(e.kind is Kind.CONTENT for e in islice(_APIS[self.api].events(self.answer), self.skipped))

    def behind(self, skipped: int, *, stream: bool) -> Plan:
        """The same as another request gets it."""
        answer = replace(self.answer, asked=replace(self.answer.asked, stream=stream))
        return replace(self, answer=answer, skipped=skipped)

    def showing(self, state: dict[str, Any]) -> Plan:
        """The same, where it isn't streamed: its state in place of its body."""
        return replace(self, shown=state)

    def named(self, key: str) -> Plan:
        """The same words under ids of their own."""
        return replace(self, answer=replace(self.answer, key=key))

    def padded(self, filler: str, count: int) -> Plan:
        """The same with so many tokens of filler in it."""
        return replace(self, answer=self.answer.padded(filler, count))


def plan(api: str, body: dict[str, Any], key: str, profile: Profile, scenarios: frozenset[str]) -> Plan:
    """A body, understood; `key` is its `prompt_key`.

    Raises:
        ApiError: the request is refused.
    """
    rehearsal = read(body, profile.model, scenarios)
    if api == bodies.EMBEDDINGS:
        answer = Answer(key, embeddings.asked(body), [])
    else:
        asked = _APIS[api].parse(body, refuse=rehearsal.refuse)
        answer = compose(asked, key, profile.seed, profile.output_tokens, rehearsal.tokens)
    return Plan(api, answer, rehearsal, profile.seed)


def charge(plan: Plan, profile: Profile) -> int:
    """Tokens that a request is charged up front: its prompt, and for each choice its maximum or else the mean."""
    asked = plan.answer.asked
    if plan.api == bodies.EMBEDDINGS:
        return asked.prompt_tokens
    output = asked.maximum if asked.maximum is not None else mean_tokens(profile.output_tokens)
    return asked.prompt_tokens + output * plan.width


def expected_text(
    body: dict[str, Any],
    seed: int = 0,
    choice: int = 0,
    *,
    output_tokens: int | tuple[int, int] = DEFAULT_OUTPUT_TOKENS,
    model: str = DEFAULT_MODEL,
) -> str:
    """The text that a simulator with this seed answers a chat, Responses or completions body with.

    Empty where the answer is a call or a refusal. For a completion of several prompts `choice` is prompt × n + k;
    what `echo` repeats is part of it. `output_tokens` and `model` are those of the simulator's profile.

    Raises:
        ApiError: the simulator would refuse the body.
    """
    api = _api_of(body)
    rehearsal = read(body, model, None)
    asked = _APIS[api].parse(body, refuse=rehearsal.refuse)
    answer = compose(asked, prompt_key(body), seed, output_tokens, rehearsal.tokens)
    before = completions.echoed(answer, choice) if api == bodies.COMPLETIONS else ""
    return before + answer.choices[choice].text(TEXT)


def _api_of(body: dict[str, Any]) -> str:
    if "messages" in body:
        return bodies.CHAT
    return bodies.RESPONSES if "input" in body else bodies.COMPLETIONS
