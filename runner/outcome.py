"""How an attempt ended. Success is a positive fact: the end of a stream proves nothing.

`Completed` needs a terminal finish reason for every choice, or the terminal event of the Responses API. Everything
else is `Failed` with the fault that says whether to try again; what had arrived by then is kept as `partial`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from runner.faults import Fault

Json = dict[str, Any]


class Usage(NamedTuple):
    """Tokens as the server counted them, in one vocabulary for the three APIs. Source: the `usage` objects of each."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    """The part of `input_tokens` that came from the prompt cache."""
    reasoning_tokens: int = 0
    """The part of `output_tokens` that was reasoning."""


class Completed(NamedTuple):
    """The answer ended well."""

    body: Json
    """What the non-streaming API would have returned."""
    finish: str
    """`stop`, `length`, `tool_calls`, `content_filter`, … of the first choice that isn't `stop`, else `stop`;
    `completed` or `incomplete:<reason>` for Responses; `stop_after` when the line asked for it."""
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer did not end well."""

    fault: Fault
    partial: Json | None = None
    """The body as far as it had arrived, or None when nothing had."""
    usage: Usage | None = None
    """What the server said it spent, where it said so."""


Outcome = Completed | Failed
