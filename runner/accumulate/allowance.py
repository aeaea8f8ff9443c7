"""How much of an answer may come: what its job asked for decides, and what its process can spare.

- A job that names a maximum of tokens may get so many, for each choice; one that names none, the longest answer that
  the API gives. Log probabilities, images, sound and vectors may come where they were asked for. All of it generously:
  no honest answer meets this bound, an endless one does.
- Every open stream has a share that is its own: what half of a named maximum takes, or else what nearly all answers
  are. Beyond its share a stream takes what the others leave of all shares together, first come first served. So some
  answers may be very long, but not all of them at once: 32 endless streams hold 32 shares.

What counts is what is in memory (`held`). The answer as far as it has come has one room, the line or body that is being
read another: the last event of a Responses stream repeats the whole answer, every letter of it as six bytes perhaps.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from runner.jobs import Api, Job
from runner.limits import (
    ANSWER_SHARE_TOKENS,
    ANSWER_SLACK_BYTES,
    BYTES_PER_LOGPROB,
    BYTES_PER_TOKEN,
    BYTES_PER_VALUE,
    BYTES_PER_VECTOR,
    MAX_ANSWER_TOKENS,
    MAX_BODY_BYTES,
    MAX_MEDIA_BYTES,
    MEDIA_SHARE_BYTES,
    MIN_PARSED_BYTES,
)
from runner.wire import output_cap_of

_TELLING: Final = frozenset({"logprobs", "top_logprobs", "include", "modalities", "tools"})
"""Keys of a body that ask for more than text."""


class Allowance(NamedTuple):
    """Bytes that one answer may hold."""

    bound: int
    """At most."""
    share: int
    """…and this much whatever others hold."""


def allowance_of(job: Job, choices: int) -> Allowance:
    """What a job asked for, where `choices` is how many choices its answer owes."""
    body = job.body
    if job.api is Api.EMBEDDINGS:
        asked = min(_inputs(body.get("input")) * BYTES_PER_VECTOR + ANSWER_SLACK_BYTES, MAX_BODY_BYTES)
        return Allowance(asked, asked)
    usual = _TELLING.isdisjoint(body)
    each = BYTES_PER_TOKEN + (0 if usual else _logprobs(body) * BYTES_PER_LOGPROB)
    cap = output_cap_of(job)
    # A Responses answer repeats the request's instructions and tools, other servers its prompt's tokens as numbers.
    slack = ANSWER_SLACK_BYTES * (1 + choices // 8) + 16 * job.size_bytes
    bound = choices * each * (MAX_ANSWER_TOKENS if cap is None else cap) + slack
    share = max(each * ANSWER_SHARE_TOKENS, choices * each * (cap or 0) // 2)
    if not usual and _asks_for_media(body):
        bound, share = bound + MAX_MEDIA_BYTES, share + MEDIA_SHARE_BYTES
    return Allowance(bound, min(bound, share))


def _logprobs(body: dict[str, Any]) -> int:
    """Log probabilities asked for, a token: its own and its alternatives'."""
    asked = body.get("logprobs")  # a count for legacy completions, a boolean for chat
    counts = [count for count in (asked, body.get("top_logprobs")) if type(count) is int and count >= 0]
    include = body.get("include")
    named = isinstance(include, list) and any("logprobs" in name for name in include if isinstance(name, str))
    return 1 + max(counts, default=0) if counts or asked is True or named else 0


def _inputs(value: Any) -> int:
    """Vectors asked for: a list of numbers is one input, already tokenised."""
    return len(value) if isinstance(value, list) and value and isinstance(value[0], str | list) else 1


def _asks_for_media(body: dict[str, Any]) -> bool:
    """Whether images, sound or what a hosted tool found may come: none of it is counted in tokens of text."""
    modalities, tools = body.get("modalities"), body.get("tools")
    if isinstance(modalities, list) and any(kind != "text" for kind in modalities):
        return True
    kinds = [tool.get("type") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    return any(kind not in ("function", "custom", None) for kind in kinds)


_ADVICE: Final = "; a maximum of tokens in the request gives it its own"


class Room:
    """What the open streams of one process may hold together: their shares, or `least` where that is more."""

    __slots__ = ("held", "least", "shares")

    def __init__(self, least: int) -> None:
        self.least = least
        self.held = 0
        self.shares = 0

    def open(self, bound: int, share: int) -> Place:
        """A place for one answer, till it is closed; see `Allowance`."""
        self.shares += share
        return Place(self, bound, share)


class Place:
    """What one answer holds of the room."""

    __slots__ = ("_held", "_room", "_share", "bound")

    def __init__(self, room: Room, bound: int, share: int) -> None:
        self._room = room
        self.bound = bound
        self._share = share
        self._held = 0

    def close(self) -> None:
        """Leaves all of it to others."""
        self._room.held -= self._held
        self._room.shares -= self._share

    def refusal(self, held: int) -> str | None:
        """Notes what the answer holds now; says why it may not, or None where it may."""
        room = self._room
        room.held += held - self._held
        self._held = held
        if held <= self._share:
            return None
        if held > self.bound:
            return f"the answer is larger than {self.bound:,} bytes{_ADVICE}"
        if room.held > max(room.shares, room.least):
            return f"the answer is larger than {self._share:,} bytes, and the others leave no room{_ADVICE}"
        return None


# ── Values ───────────────────────────────────────────────────────────────────────────────────────────────────────


def has_too_many_values(data: bytes, bound: int) -> bool:
    """Whether parsing an event or a body would take far more memory than its bytes: `[],[],…` takes 21 times."""
    most = max(bound, MIN_PARSED_BYTES) // BYTES_PER_VALUE
    if _separators(data) <= most:
        return False
    # Commas and brackets in a text are no values; but it takes memory to look past very many texts.
    texts = (data.count(b'"') - data.count(b'\\"')) // 2
    return texts > most or _separators(_TEXT.sub(b"", data)) > most


# What has no end reaches to the end of all, so that no byte is looked at twice.
_TEXT: Final = re.compile(rb'"[^"\\]*+(?:\\.?[^"\\]*+)*+(?:"|\Z)', re.DOTALL)


def _separators(data: bytes) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")
