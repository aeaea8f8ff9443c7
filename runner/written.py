"""A record, or the lines of many → what of them counts. Pure.

The fast way back from what this program wrote: only the fields that are counted become objects, the rest is checked to
be JSON and passed over. What isn't exactly of that shape is read the tolerant way, by `read_any` and `of_any`; what
those say decides, and the fast way says the same or nothing.

Accepted: a number beyond the range of a double, in a part that is passed over, makes no damage here. orjson, which
writes the records, can't have written one.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import msgspec
import orjson

from runner.digests import id_keys, unsigned64

Count = Annotated[int, msgspec.Meta(ge=0)]
Digest = Annotated[str, msgspec.Meta(min_length=16, max_length=16)]
_NO_DIGEST: Final = "0" * 16


class Entry(NamedTuple):
    """What a record says of itself."""

    id: str
    digest: int
    ok: bool


class Gaps(msgspec.Struct, gc=False):
    """`runner.icl`, in seconds."""

    p50: float | None = None
    p99: float | None = None
    max: float | None = None


class Tokens(msgspec.Struct, gc=False):
    """`runner.usage`."""

    input_tokens: Count | None = None
    cached_tokens: Count | None = None
    output_tokens: Count | None = None
    reasoning_tokens: Count | None = None


class Repeat(msgspec.Struct, gc=False):
    """One of `runner.retries`."""

    reason: str


class How(msgspec.Struct, gc=False, kw_only=True):
    """`runner`. The fields stand as they are written: that is the order in which they are looked for."""

    attempts: Count = 0
    digest: Digest | None
    queue_s: float | None = None
    limiter_wait_s: float | None = None
    ttft_s: float | None = None
    duration_s: float | None = None
    chunks: Count = 0
    icl: Gaps | None = None
    usage: Tokens | None = None
    cost: float | None = None
    finish: str | None = None
    retries: tuple[Repeat, ...] = ()


class Error(msgspec.Struct, gc=False):
    """`error`."""

    code: str


class Written(msgspec.Struct, gc=False):
    """A record of the shape that `records` gives it."""

    id: str
    error: Error | None
    runner: How


_decode = msgspec.json.Decoder(Written).decode
_Part = TypeVar("_Part", Gaps, Tokens)


class Block(NamedTuple):
    """Some lines, each of which is plainly a record."""

    records: list[Written]
    digests: array[int]  # of what was asked; 0 for a rejected line

    def keys(self) -> array[int]:
        """`id_key` of each id."""
        return id_keys([record.id for record in self.records])


def read(lines: Sequence[bytes]) -> Block | None:
    """The records of some lines; None if one of them isn't plainly a record."""
    try:
        for line in lines:
            if not line.isascii():  # the decoder doesn't look at the text that it passes over
                line.decode()
        records = list(map(_decode, lines))
        digests = bytes.fromhex("".join([record.runner.digest or _NO_DIGEST for record in records]))
    except (ValueError, RecursionError):  # DecodeError and UnicodeDecodeError are ValueErrors
        return None
    # fromhex passes over white space
    return Block(records, unsigned64(digests)) if len(digests) == 8 * len(lines) else None


def read_any(data: bytes) -> tuple[Entry, Mapping[str, Any]] | None:
    """One line, the tolerant way: what it says of itself, and the whole record; None if it isn't a record."""
    try:
        record = orjson.loads(data)
        error, ours, name = record["error"], record["runner"]["digest"], record["id"]
        digest = 0 if ours is None else int(ours, 16)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None
    if not isinstance(name, str) or not 0 <= digest < 1 << 64 or not (error is None or isinstance(error, dict)):
        return None
    return Entry(name, digest, error is None), record


def of_record(record: dict[str, Any]) -> Written:
    """What counts of a record that is in memory; by `of_any` where it isn't plainly of our shape.

    Raises:
        ValueError: as `of_any`.
    """
    try:
        return msgspec.convert(record, Written)
    except msgspec.ValidationError:
        return of_any(record)


def of_any(record: Mapping[str, Any]) -> Written:
    """The same the tolerant way: a field of the wrong type is unknown. Id and digest are left out.

    Raises:
        ValueError: it isn't a record: `error` or `runner` is missing or no object.
    """
    error, runner = record.get("error", ""), record.get("runner")
    if not isinstance(runner, dict) or not (error is None or isinstance(error, dict)):
        raise ValueError("not a record of a run")
    code = None if error is None else error.get("code")
    return Written("", None if error is None else Error(code if isinstance(code, str) else "unknown"), _how(runner))


def _how(runner: dict[str, Any]) -> How:
    return How(
        attempts=_count(runner.get("attempts")) or 0,
        digest=None,
        queue_s=_number(runner.get("queue_s")),
        limiter_wait_s=_number(runner.get("limiter_wait_s")),
        ttft_s=_number(runner.get("ttft_s")),
        duration_s=_number(runner.get("duration_s")),
        chunks=_count(runner.get("chunks")) or 0,
        icl=_part(Gaps, runner.get("icl"), _number),
        usage=_part(Tokens, runner.get("usage"), _count),
        cost=_number(runner.get("cost")),
        finish=_text(runner.get("finish")),
        retries=tuple(_repeats(runner.get("retries"))),
    )


def _part(kind: type[_Part], found: Any, read_field: Callable[[Any], Any]) -> _Part | None:
    if not isinstance(found, dict):
        return None
    return kind(**{name: read_field(found.get(name)) for name in kind.__struct_fields__})


def _number(value: Any) -> float | None:
    return float(value) if type(value) is float or type(value) is int else None


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _repeats(retries: Any) -> list[Repeat]:
    found = retries if isinstance(retries, list) else []
    return [Repeat(str(retry["reason"])) for retry in found if isinstance(retry, dict) and "reason" in retry]
