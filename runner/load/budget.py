"""`--max-cost`: one sum for a whole load test, however often it was interrupted. Pure.

What earlier starts spent stands in the records that they left; what this one spends comes on top. Several processes
are each told what was spent before and watch their own; the parent watches the sum.

Accepted: answers that were on their way when a process was killed have no record, and what they cost isn't known.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be spent, and how much was before this start."""

    limit: float | None = None
    before: float = 0.0

    def overdrawn(self, now: float) -> str | None:
        """Why nothing more is to be sent when this start has spent `now`; None: there is something left."""
        spent = self.before + now
        if self.limit is None or spent < self.limit:
            return None
        earlier = f", {self.before:.4g} of it by earlier starts" if self.before else ""
        return f"{spent:.4g} spent{earlier} (--max-cost {self.limit:g})"
