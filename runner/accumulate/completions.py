"""Chunks of legacy /completions → Deltas and a whole `text_completion`. Chunk and answer have one shape.

Source: https://platform.openai.com/docs/api-reference/completions.
"""

from __future__ import annotations

from typing import Any

from runner.accumulate.choices import Choice, ChoicesAccumulator
from runner.accumulate.held import Held, Text
from runner.accumulate.parsing import MalformedChunk
from runner.deltas import Delta, DeltaKind


class TextChoice(Choice):
    """One choice of a legacy completion."""

    known = frozenset({"index", "text", "logprobs", "finish_reason"})
    place = ("text",)
    __slots__ = ("_text",)

    def __init__(self, index: int, held: Held) -> None:
        super().__init__(index, held)
        self._text = Text(held)

    def take_text(self, text: str) -> None:
        """See `Choice`."""
        self._text.add(text)

    def take_content(self, entry: dict[str, Any]) -> Delta | None:
        """Takes the entry's text; no Delta where there is neither text nor logprobs."""
        text, logprobs = entry.get("text"), entry.get("logprobs")
        if text is None and logprobs is None:
            return None
        text = "" if text is None else text
        if not isinstance(text, str):
            raise MalformedChunk("text that is no string")
        self._text.add(text)
        payload: dict[str, Any] = {"index": self.index, "text": text}
        if logprobs is not None:
            payload["logprobs"] = logprobs
        return Delta(DeltaKind.TEXT if text else DeltaKind.EMPTY, payload, text)

    def content(self) -> dict[str, Any]:
        """The text."""
        return {"text": str(self._text)}


class CompletionsAccumulator(ChoicesAccumulator):
    """The growing `text_completion`."""

    object_name = "text_completion"
    make_choice = TextChoice
    __slots__ = ()
