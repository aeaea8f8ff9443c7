"""Secrets out of text that leaves the program in a log, an error record, a manifest or a message. Pure.

Two passes. First the secrets that are known, in every form of `spellings`.

Then what looks like a secret by where it stands: `sk-…`, `Bearer …`, `Basic …`, `api-key: …` and its spellings in
headers, JSON and reprs, `…key=` and the like in a URL's query, `//user:password@`. Only the secret is replaced, so a
reader sees where it was.

A cut may leave the beginning of a secret, which looks like nothing. So whoever shortens a text does it by `shortened`,
which marks the end, and before a mark as much is left out as might be the beginning of a secret: of a known one, be it
a letter, or of what looks like one with anything behind it.

A failed job's half answer is redacted in the event loop, and may have megabytes. So expressions are tried only where a
literal that each of their matches contains was found: ten megabytes of prose take a twentieth of a second.

Accepted: an unknown token after "Bearer" that is a short word of lower-case letters is left; "Bearer Certificates"
loses its second word; a shortened text may lose its last letters where they are the first of a key; text made of
little but such literals goes at the speed of the expressions, a tenth of a second for a megabyte.
"""

from __future__ import annotations

import logging
import re
import traceback
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import chain, islice
from typing import Any, AnyStr, Final

import orjson

from runner.limits import MAX_REDACTED_DEPTH, MAX_REDACTED_VALUES
from runner.spellings import MIN_SECRET_CHARS, forms_of

REPLACEMENT: Final = "[redacted]"
CUT: Final = "[too large to redact]"
"""Stands for what lies beyond the bounds of `redact_json`."""
MORE: Final = "…"
"""The end of a text that was shortened."""
_GOES_ON: Final = "aA0" * 8 + "@"
"""In the place of what was cut off: the longest token that an expression asks for, and the end of a password."""

_QUOTE: Final = r"""\\*["']?"""
# A header, a JSON member, a keyword argument, or a pair in the repr of a list of raw headers.
_IS: Final = rf"""(?:{_QUOTE}\s*[:=]\s*b?{_QUOTE}|["']\s*,\s*b?["'])"""
_NAME_CHARS: Final = 40  # of a name in a query, before its `key=`
# Outside of a header, "bearer" and "basic" are words too: what follows must look like a token, not like prose.
_BEARER: Final = r"(?-i:(?=[a-z]*[A-Z0-9._~+/=-]|[a-z]{20}))[a-z0-9._~+/=-]{8,}"
_BASIC: Final = r"(?=[a-z+/]*[0-9=])[a-z0-9+/]{12,}={0,2}"
_SHAPES: Final = re.compile(
    rf"""
      ((?:authorization{_IS}(?:[a-z]+\s+)?                    # whatever the scheme
         |api[-_]?key{_IS}                                    # api-key, x-api-key, openai_api_key, apikey
         |[?&][\w.-]{{0,{_NAME_CHARS}}}(?:key|token|secret|signature|password|sig)=
       )(?=[^\s"'&,;<>\\]{{4}}))[^\s"'&,;<>\\]+
    | (\bbearer\s+){_BEARER}
    | (\bbasic\s+){_BASIC}
    | (//[^/\s:@"'<>]*:)[^/\s"'<>]+(?=@)                      # the password of a URL
    | (?<![^\W_])sk-[a-z0-9_-]{{8,}}
    """,
    re.IGNORECASE | re.VERBOSE,
)
# Every match of _SHAPES begins with a word, holds a name after ? or &, or begins with // before an @.
_WORDS: Final = (b"bearer", b"basic", b"authorization", b"apikey", b"api-key", b"api_key")
# "risk-free", "desk-bound" and plain links are most of what would be looked at in vain. A literal that leads is fast.
_KEY: Final = re.compile(rb"sk-(?<![a-z0-9]sk-)(?=[a-z0-9_-]{8})")
_USER: Final = re.compile(rb"//(?=[^/\s:@\"'<>]*:)")
_NAMES: Final = (b"key=", b"token=", b"secret=", b"signature=", b"password=", b"sig=")
FOLDED: Final = {"İ": "i", "ı": "i", "ſ": "s", "\u212a": "k"}
"""What an expression that ignores case takes for an ASCII letter, beside that letter."""
_FOLDED_UTF8: Final = tuple(letter.encode() for letter in FOLDED)
_SPARSE: Final = 16
"""Where there is a place to look at in fewer characters than this, one pass over all of them is quicker."""


