"""How many requests at once a server bears that says it has too much to do. Pure.

Such a server is full at the number that was under way when it refused one more. From there places are added, a quarter
of them after each round of answers. One that is refused is taken back, and the next is tried after twice as many
rounds, a twentieth at a time: in the end one request in MAX_ROUNDS rounds is refused. One that is borne for a round is
followed by the next, sooner and sooner, for the server may bear more than before.

Accepted: a server that bears less than before refuses a few more until the number is down there.
"""

from __future__ import annotations

import math
from typing import Final

GROWTH: Final = 0.25
"""Of the places, so many are added at a time while none of these has been refused…"""
STEP: Final = 0.05
"""…and so many afterwards, one at least."""
MAX_ROUNDS: Final = 64
FULL: Final = 0.8
"""With this part of its places under way it counts as full: answers end while a request is on its way."""


class Capacity:
    """See the module."""

    def __init__(self) -> None:
        self.limit = math.inf
        self._rounds = 1  # before places are added
        self._trying = False  # places that have just been added
        self._full_at = math.inf
        self._answers_left = 0.0

    def begin(self) -> None:
        """It refuses many: from now on what the refusals say of it counts."""
        self._limit_to(self._full_at)

    def refused(self, under_way: int, *, new: bool) -> bool:
        """It refused one while so many were under way; whether that was to be expected.

        `new`: it was sent after the last refusals had been heard of.
        """
        if under_way == 0:  # it isn't we who fill it
            self.forget()
        self._full_at = under_way or math.inf
        if self.limit == math.inf:
            return False
        if not new:
            self._limit_to(min(self.limit, self._full_at))
            return True
        if under_way < FULL * self.limit:
            return False
        self._rounds, self._trying = min(2 * self._rounds, MAX_ROUNDS), False
        self._limit_to(self._full_at)
        return True

    def _limit_to(self, limit: float) -> None:
        self.limit = limit
        self._answers_left = self._rounds * limit

    def accepted(self, under_way: int) -> None:
        """One more was let in, so many being under way. While it isn't full that says nothing."""
        if under_way < FULL * self.limit:
            return
        self._answers_left -= 1
        if self._answers_left <= 0:
            if self._trying:  # the places that were added last are borne: it is more than it was
                self._rounds = max(1, self._rounds // 2)
            self._trying = True
            self.limit += max(1, int(self.limit * (GROWTH if self._rounds == 1 else STEP)))
            self._answers_left = self.limit

    def forget(self) -> None:
        """What was refused had another reason."""
        self.limit, self._rounds, self._trying = math.inf, 1, False
