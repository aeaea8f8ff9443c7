"""What one chunk of an answer adds: the unit that is echoed, timed and written to deltas.jsonl."""

from __future__ import annotations

import enum
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


class Arrived(NamedTuple):
    """A delta that is text alone, as a stream brings them by the thousand: its payload is not taken apart."""

    after_ns: int
    """Since the attempt was sent."""
    payload: bytes
    """As JSON."""
    text: str

    @property
    def delta(self) -> Delta:
        """The same with a payload to read."""
        return Delta(DeltaKind.TEXT, orjson.loads(self.payload), self.text)
