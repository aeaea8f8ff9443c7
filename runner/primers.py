"""Primer first: of the jobs with one prompt_cache_key one goes ahead, and the rest when its answer begins.

A prompt is in the server's cache once it has been read, so a fan-out that is sent at once misses it every time. A
primer that ends without an answer hands its part to the next job with that key. A key that hasn't been used for
CACHED_S is primed again: the cache keeps a prompt for five to ten minutes after its last use
(https://platform.openai.com/docs/guides/prompt-caching).

Accepted: jobs that wait for their primer are in memory, and stand in the way of jobs behind them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import anyio

CACHED_S: Final = 300.0
MAX_KEYS: Final = 10_000
"""Keys remembered; the longest unused are forgotten first, and primed again if they come back."""


class _Key:
    __slots__ = ("begun", "used_s")

    def __init__(self, now_s: float) -> None:
        self.begun = anyio.Event()
        self.used_s = now_s


class Primers:
    """See the module. All methods are for one event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._keys: OrderedDict[str, _Key] = OrderedDict()

    async def wait(self, key: str) -> bool:
        """Returns when a job with this key may go; True if it is the primer, which must call `begun` or `ended`."""
        while True:
            found = self._keys.get(key)
            if found is None or (found.begun.is_set() and self._clock() - found.used_s > CACHED_S):
                self._keys[key] = _Key(self._clock())
                self._forget()
                return True
            if found.begun.is_set():
                found.used_s = self._clock()
                self._keys.move_to_end(key)
                return False
            await found.begun.wait()

    def begun(self, key: str) -> None:
        """The primer's answer begins: its prompt has been read."""
        if found := self._keys.get(key):
            found.used_s = self._clock()
            found.begun.set()

    def ended(self, key: str) -> None:
        """The primer is over. If its answer never began, another job takes its part."""
        found = self._keys.get(key)
        if found is not None and not found.begun.is_set():
            del self._keys[key]
            found.begun.set()

    def _forget(self) -> None:
        if len(self._keys) > MAX_KEYS:
            oldest = next((key for key, found in self._keys.items() if found.begun.is_set()), None)
            if oldest is not None:
                del self._keys[oldest]
