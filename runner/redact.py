"""Secrets out of text that leaves the program in a log, an error record, a manifest or a message. Pure.

Two passes. First the secrets that are known, by length:

- 8 characters and more: literally, and as they look percent-encoded, JSON-escaped, in a Python repr and in base64,
  alone or in the middle of something longer (`user:secret` of Basic credentials);
- 4 to 7: literally, where no letter or digit touches them: "none" is not to be cut out of "nonetheless";
- less than 4: not at all; that is no secret, and every text has it.

Then what looks like a secret by where it stands: `sk-…`, `Bearer …`, `Basic …`, `api-key: …` and its spellings in
headers, JSON and reprs, `…key=` and the like in a URL's query, `//user:password@`. Only the secret is replaced, so a
reader sees where it was. Twice is the same as once.

Accepted: an unknown token after "Bearer" that is a short word of lower-case letters is left; "Bearer Certificates"
loses its second word; a secret that was cut in two before it came here is not found.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import traceback
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import quote, quote_plus

from runner.limits import MAX_REDACTED_DEPTH, MAX_REDACTED_VALUES

REPLACEMENT: Final = "[redacted]"
MIN_SECRET_CHARS: Final = 4
"""A shorter one is ignored."""
MIN_ENCODED_CHARS: Final = 8
"""From here on a secret is looked for in its encoded forms too."""
CUT: Final = "[too large to redact]"
"""Stands for what lies beyond the bounds of `redact_json`."""

_QUOTE: Final = r"""\\*["']?"""
# A header, a JSON member, a keyword argument, or a pair in the repr of a list of raw headers.
_IS: Final = rf"""(?:{_QUOTE}\s*[:=]\s*b?{_QUOTE}|["']\s*,\s*b?["'])"""
# Outside of a header, "bearer" and "basic" are words too: what follows must look like a token, not like prose.
_BEARER: Final = r"(?-i:(?=[a-z]*[A-Z0-9._~+/=-]|[a-z]{20}))[a-z0-9._~+/=-]{8,}"
_BASIC: Final = r"(?=[a-z+/]*[0-9=])[a-z0-9+/]{12,}={0,2}"
_SHAPES: Final = re.compile(
    rf"""
      ((?:authorization{_IS}(?:[a-z]+\s+)?                    # whatever the scheme
         |api[-_]?key{_IS}                                    # api-key, x-api-key, openai_api_key, apikey
         |[?&][\w.-]{{0,40}}(?:key|token|secret|signature|password|sig)=
       )(?=[^\s"'&,;<>\\]{{4}}))[^\s"'&,;<>\\]+
    | (\bbearer\s+){_BEARER}
    | (\bbasic\s+){_BASIC}
    | (//[^/\s:@"'<>]*:)[^/\s"'<>]+(?=@)                      # the password of a URL
    | (?<![^\W_])sk-[a-z0-9_-]{{8,}}
    """,
    re.IGNORECASE | re.VERBOSE,
)
# One of these is in every text that _SHAPES can match, and looking for them takes a fraction of its time.
_HINTS: Final = (
    "sk-", "bearer", "basic", "authorization", "apikey", "api-key", "api_key",
    "key=", "token=", "secret=", "signature=", "password=", "sig=",
)  # fmt: skip


class Redactor:
    """Replaces secrets. Made once a run; it holds them in patterns, so it has no repr that shows them."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets if len(secret) >= MIN_SECRET_CHARS for form in _forms(secret)}
        # The longest first: an encoded form may begin with the plain one, one secret with another.
        ordered = sorted(forms, key=lambda form: (-len(form.text), form))
        self._texts = tuple({form.text: None for form in ordered})
        self._known = re.compile("|".join(form.pattern for form in ordered))

    def redact(self, text: str) -> str:
        """The text without secrets."""
        # `in` looks for a form some fifty times faster than the expression passes over the text.
        if any(form in text for form in self._texts):
            text = self._known.sub(REPLACEMENT, text)
        lowered = text.lower()
        if any(hint in lowered for hint in _HINTS) or ("//" in text and "@" in text):
            return _SHAPES.sub(_keep_place, text)
        return text

    def redact_json(self, value: Any) -> Any:
        """A copy of a JSON-able value without secrets, keys included.

        Tuples and sets become lists, bytes text; what else isn't JSON-able becomes its redacted `str`, so that a later
        `default=str` brings nothing back. Structures beyond MAX_REDACTED_DEPTH or MAX_REDACTED_VALUES, and those that
        hold themselves, are cut there.
        """
        return _Walk(self).copy(value)


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


def _keep_place(match: re.Match[str]) -> str:
    return (match[match.lastindex] if match.lastindex else "") + REPLACEMENT


# ── Forms of a known secret ──────────────────────────────────────────────────────────────────────────────────────────


class _Form(NamedTuple):
    """One way in which a secret may stand in a text."""

    text: str
    pattern: str  # a regular expression for it, with what goes with it


def _forms(secret: str) -> Iterator[_Form]:
    if len(secret) < MIN_ENCODED_CHARS:
        yield _Form(secret, rf"(?<![^\W_]){re.escape(secret)}(?![^\W_])")
        return
    data = secret.encode("utf-8", "surrogatepass")
    quoted = {quote(data, safe=safe) for safe in ("", "/")} | {quote_plus(data)}
    lower_hex = {re.sub("%..", lambda match: match[0].lower(), form) for form in quoted}
    escaped = {json.dumps(secret, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}
    slashed = {form.replace("/", "\\/") for form in escaped}
    for text in {secret, repr(secret)[1:-1]} | quoted | lower_hex | escaped | slashed:
        yield _Form(text, re.escape(text))
    for text in _base64_cores(data):
        # The characters round the core belong half to the secret: they go with it.
        yield _Form(text, rf"[A-Za-z0-9+/_-]?{re.escape(text)}[A-Za-z0-9+/_-]?={{0,2}}")


def _base64_cores(data: bytes) -> Iterator[str]:
    """What base64 makes of the data wherever it stands in something longer: six bits a character, three offsets."""
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + data).decode()
        core = encoded[-(-8 * offset // 6) : 8 * (offset + len(data)) // 6]
        yield core
        yield core.translate({ord("+"): "-", ord("/"): "_"})


# ── JSON-able values ─────────────────────────────────────────────────────────────────────────────────────────────────


class _Walk:
    """Copies a value without recursion: a hostile answer may be deeper than the stack."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._todo: list[tuple[Any, Any, int]] = []  # (source, its empty copy, depth)
        self._left = MAX_REDACTED_VALUES

    def copy(self, value: Any) -> Any:
        copied = self._begin(value, 0)
        while self._todo:
            source, target, depth = self._todo.pop()
            if isinstance(target, dict):
                for key, item in source.items():
                    name = self._redactor.redact(key) if isinstance(key, str) else key
                    target[name] = self._begin(item, depth + 1)
            else:
                target.extend(self._begin(item, depth + 1) for item in source)
        return copied

    def _begin(self, value: Any, depth: int) -> Any:
        """The copy of a leaf, or an empty container whose contents are to be done."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return self._redactor.redact(value)
        if not isinstance(value, dict | list | tuple | set | frozenset):
            return self._other(value)
        self._left -= 1 + len(value)
        if self._left < 0 or depth > MAX_REDACTED_DEPTH:
            return CUT
        target: Any = {} if isinstance(value, dict) else []
        self._todo.append((value, target, depth))
        return target

    def _other(self, value: Any) -> str:
        if isinstance(value, bytes | bytearray):
            return self._redactor.redact(bytes(value).decode("utf-8", "replace"))
        return self._redactor.redact(str(value))
