"""The ways in which a known secret may stand in a text. Pure.

By its length:

- 8 characters and more: literally, all in capitals or all in small letters, and as it looks percent-encoded,
  JSON-escaped (once or twice), HTML-escaped, in a Python repr of text or bytes, in hexadecimal and in base64, alone or
  in the middle of something longer (`user:secret` of Basic credentials); not with some letters escaped and others left
  as no encoder does it, nor with anything between its letters;
- 4 to 7 with a digit or a sign in them: literally, where no letter or digit touches them: "k-12" is not to be cut out
  of "k-120";
- 4 to 7 letters, and less than 4 of anything: not at all. Such a value is a placeholder ("none", "EMPTY", "dummy"), and
  ordinary text has it.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator
from typing import Final, NamedTuple
from urllib.parse import quote, quote_plus

MIN_SECRET_CHARS: Final = 4
"""A shorter one is ignored."""
MIN_ENCODED_CHARS: Final = 8
"""From here on a secret is looked for in its encoded forms too."""


class Form(NamedTuple):
    """One way in which a secret may stand in a text."""

    text: str
    pattern: str  # a regular expression for it, with what goes with it


def forms_of(secret: str) -> Iterator[Form]:
    """Every form that is looked for; none of what is no secret."""
    if len(secret) < MIN_ENCODED_CHARS:
        if len(secret) >= MIN_SECRET_CHARS and not secret.isalpha():
            yield Form(secret, rf"(?<![^\W_]){re.escape(secret)}(?![^\W_])")
        return
    data = secret.encode("utf-8", "surrogatepass")
    # Bytes that were taken for Latin-1 on the way, as header values are, look like another text.
    texts = {form for spelt in (secret, data.decode("latin-1")) for form in _spellings(spelt)}
    texts |= {secret.upper(), secret.lower(), data.hex(), data.hex().upper(), repr(data)[2:-1]}
    for text in texts | set(_percent_encoded(data)):
        yield Form(text, re.escape(text))
    for text in _base64_cores(data):
        # The characters round the core belong half to the secret: they go with it.
        yield Form(text, rf"[A-Za-z0-9+/_-]?{re.escape(text)}[A-Za-z0-9+/_-]?={{0,2}}")


def _spellings(secret: str) -> Iterator[str]:
    """As it stands in text, JSON, JSON inside of JSON, Python and JavaScript literals and HTML."""
    written = {json.dumps(secret, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False)}
    # Some writers escape the slash, some what HTML would take for its own, some all but letters and digits, or all.
    written |= {form.replace("/", "\\/") for form in written}
    for unsafe in ("[<>&]", "[<>&'+]", "[^A-Za-z0-9]", r"[^\w]", "(?s:.)"):
        written |= {_escaped(secret, unsafe, to) for to in _ESCAPES}
    written |= {json.dumps(form)[1:-1] for form in written} | {json.dumps(html.escape(secret))[1:-1]}
    pages = {html.escape(secret), html.escape(secret, quote=False), html.escape(secret).replace("&#x27;", "&#39;")}
    yield from {secret, repr(secret)[1:-1]} | written | pages


_ESCAPES: Final = ("\\u{:04x}", "\\u{:04X}", "\\x{:02x}", "\\x{:02X}", "&#{};", "&#x{:x};", "&#x{:X};")


def _escaped(secret: str, unsafe: str, spelt: str) -> str:
    """The inside of a JSON string that spells out the unsafe characters, and escapes others where it must."""
    spellings = {letter: json.dumps(letter)[1:-1] for letter in set(secret)}
    spellings |= {letter: spelt.format(ord(letter)) for letter in spellings if re.match(unsafe, letter)}
    return "".join(map(spellings.__getitem__, secret))


def _percent_encoded(data: bytes) -> Iterator[str]:
    """As the encoders at large leave different signs alone: Python's, JavaScript's, those of paths and of queries."""
    quoted = {quote(data, safe=safe) for safe in ("", "/", "!'()*", "!$&'()*+,;=:@", "!$&'()*+,;=:@/", "!$'()*,;:@/?")}
    quoted |= {quote_plus(data), "".join(f"%{byte:02X}" for byte in data)}
    quoted |= {form.lower() for form in quoted}  # names of media types and hosts are made so
    quoted |= {re.sub("%..", lambda match: match[0].lower(), form) for form in quoted}
    yield from quoted | {form.replace("%", "%25") for form in quoted}


def _base64_cores(data: bytes) -> Iterator[str]:
    """What base64 makes of the data wherever it stands in something longer: six bits a character, three offsets."""
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + data).decode()
        core = encoded[-(-8 * offset // 6) : 8 * (offset + len(data)) // 6]
        yield core.translate({ord("+"): "-", ord("/"): "_"})
        yield from {core, quote(core, safe=""), quote(quote(core, safe="")), core.replace("/", "\\/")}
