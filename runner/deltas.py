"""What one chunk of an answer adds: the unit that is echoed, timed and written to deltas.jsonl."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson


class DeltaKind(enum.Enum):
    """What a delta carries. TTFT, gaps and the idle deadline count content; the rest is evidence only."""

    TEXT = "text"
    REFUSAL = "refusal"
    REASONING = "reasoning"
    TOOL = "tool"  # arguments or name of a tool or function call
    PROGRESS = "progress"  # the server is at work (a Responses tool event): no content, but not idle
    EMPTY = "empty"  # a role, a finish reason, a bookkeeping event: neither content nor progress

    # Attributes and not properties: they are asked for with every chunk, and an enum's hash is slow.
    is_content: bool
    """Whether it counts for TTFT and for the gaps between content chunks."""
    is_progress: bool
    """Whether it pushes the idle deadline back."""

    def __init__(self, value: str) -> None:
        self.is_content = value in ("text", "refusal", "reasoning", "tool")
        self.is_progress = value != "empty"


class Delta(NamedTuple):
    """One increment of one choice or one Responses event."""

    kind: DeltaKind
    payload: dict[str, Any]
    """What deltas.jsonl keeps. Chat: the API's own delta object plus its choice `index`. Legacy completions:
    `{"index", "text"}`. Responses: the event with its `type`, less the whole `response` that the final record has."""
    text: str = ""
    """The visible text of it (content or refusal); empty for reasoning and tool calls. `stop_after` counts it."""


class Texts(NamedTuple):
    """Deltas in a row that are text alone, as a stream brings them by the thousand.

    Column by column, since an object for each would cost more than to read it; nobody has taken the payloads apart.
    """

    after_ns: Sequence[int]
    """When each arrived, since the attempt was sent."""
    written: Sequence[bytes]
    """Each text as JSON."""
    texts: Sequence[str]
    before: bytes
    """What a payload's JSON has before its text, the same for all of them…"""
    behind: bytes
    """…and behind it."""

    @property
    def first(self) -> Delta:
        """The first one with a payload to read."""
        return self._delta(0)

    @property
    def deltas(self) -> list[Delta]:
        """All of them so."""
        return [self._delta(at) for at in range(len(self.texts))]

    def _delta(self, at: int) -> Delta:
        payload = orjson.loads(self.before + self.written[at] + self.behind)
        return Delta(DeltaKind.TEXT, payload, self.texts[at])
