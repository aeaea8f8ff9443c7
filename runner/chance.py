"""How many of a server's refusals are chance: those that come however slowly one sends. Pure.

A limit refuses nothing below what it has just let through; an ill replica, or a proxy in front of several servers,
refuses the same share at any rate. So the answers below that rate are counted, and from SEVERAL refusals on their share
is what chance refuses. Then the last answers show a limit only where chance can't explain that many of them. This is
the loss threshold by which congestion control tells a noisy line from a full one (BBRv2; PCC Vivace, NSDI 2018), with
a threshold that is measured.

Accepted: of a limit that was lowered, the first refusals look like chance too. The rate that is tried then is refused
so often that it is given up within a second, and below that one nothing is refused: the share fades as it came.
"""

from __future__ import annotations

from collections import deque
from typing import Final

SEVERAL: Final = 2
"""Refusals below what was borne, before they are believed to be chance: one may be of a limit that was lowered."""
MOST: Final = 0.35
"""…and no larger share of the answers, however many were refused: a limit that was halved refuses half of them."""
REMEMBERED: Final = 200
"""About so many answers count: one in 100 is SEVERAL of them, and what a lowered limit refused is soon forgotten."""
RECENT: Final = 20
"""Of the last so many answers…"""
ALONE: Final = 4
"""…so many refusals aren't chance where none is expected: at one in 50 it is once in 1,700 times, 3 is once in 140…"""
WORSE: Final = 2.0
"""…and so many times what is expected beside them: at one in ten it takes 8 of 20, once in 2,400 times."""


class Chance:
    """See the module."""

    def __init__(self) -> None:
        self._recent: deque[bool] = deque(maxlen=RECENT)  # whether it was accepted
        self._below = [0.0, 0.0]  # accepted and refused, while the rate was below what the server bore

    def answered(self, *, accepted: bool, below: bool) -> None:
        """A request was accepted or refused. `below`: the rate was one that the server is known to bear."""
        self._recent.append(accepted)
        if below:
            self._below[not accepted] += 1
            if sum(self._below) > REMEMBERED:  # what it does lately must count
                self._below = [count / 2 for count in self._below]

    @property
    def share(self) -> float:
        """The part of the answers that chance refuses; 0 while nothing shows that it refuses any."""
        accepted, refused = self._below
        return min(MOST, refused / (accepted + refused)) if refused >= SEVERAL else 0.0

    def explains(self, alone: int) -> bool:
        """Whether the last answers show no more than chance. `alone`: so many do where no refusal is expected."""
        share = self.share
        return self._recent.count(False) < (ALONE + WORSE * share * RECENT if share else alone)

    @property
    def answers(self) -> int:
        """Of the last RECENT, those since it began anew."""
        return len(self._recent)

    def begin_anew(self) -> None:
        """The rate is another one from now on. What chance refuses isn't."""
        self._recent.clear()