def shortened(text: str, most: int) -> str:
    """The text in at most so many characters. One as long as that may have been cut before, and counts as cut."""
    return text if len(text) < most else text[: most - 1] + MORE


class Redactor:
    """Replaces secrets. Made once a run; it holds them in patterns, so it has no repr that shows them."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets for form in forms_of(secret)}
        # The longest first: an encoded form may begin with the plain one, one secret with another.
        ordered = sorted(forms, key=lambda form: (-len(form.text), form))
        self._patterns = "|".join(form.pattern for form in ordered)
        self._sorted = sorted({form.text for form in forms})
        self._longest = max(map(len, self._sorted), default=0)
        self._texts: dict[str, list[str]] = {}
        for form in ordered:
            self._texts.setdefault(_mark(form.text), []).append(form.text)
        self._in_json = {_json_inside(mark): [*map(_json_inside, texts)] for mark, texts in self._texts.items()}

    @cached_property
    def _known(self) -> re.Pattern[str]:
        """Any form. Few runs need it, and for a key of 164 characters it takes 30 ms."""
        return re.compile(self._patterns)

    def redact(self, text: str) -> str:
        """The text without secrets."""
        if len(text) < MIN_SECRET_CHARS:
            return text
        if text.endswith(MORE):
            return self._redact_cut(text.removesuffix(MORE)) + MORE
        return self._redact_whole(text)

    def _redact_cut(self, text: str) -> str:
        """What was cut off may have been the rest of a secret."""
        starts = range(max(0, len(text) - self._longest), len(text))
        end = next((start for start in starts if self._begins(text[start:])), len(text))
        shown = self._redact_whole(text[:end] + _GOES_ON)
        kept = shown.removesuffix(_GOES_ON)
        return kept if kept != shown else shown.removesuffix("@")

    def _begins(self, text: str) -> bool:
        """Whether a form of a known secret begins so."""
        at = bisect_left(self._sorted, text)
        return at < len(self._sorted) and self._sorted[at].startswith(text)

    def _redact_whole(self, text: str) -> str:
        # `in` looks for a form some fifty times faster than an expression passes over the text.
        found = [form for mark, forms in self._texts.items() if mark in text for form in forms if form in text]
        if found:
            # A form of base64 takes with it the character before.
            starts = (max(0, at - back) for form in found for at in _places(text, form) for back in (0, 1))
            text = _sub(self._known, lambda match: REPLACEMENT, text, starts)
        return _sub(_SHAPES, _keep_place, text, _shape_starts(text))

    def redact_json(self, value: Any) -> Any:
        """A JSON-able value without secrets, keys included: itself where it has none, or else a copy.

        In a copy tuples and sets become lists, bytes text; what else isn't JSON-able becomes its redacted `str`, so
        that a later `default=str` brings nothing back. What is deeper than MAX_REDACTED_DEPTH or larger than
        MAX_REDACTED_VALUES is cut there, as is what holds itself.
        """
        if isinstance(value, str):
            return self.redact(value)
        data = _json_of(value)
        # Long strings are quick to walk over; of many short ones the walk takes seconds, and few of them are suspect.
        if data is None or data.count(b'"') * _SHORT_CHARS < len(data):
            return _Walk(self).copy(value)
        redacted = self._redacted_strings(data)
        if redacted is None:
            return _Walk(self).copy(value)
        return orjson.loads(_spliced(data, redacted)) if redacted else value

    def _redacted_strings(self, data: bytes) -> dict[int, tuple[int, bytes]] | None:
        """The strings of a JSON text that hold a secret: start → end and what to write. None where it can't be told."""
        redacted: dict[int, tuple[int, bytes]] = {}
        lowered = data.lower()
        known = (form for mark, forms in self._in_json.items() if mark in data for form in forms)
        for searched, needle in chain(((data, form) for form in known), ((lowered, word) for word in _needles(data))):
            at = searched.find(needle)
            while at >= 0:
                start, end = _literal_at(data, at)
                text = _text_of(data[start:end]) if needle.strip(_BARE) else None
                if text is None:
                    return None
                if (without := self.redact(text)) != text:
                    redacted[start] = end, orjson.dumps(without)
                at = searched.find(needle, end)
        return redacted


