"""How much a lane does in one turn of the event loop, before others get theirs."""

from __future__ import annotations

import asyncio
from typing import Final

AT_ONCE: Final = 64
"""Attempts admitted before others get a turn of the event loop…"""
AT_ONCE_SHARE: Final = 1 / 16
"""…and that share of those in flight: with thousands of streams a turn of theirs takes a third of a second, and 64 for
each would open the last of 5,000 after 12 s."""


class Turn:
    """Counts the attempts that are admitted in it."""

    __slots__ = ("_admitted",)

    def __init__(self) -> None:
        self._admitted = 0

    def count(self) -> None:
        """One was admitted."""
        if not self._admitted:
            asyncio.get_running_loop().call_soon(self._begin)
        self._admitted += 1

    def _begin(self) -> None:
        self._admitted = 0

    def is_over(self, in_flight: int) -> bool:
        """Whether it is time for others. `in_flight`: attempts at this endpoint."""
        return self._admitted >= AT_ONCE and self._admitted >= AT_ONCE_SHARE * in_flight
