"""What the head of an answer announces of its body, and whether that is what was asked for. Pure.

What isn't announced as what was asked for isn't read: a gateway's HTML page with status 200 is no answer, and 292 KB of
gzip can be 1.2 GB of text. The few headers that count are found in one pass over the raw ones: to look each up in an
httpx2.Headers takes as long as to parse the chunk that follows.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from runner.faults import Fault, FaultKind
from runner.redact import shortened

JSON: Final = "application/json"
EVENT_STREAM: Final = "text/event-stream"
_COUNTING: Final = frozenset({b"content-type", b"content-encoding", b"x-request-id"})
_LENGTHS: Final = frozenset(map(len, _COUNTING))


class Announced(NamedTuple):
    """The headers that count."""

    media_type: str  # in lower case, without parameters; empty where there is none
    encoding: str
    request_id: str | None

    def refusal(self, wanted: str, status: int) -> Fault | None:
        """Why a body isn't read where this media type is wanted; None where it is."""
        if self.encoding != "identity":
            # Identity was asked for.
            return Fault(FaultKind.WRONG_CONTENT, f"the server compressed its answer: {shortened(self.encoding, 40)}")
        if self.media_type != wanted:
            message = f"expected {wanted}, the server sent {shortened(self.media_type, 80) or 'no content type'}"
            return Fault(FaultKind.WRONG_CONTENT, message, status=status)
        return None


def announced(headers: Iterable[tuple[bytes, bytes]]) -> Announced:
    """Reads raw headers. One that is repeated is joined with commas (RFC 9110 §5.3), and then is none that we know."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if len(name) in _LENGTHS and (key := name.lower()) in _COUNTING:
            found[key] = found[key] + b", " + value if key in found else value
    encoding = found.get(b"content-encoding")
    request_id = found.get(b"x-request-id")
    return Announced(
        _media_type(found.get(b"content-type", b"")),
        "identity" if encoding is None else encoding.strip().lower().decode("latin-1"),
        None if request_id is None else request_id.decode("utf-8", "replace"),
    )


@lru_cache(maxsize=16)
def _media_type(content_type: bytes) -> str:
    return content_type.partition(b";")[0].strip().lower().decode("latin-1")