class RedactingFilter(logging.Filter):
    """Redacts a log record in place: message and arguments, traceback, stack, and the fields of `extra`.

    On a handler it covers all that handler writes. Arguments are merged into the message, and the traceback is
    formatted here: a handler behind it can't format either anew from what held the secret.
    """

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def filter(self, record: logging.LogRecord) -> bool:
        """Always True: the record stays, its secrets don't."""
        redact = self._redactor.redact
        record.msg, record.args = redact(_message(record)), None
        if record.exc_info and not record.exc_text:
            record.exc_text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
        record.exc_info = None
        if record.exc_text:
            record.exc_text = redact(record.exc_text)
        if record.stack_info:
            record.stack_info = redact(record.stack_info)
        for name in record.__dict__.keys() - STANDARD_FIELDS:
            record.__dict__[name] = self._redactor.redact_json(record.__dict__[name])
        return True


STANDARD_FIELDS: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
"""Attributes of every log record; the others came in by `extra`."""


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # arguments that don't fit, or whose __str__ raises anything: a filter must not raise into a run
        return f"{record.msg!s} (its arguments can't be shown)"


# ── Expressions, tried only where they may match ─────────────────────────────────────────────────────────────────────


def _sub(pattern: re.Pattern[str], replaced: Callable[[re.Match[str]], str], text: str, starts: Iterator[int]) -> str:
    """What `pattern.sub` gives. `starts` holds, in any order, all places where a match may begin."""
    most = len(text) // _SPARSE
    spots = list(islice(starts, most + 1))
    if len(spots) > most:
        return pattern.sub(replaced, text)
    pieces, end = [], 0
    for start in sorted(spots):
        if start >= end and (match := pattern.match(text, start)):
            pieces += [text[end:start], replaced(match)]
            end = match.end()
    return "".join([*pieces, text[end:]])


def _places(text: AnyStr, part: AnyStr) -> Iterator[int]:
    """Where the part stands in the text, overlaps included."""
    at = text.find(part)
    while at >= 0:
        yield at
        at = text.find(part, at + 1)


def _shape_starts(text: str) -> Iterator[int]:
    """Where a match of _SHAPES may begin."""
    plain = _folded(text)
    if b"sk-" in plain:
        yield from (match.start() for match in _KEY.finditer(plain))
    for word in _WORDS:
        if word in plain:
            yield from _places(plain, word)
    if b"=" in plain:
        for name in _NAMES:
            for at in _places(plain, name):
                first = max(0, at - _NAME_CHARS - 1)
                start = max(text.rfind("?", first, at), text.rfind("&", first, at))
                if start >= 0:
                    yield start
    if b"@" in plain:
        yield from (match.start() for match in _USER.finditer(plain))


def _folded(text: str) -> bytes:
    """The text in lower case, a byte a character: a place in one is the same place in the other."""
    if not text.isascii():
        for letter, plain in FOLDED.items():
            text = text.replace(letter, plain)
    return text.encode("ascii", "replace").lower()


def _keep_place(match: re.Match[str]) -> str:
    return (match[match.lastindex] if match.lastindex else "") + REPLACEMENT


def _mark(form: str) -> str:
    """What begins its first escape: a search for it stands for those for all forms that have it."""
    escape = re.search(r"[\\%&].{0,4}", form, re.DOTALL)
    return escape[0] if escape else ""


# ── JSON-able values ─────────────────────────────────────────────────────────────────────────────────────────────────

