"""Background responses: what is generated whether or not anybody listens.

A response is a function of its request and of the time that has passed since, so nothing runs while nobody asks: what
is due by now has been generated. Every delivery (the POST's own stream, a GET's behind any event) keeps one schedule.

Memory is bounded: beyond MAX_RESPONSES, or MAX_TOKENS in all of them, the oldest are forgotten, which is what an
expired one looks like.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from runner.simulator import responses
from runner.simulator.plan import Plan
from runner.simulator.refusals import ApiError, bad_request
from runner.simulator.sse import Event

MAX_RESPONSES: Final = 20_000
MAX_TOKENS: Final = 4_000_000
"""Of all answers that are kept: a token is a pointer, 8 bytes."""
LASTING: Final = frozenset({"response_failed", "response_incomplete"})
"""Scenarios that befall the response, and so whoever asks for it; the others befall a delivery."""


@dataclass(slots=True, eq=False)
class Generation:
    """One background response."""

    plan: Plan
    """What it says, under an id of its own."""
    n: int
    """Number of the POST."""
    key: str
    """`prompt_key` of its body."""
    started_s: float
    """Loop time of the POST."""
    ends_s: float
    """When its last token is due."""
    fault: str | None = None
    """One of LASTING."""
    cancelled: bool = False

    @property
    def id(self) -> str:
        """As in its URL."""
        return self.plan.answer.id("resp_")

    @property
    def age_s(self) -> float:
        """Since the POST."""
        return asyncio.get_running_loop().time() - self.started_s

    @property
    def finished(self) -> bool:
        """Whether all of it is there."""
        return asyncio.get_running_loop().time() >= self.ends_s

    def state(self) -> dict[str, Any]:
        """The response as of now."""
        if self.cancelled:
            return responses.state(self.plan.answer, "cancelled")
        if not self.finished:
            return responses.state(self.plan.answer, "in_progress")
        if self.fault == "response_failed":
            return responses.failed(self.plan.answer)
        return (self.plan.limited() if self.fault == "response_incomplete" else self.plan).body()

    def live(self, events: Iterable[Event]) -> Iterator[Event]:
        """Events for as long as it isn't cancelled."""
        for event in events:
            if self.cancelled:
                return
            yield event


@dataclass(slots=True)
class Responses:
    """Those of one server."""

    _kept: dict[str, Generation] = field(default_factory=dict)
    _tokens: int = 0

    def add(self, generation: Generation) -> None:
        """A POST was let in."""
        self._forget(generation.id)
        self._kept[generation.id] = generation
        self._tokens += generation.plan.tokens
        while len(self._kept) > MAX_RESPONSES or (self._tokens > MAX_TOKENS and len(self._kept) > 1):
            self._forget(next(iter(self._kept)))

    def find(self, name: str) -> Generation | None:
        """The one with this id, expired or not."""
        return self._kept.get(name)

    def get(self, name: str) -> Generation:
        """The one with this id.

        Raises:
            ApiError: 404: there is none, or none any more.
        """
        generation = self._kept.get(name)
        if generation is not None:
            expires_s = generation.plan.rehearsal.expires_s
            if expires_s is None or generation.age_s < expires_s:
                return generation
        raise bad_request(f"Response with id '{name[:80]}' not found.", status=404)

    def _forget(self, name: str) -> None:
        before = self._kept.pop(name, None)
        self._tokens -= 0 if before is None else before.plan.tokens


def asked_stream(generation: Generation, stream: str | None, after: str | None) -> Plan:
    """What a GET with these query parameters is to be sent.

    Raises:
        ApiError: 400: that can't be streamed.
    """
    if stream not in ("true", "1"):
        return generation.plan.behind(0, stream=False)
    if not generation.plan.stream:
        raise bad_request("This response can't be streamed: it was not created with stream=true.", "stream")
    limit_s = generation.plan.rehearsal.stream_s
    if limit_s is not None and generation.age_s >= limit_s:
        raise bad_request(f"This response can no longer be streamed because it is more than {limit_s:g} s old")
    return generation.plan.behind(0 if after is None else _number(after) + 1, stream=True)


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 15:
        raise bad_request("Invalid 'starting_after': expected an integer.", "starting_after", "invalid_type")
    return int(text)


def cancel(generation: Generation) -> dict[str, Any]:
    """Ends it where it is.

    Raises:
        ApiError: 400: it has ended.
    """
    if generation.finished and not generation.cancelled:
        raise ApiError(400, {"message": "Cannot cancel a completed response.", "type": "invalid_request_error"})
    generation.cancelled = True
    return generation.state()
