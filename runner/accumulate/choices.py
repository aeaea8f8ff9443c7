"""What chat and legacy completions share: chunks with `choices`, a finish reason for each, and [DONE].

A chunk's own fields go into the body thus: `id`, `object`, `created` and `model` from the first chunk that has them
(Azure's first is empty), everything else from the last chunk where it isn't null (usage, service_tier,
system_fingerprint, x_groq, moderation, …). They are the same in nearly every chunk, so that one comparison does; and
where nothing but the text is another than in the chunk before, nothing but the text need be read (`repeated`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from runner.accumulate.held import NODE_BYTES, Held, weigh
from runner.accumulate.merge import build, update
from runner.accumulate.parsing import DONE, MalformedChunk, Raw, clean, mend, parse, raise_error, read_usage
from runner.accumulate.repeated import TRIES, Repeated, repeated_of
from runner.deltas import Delta
from runner.limits import MAX_CHOICES
from runner.outcome import Usage

_FIRST = frozenset({"id", "created", "model"})


class Choice(ABC):
    """One choice as it grows."""

    known: ClassVar[frozenset[str]]
    """The keys of its entry in a chunk."""
    place: ClassVar[tuple[str, ...]]
    """Where its text stands in that."""

    __slots__ = ("_held", "fields", "finish", "index", "logprobs")

    def __init__(self, index: int, held: Held) -> None:
        self.index = index
        self._held = held
        held.bytes += 4 * NODE_BYTES
        self.finish: str | None = None
        self.logprobs: Any = None
        self.fields: dict[str, Any] = {}
        """What the API doesn't name: Azure's content_filter_results, vLLM's stop_reason and token_ids, …"""

    def take(self, entry: dict[str, Any]) -> Delta | None:
        """Takes this choice's entry of a chunk. Raises MalformedChunk."""
        finish = entry.get("finish_reason")
        if finish:
            if not isinstance(finish, str):
                raise MalformedChunk("a finish_reason that is no string")
            self._held.bytes += len(finish) - len(self.finish or "")
            self.finish = mend(finish)
        logprobs = entry.get("logprobs")
        if logprobs is not None:
            self._take_logprobs(logprobs)
        if not self.known.issuperset(entry):
            others = {key: value for key, value in entry.items() if key not in self.known}
            self.fields = update(self.fields, others, self._held)
        return self.take_content(entry)

    def _take_logprobs(self, logprobs: Any) -> None:
        if not isinstance(logprobs, dict):
            raise MalformedChunk("logprobs that are no object")
        if not all(isinstance(logprobs.get(key) or [], list) for key in ("content", "refusal", "tokens")):
            raise MalformedChunk("logprobs that are no lists")
        self.logprobs = update(self.logprobs, logprobs, self._held)

    @abstractmethod
    def take_text(self, text: str) -> None:
        """Takes more of a text that has begun."""

    @abstractmethod
    def take_content(self, entry: dict[str, Any]) -> Delta | None:
        """Takes what the choice is made of; None where there is nothing to tell. Raises MalformedChunk."""

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """The choice's own part of the body."""

    def body(self) -> dict[str, Any]:
        """The choice as the non-streaming API gives it."""
        logprobs = None if self.logprobs is None else build(self.logprobs)
        body = {"index": self.index, **self.content(), "logprobs": logprobs, "finish_reason": self.finish}
        if self.fields:
            body |= {key: value for key, value in build(self.fields).items() if key not in body}
        return body