_PLAIN_JSON: Final = (
    orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
)
"""What may look different in its `str` is left to the walk."""
_SHORT_CHARS: Final = 32
_LITERAL_END: Final = re.compile(rb'(?:[^"\\]++|\\.)*+"', re.DOTALL)
_CUT_END: Final = f'{MORE}"'.encode()
_BARE: Final = b"[]{},:+-.0123456789Etruefalsn"  # what may stand outside of the strings of a JSON text


def _json_of(value: Any) -> bytes | None:
    """The value's JSON, in which every string can be found; None where that isn't sure."""
    try:
        data = orjson.dumps(value, option=_PLAIN_JSON)
    except TypeError:
        return None
    return None if not data.isascii() and any(letter in data for letter in _FOLDED_UTF8) else data


def _json_inside(text: str) -> bytes:
    """What a JSON string that holds the text is sure to hold: it is written character by character."""
    try:
        return orjson.dumps(text)[1:-1]
    except TypeError:  # a lone surrogate: a string that holds it isn't written either
        return b"\xff"


def _needles(data: bytes) -> tuple[bytes, ...]:
    """What every match of _SHAPES holds, in lower case, and none of it what could stand outside of a string."""
    names = _NAMES if b"=" in data else ()
    return (b"sk-", *_WORDS, *names, _CUT_END, *((b"//",) if b"@" in data else ()))


def _text_of(literal: bytes) -> str | None:
    try:
        return str(orjson.loads(literal))
    except orjson.JSONDecodeError:
        return None


def _spliced(data: bytes, replaced: dict[int, tuple[int, bytes]]) -> bytes:
    """The data with other bytes in some places: start → end and the bytes."""
    pieces, last = [], 0
    for start in sorted(replaced):
        end, new = replaced[start]
        pieces += [data[last:start], new]
        last = end
    return b"".join([*pieces, data[last:]])


def _literal_at(data: bytes, at: int) -> tuple[int, int]:
    """Start and end of the string of a JSON text that holds the place; of something else where none does."""
    start = data.rfind(b'"', 0, at)
    while start > 0 and _is_escaped(data, start):
        start = data.rfind(b'"', 0, start)
    end = _LITERAL_END.match(data, start + 1)
    return max(0, start), end.end() if end else len(data)


def _is_escaped(data: bytes, at: int) -> bool:
    first = at
    while data[first - 1 : first] == b"\\":
        first -= 1
    return (at - first) % 2 == 1


class _Walk:
    """Copies a value without recursion: a hostile answer may be deeper than the stack."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._todo: list[tuple[Any, Any, int]] = []  # (source, its empty copy, depth)
        self._left = MAX_REDACTED_VALUES
        self._short: dict[str, str] = {}
        """Keys and tokens come again and again."""

    def copy(self, value: Any) -> Any:
        copied = self._begin(value, 0)
        while self._todo:
            source, target, depth = self._todo.pop()
            if isinstance(target, dict):
                for key, item in source.items():
                    name = self._text(key) if isinstance(key, str) else key
                    target[name] = self._begin(item, depth + 1)
            else:
                target.extend(self._begin(item, depth + 1) for item in source)
        return copied

    def _begin(self, value: Any, depth: int) -> Any:
        """The copy of a leaf, or an empty container whose contents are to be done."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return self._text(value)
        if not isinstance(value, dict | list | tuple | set | frozenset):
            return self._other(value)
        self._left -= 1 + len(value)
        if self._left < 0 or depth > MAX_REDACTED_DEPTH:
            return CUT
        target: Any = {} if isinstance(value, dict) else []
        self._todo.append((value, target, depth))
        return target

    def _text(self, text: str) -> str:
        if len(text) > _SHORT_CHARS:
            return self._redactor.redact(text)
        done = self._short.get(text)
        if done is None:
            done = self._short[text] = self._redactor.redact(text)
        return done

    def _other(self, value: Any) -> str:
        if isinstance(value, bytes | bytearray):
            return self._redactor.redact(bytes(value).decode("utf-8", "replace"))
        return self._redactor.redact(str(value))
