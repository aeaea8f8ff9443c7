"""What a request asks for, in tokens: a plain, stated heuristic. Pure.

Text is ⌈UTF-8 bytes / 4⌉ tokens over the whole prompt, plus 3 for each message or item, plus 85 for each part that is
no text (an image at low detail); tool definitions count as their JSON. A list of token ids counts as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import orjson

_PER_MESSAGE: Final = 3
_PER_MEDIA: Final = 85


class Size:
    """Adds up a prompt."""

    def __init__(self) -> None:
        self.text_bytes = 0
        self.extra = 0

    @property
    def tokens(self) -> int:
        """The whole prompt."""
        return -(-self.text_bytes // 4) + self.extra

    def text(self, value: Any) -> None:
        """Counts a string."""
        if isinstance(value, str):
            self.text_bytes += len(value.encode())

    def content(self, value: Any) -> None:
        """Counts a message's content: a string, or a list of parts."""
        self.text(value)
        for part in value if isinstance(value, list) else ():
            inner = part.get("text", part.get("refusal")) if isinstance(part, dict) else part
            if isinstance(inner, str):
                self.text(inner)
            else:
                self.extra += _PER_MEDIA

    def messages(self, items: list[Any]) -> None:
        """Counts messages, or the input items of a Responses request."""
        for item in items:
            self.extra += _PER_MESSAGE
            if isinstance(item, dict):
                self.content(item.get("content"))
                for key in ("arguments", "output", "name"):
                    self.text(item.get(key))
                self.json(item.get("tool_calls"))
            else:
                self.text(item)

    def json(self, value: Any) -> None:
        """Counts a structure as its JSON."""
        if value:
            self.text_bytes += len(orjson.dumps(value))


def chat_size(body: dict[str, Any]) -> tuple[int, bool]:
    """Tokens of a chat body, and whether its messages are empty."""
    size = Size()
    size.messages(body["messages"])
    empty = size.text_bytes == 0 and size.extra == _PER_MESSAGE * len(body["messages"])
    size.json(body.get("tools"))
    size.json(body.get("functions"))
    return size.tokens, empty


def responses_size(body: dict[str, Any]) -> tuple[int, bool]:
    """Tokens of a Responses body, and whether its input is empty."""
    size = Size()
    items = body["input"] if isinstance(body["input"], list) else [body["input"]]
    size.messages(items)
    empty = size.text_bytes == 0 and size.extra == _PER_MESSAGE * len(items)
    size.text(body.get("instructions"))
    size.json(body.get("tools"))
    return size.tokens, empty


def text_tokens(value: str | list[int]) -> int:
    """Tokens of one prompt of a legacy completion, or of one input of an embedding."""
    return -(-len(value.encode()) // 4) if isinstance(value, str) else len(value)


def prompts(value: Any) -> Iterator[str | list[int]]:
    """The prompts in a string, a list of strings, a list of token ids, or a list of such lists.

    Raises:
        TypeError: it is none of these.
    """
    if isinstance(value, str) or _is_ids(value):
        yield value
    elif isinstance(value, list) and value and all(isinstance(item, str) or _is_ids(item) for item in value):
        yield from value
    else:
        raise TypeError("a string, an array of strings, an array of integers or an array of arrays of integers")


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)
