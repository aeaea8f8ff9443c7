r"""Bytes of one event → an object that orjson can write again, or a named refusal.

orjson reads nearly every chunk. What it refuses is read once more by the standard library, which takes lone surrogates
(a server that cuts an emoji in two sends them as `"\ud83d"` and then `"\ude00"`) and NaN. Values from there are
*raw*: their strings may hold halves, which join into a character when the parts of a text are joined; `clean` makes
them fit for orjson.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any, Final, NoReturn

import orjson

from runner.limits import MAX_CHUNK_DEPTH, MAX_COUNTED_TOKENS, MAX_ERROR_TEXT_CHARS
from runner.outcome import Usage

DONE: Final = b"[DONE]"
"""What ends a stream of chunks in the place of an object."""


_SHALLOW_BYTES: Final = 2 * MAX_CHUNK_DEPTH
"""A level takes two bytes at least: nearly all chunks are known to be shallow by their length."""


class MalformedChunk(Exception):
    """Raised when a chunk or a body is not what the API sends; the message says how, without its content."""


class StreamError(Exception):
    """Raised when the server reports an error inside a 200 answer."""

    def __init__(self, error: Any) -> None:
        super().__init__("the server reported an error inside the stream")
        self.error = error
        """What it reported: the API's error object, or whatever stands in its place. orjson can write it."""


class Raw(dict[str, Any]):
    """An object whose strings may hold lone surrogates."""


def parse(name: str, data: bytes) -> dict[str, Any] | None:
    """The object in an event's data, `Raw` where `clean` is needed, or None for [DONE] and a blank keep-alive.

    Raises MalformedChunk, and StreamError for an event that is named `error`.
    """
    if data == DONE and name != "error":  # to let orjson fail at it costs as much as five chunks
        return None
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        if name == "error":
            raise StreamError(data.decode("utf-8", "replace")[:MAX_ERROR_TEXT_CHARS]) from None
        if data.startswith(DONE) or not data.strip():
            return None
        value = _load_leniently(data)
    if len(data) > _SHALLOW_BYTES and _is_deep(data, value):
        raise MalformedChunk(f"JSON nested deeper than {MAX_CHUNK_DEPTH} levels")
    if name == "error":
        raise_error(value)
    if not isinstance(value, dict):
        raise MalformedChunk(f"a chunk that is no object but {_KINDS.get(type(value), 'a number')}")
    return value


_KINDS: dict[type, str] = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}


def raise_error(value: Any) -> NoReturn:
    """Raises StreamError with the error object in this one, or with all of it where it is the error itself."""
    error = value.get("error") if isinstance(value, dict) else None
    raise StreamError(clean(value if error is None else error))


def _load_leniently(data: bytes) -> Any:
    try:
        value = json.loads(data.decode())
    except RecursionError:
        raise MalformedChunk("JSON nested too deeply") from None
    except UnicodeDecodeError:
        raise MalformedChunk("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise MalformedChunk(f"not JSON: {error.msg} at character {error.pos}") from None
    except ValueError:  # an integer of more digits than int() takes
        raise MalformedChunk("a number that is too long") from None
    return Raw(value) if isinstance(value, dict) else value


def _is_deep(data: bytes, value: Any) -> bool:
    if data.count(b"[") + data.count(b"{") <= MAX_CHUNK_DEPTH:
        return False
    level = [value]
    for _ in range(MAX_CHUNK_DEPTH + 1):
        level = [child for node in level if isinstance(node, dict | list) for child in _children(node)]
        if not level:
            return False
    return True


def _children(node: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return node.values() if isinstance(node, dict) else node


# ── Cleaning ─────────────────────────────────────────────────────────────────────────────────────────────────────


def clean(value: Any) -> Any:
    """A copy that orjson can write and that reads back equal: see the table in `runner.accumulate`."""
    if isinstance(value, str):
        return mend(value)
    if isinstance(value, dict):
        return {mend(key): clean(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -(1 << 63) <= value < 1 << 64 else _finite(_as_float(value))
    return _finite(value) if isinstance(value, float) else value


def mend(text: str) -> str:
    """Joins surrogate pairs whose halves have met; a half that is alone becomes U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


# ── Usage ────────────────────────────────────────────────────────────────────────────────────────────────────────


def read_usage(value: Any) -> Usage | None:
    """Any API's `usage` object in the one vocabulary; None where it isn't one that can be trusted.

    Embeddings count no output: where only the total stands beside the input, the rest of it is output.
    """
    if not isinstance(value, dict):
        return None
    given = _count(value, "prompt_tokens", "input_tokens")
    if given is None:
        return None
    made = _count(value, "completion_tokens", "output_tokens")
    if made is None:
        total = _count(value, "total_tokens")
        if total is None or total < given:
            return None
        made = total - given
    cached = _part(given, value, "cached_tokens", "prompt_tokens_details", "input_tokens_details")
    reasoning = _part(made, value, "reasoning_tokens", "completion_tokens_details", "output_tokens_details")
    return Usage(given, made, cached, reasoning)


def _count(value: dict[str, Any], *names: str) -> int | None:
    for name in names:
        count = value.get(name)
        if type(count) is int and 0 <= count <= MAX_COUNTED_TOKENS:
            return count
    return None


def _part(whole: int, value: dict[str, Any], name: str, *groups: str) -> int:
    for group in groups:
        details = value.get(group)
        if isinstance(details, dict):
            return min(_count(details, name) or 0, whole)
    return 0
