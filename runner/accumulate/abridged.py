"""The beginning of a body: what an error record keeps of an answer that was too large."""

from __future__ import annotations

from typing import Any

import orjson


def abridged(body: dict[str, Any], limit: int) -> dict[str, Any]:
    """A copy of about so many characters at most: texts are cut, what comes after is left out.

    It is of plain values. The body's own long texts and lists had better be shortened before.
    """
    found: dict[str, Any] = _Abridging(limit).copy(body)
    return found


class _Abridging:
    def __init__(self, left: int) -> None:
        self._left = left

    def copy(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._take(value)
        if isinstance(value, dict):
            return {self._take(key): self.copy(item) for key, item in value.items() if self._left > 0}
        if isinstance(value, list):
            return [self.copy(item) for item in value if self._left > 0]
        if isinstance(value, orjson.Fragment):
            return self.copy(orjson.loads(orjson.dumps(value)))
        return value if self._fits(8) else None

    def _fits(self, size: int) -> bool:
        self._left -= size
        return self._left >= 0

    def _take(self, text: str) -> str:
        text = text[: max(self._left, 0)]
        self._left -= len(text) + 2
        return text
