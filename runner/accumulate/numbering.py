"""The numbers of a Responses stream: is this event new, and is one missing?

Order by sequence_number is the API's contract. A number that was passed before is a duplicate (a re-attached
background stream repeats events). A number that is skipped is a lost event. Some compatible servers number every event
alike, or not at all: a number that is repeated by a *different* event before any number has advanced shows that, and
from then on arrival is the order.
"""

from __future__ import annotations

from typing import Any


class Numbering:
    """What is known of the numbers so far."""

    __slots__ = ("_advanced", "_last", "_last_hash", "_unusable", "gap")

    def __init__(self) -> None:
        self._last: int | None = None
        self._last_hash = 0  # of the bytes that had it; the bytes may be many
        self._advanced = False
        self._unusable = False
        self.gap = False
        """Whether a number was skipped."""

    def is_new(self, number: Any, data: bytes) -> bool:
        """Whether the event with this number and these bytes is to be taken."""
        if self._unusable or type(number) is not int:
            return True
        if self._last is None:
            self._last, self._last_hash = number, hash(data)
            return True
        if number > self._last:
            self.gap |= number > self._last + 1
            self._last, self._advanced = number, True
            return True
        if self._advanced or hash(data) == self._last_hash:
            return False
        self._unusable = True
        return True
