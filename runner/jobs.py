"""One line of a jobs file → `Job` or `Rejected`. Pure: no clock, no file, no socket."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import msgspec


class Api(enum.Enum):
    """The four endpoints a job can go to; the value is the path below the base URL."""

    CHAT = "/chat/completions"
    RESPONSES = "/responses"
    COMPLETIONS = "/completions"
    EMBEDDINGS = "/embeddings"

    __hash__ = object.__hash__  # an enum's own takes as long as ten look-ups

    def __init__(self, path: str) -> None:
        self.path = path
        """The same, found faster than `value`, which is a descriptor."""


@dataclass(frozen=True, slots=True)
class StopAfter:
    """Closes the stream early on purpose. Exactly one of the two is set."""

    chunks: int | None = None
    """Content chunks."""
    chars: int | None = None
    """Characters of visible text, over all choices."""


class Job(msgspec.Struct, frozen=True):
    """One request to make. To make a frozen dataclass of it takes six times as long: a fifth of a line's parsing."""

    id: str
    """The line's custom_id (or id); without one `job-<32 hex>`, derived from its content and its occurrence."""
    line: int
    """1-based line number in the jobs file."""
    api: Api
    body: dict[str, Any]
    """The API's body as the line gave it (the short form turned into messages), less the runner's own keys."""
    stream: bool
    digest: int
    """Unsigned 64-bit digest of what is asked (api, body, stream, stop_after; not the metadata): another digest under
    a known id is another job."""
    size_bytes: int
    """Length of its line."""
    metadata: Any = None
    stop_after: StopAfter | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A line that can't be a job. It becomes a final record; the run goes on."""

    id: str
    """`line-<32 hex>`, derived from the line's bytes and their occurrence."""
    line: int
    code: str
    """Machine-readable reason, e.g. `invalid_json`, `duplicate_custom_id`."""
    reason: str
    """One sentence for a person, without the line's content beyond a short excerpt."""
    custom_id: str | None = None
    """None where it is missing, malformed or a duplicate: the first line with an id keeps it."""
    metadata: Any = None
