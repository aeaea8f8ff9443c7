"""What to reserve for the output of a job that names no maximum: what such jobs of its model used lately. Pure.

TPM is charged up front, so a guess that is far too high leaves the allowance unused, and one that is too low runs into
the server's limit. The 90th percentile of the last answers is reserved; what an answer uses beyond it is a debt of the
limiter, what it leaves comes back.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from runner.limits import MAX_LANES

BEFORE_ANY: Final = 1_024
"""Tokens reserved until there are enough answers to go by."""
QUANTILE: Final = 0.9
ENOUGH: Final = 20
"""Answers of a model before its own quantile counts."""
REMEMBERED: Final = 200
"""Answers of a model that count."""
_EVERY: Final = 10
"""Answers between two looks at them: sorting 200 numbers for each would cost more than it brings."""


class Reservation:
    """Per model; `fixed` is the user's own number, which nothing changes."""

    def __init__(self, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._recent: dict[str, deque[int]] = {}
        self._seen: dict[str, int] = {}
        self._quantile: dict[str, int] = {}

    def output_tokens(self, model: str | None) -> int:
        """For one choice of one answer."""
        if self._fixed is not None:
            return self._fixed
        return self._quantile.get(model or "", BEFORE_ANY)

    def observe(self, model: str | None, output_tokens: int) -> None:
        """One choice of an answer of `model` that named no maximum had so many tokens."""
        name = model or ""
        if name not in self._recent:
            if len(self._recent) >= MAX_LANES:
                return
            self._recent[name] = deque(maxlen=REMEMBERED)
        recent = self._recent[name]
        recent.append(output_tokens)
        self._seen[name] = self._seen.get(name, 0) + 1
        if len(recent) >= ENOUGH and self._seen[name] % _EVERY == 0:
            self._quantile[name] = max(1, sorted(recent)[int(QUANTILE * (len(recent) - 1))])

    @property
    def stated(self) -> str:
        """For the manifest."""
        if self._fixed is not None:
            return f"{self._fixed} output tokens where a line names no maximum"
        return (
            f"where a line names no maximum: {BEFORE_ANY} output tokens, and after {ENOUGH} answers of its model the "
            f"{QUANTILE:.0%} quantile of the last {REMEMBERED}"
        )