class ChoicesAccumulator(ABC):
    """The common part; a subclass says what a choice is."""

    object_name: ClassVar[str]
    make_choice: ClassVar[type[Choice]]

    __slots__ = (
        "_asked",
        "_choices",
        "_held",
        "_last",
        "_raw",
        "_repeats",
        "_top",
        "_tries",
        "_unweighed",
        "ended",
        "repeated",
    )

    def __init__(self, choices: int = 1) -> None:
        self._asked = choices
        self._held = Held()
        self._choices: dict[int, Choice] = {}  # in the order of their indices
        self._top: dict[str, Any] = {}
        self._last: dict[str, Any] = {}
        self._unweighed: list[Any] = []  # what `held` is to count: a short answer is whole before anybody asks
        self._raw = False  # some strings may hold lone surrogates
        self.ended = False
        """See `Accumulator`."""
        self.repeated: Repeated | None = None
        """See `Accumulator`."""
        self._repeats: Choice | None = None
        self._tries = TRIES + 1  # the first text may be the only one

    def feed(self, name: str, data: bytes) -> Sequence[Delta]:
        """See `Accumulator`."""
        if self.ended:
            return ()
        self.repeated = None
        top = parse(name, data)
        if top is None:
            self.ended = data.startswith(DONE)
            return ()
        raw = type(top) is Raw
        self._raw |= raw
        top.pop("obfuscation", None)
        entries = top.pop("choices", None)
        if top != self._last:
            self._take_top(top)
        if entries is None:
            return ()
        deltas = self._take_choices(entries)
        if raw:
            return [Delta(kind, clean(payload), mend(text)) for kind, payload, text in deltas]
        if self._tries and len(entries) == len(deltas) == 1:
            self._look_for_common(data, deltas[0])
        return deltas

    @property
    def may_repeat(self) -> bool:
        """See `Accumulator`."""
        return self._tries > 0

    def take_text(self, text: str) -> None:
        """See `Accumulator`."""
        assert self._repeats is not None
        self._tries = TRIES
        self._repeats.take_text(text)

    def _look_for_common(self, data: bytes, delta: Delta) -> None:
        self._tries -= 1
        if self._tries == TRIES:
            return
        choice = self._choices[delta.payload["index"]]
        self.repeated, self._repeats = repeated_of(data, delta, choice.place), choice

    def _take_top(self, top: dict[str, Any]) -> None:
        if top.get("error") is not None or top.get("object") == "error":
            raise_error(top)
        last, self._last = self._last, top
        if not self._top:  # the first chunk: all of it is new
            self._top = dict(top)
            self._unweighed.append(top)
            return
        for key, value in top.items():
            if key not in last or last[key] != value:
                self._keep(key, value)

    def _keep(self, key: str, value: Any) -> None:
        """Takes a field of the chunk itself that wasn't in the last chunk, or was another there."""
        kept = self._top
        before = kept.get(key)
        if key in _FIRST:
            value = before or value
        elif value is None and key in kept:
            return
        if key not in kept:
            self._held.bytes += NODE_BYTES + len(key)
        kept[key] = value
        self._unweighed.append(value)
        if before is not None:
            self._held.bytes -= weigh(before)

    def _take_choices(self, entries: Any) -> list[Delta]:
        if not isinstance(entries, list):
            raise MalformedChunk("choices that are no list")
        deltas = []
        for entry in entries:
            if not isinstance(entry, dict):
                raise MalformedChunk("a choice that is no object")
            index = entry.get("index")
            choice = self._choices.get(index) if type(index) is int else None
            delta = (choice or self._begin(index)).take(entry)
            if delta is not None:
                deltas.append(delta)
        return deltas

    def _begin(self, index: Any) -> Choice:
        """The choice with an index that is new, left out or wrong."""
        if index is None:
            index = 0
        if type(index) is not int or not 0 <= index < MAX_CHOICES:
            raise MalformedChunk("a choice whose index is none")
        choice = self._choices.get(index)
        if choice is None:
            choice = self._choices[index] = self.make_choice(index, self._held)
            if len(self._choices) > 1:
                self._choices = dict(sorted(self._choices.items()))
        return choice

    @property
    def held(self) -> int:
        """See `Accumulator`."""
        if self._unweighed:
            self._held.bytes += sum(map(weigh, self._unweighed))
            self._unweighed.clear()
        return self._held.bytes

    def shorten(self, size: int) -> None:
        """See `Accumulator`."""
        self._held.shown = size

    @property
    def complete(self) -> bool:
        """A finish reason for every choice, and as many choices as were asked for."""
        return len(self._choices) >= self._asked and None not in [choice.finish for choice in self._choices.values()]

    @property
    def finish(self) -> str | None:
        """See `Accumulator`."""
        return telling_finish([choice.finish for choice in self._choices.values()])

    @property
    def usage(self) -> Usage | None:
        """See `Accumulator`."""
        return read_usage(self._top.get("usage"))

    def body(self) -> dict[str, Any]:
        """See `Accumulator`."""
        top = dict(self._top)
        top.pop("object", None)
        usage = top.pop("usage", None)
        first = {"id": top.pop("id")} if "id" in top else {}
        choices = [choice.body() for choice in self._choices.values()]
        body = {**first, "object": self.object_name, **top, "choices": choices}
        if usage is not None:  # null is the stream's way to say "not yet"
            body["usage"] = usage
        return clean(body) if self._raw else body


def telling_finish(reasons: Sequence[str | None]) -> str | None:
    """The first finish reason that isn't `stop`, else `stop`; None where there is none at all."""
    telling = None
    for reason in reasons:
        if reason:
            telling = reason
            if reason != "stop":
                break
    return telling
