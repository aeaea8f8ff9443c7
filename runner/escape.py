"""Text of models and users → what may be shown on a terminal. Pure.

What could move a cursor, ring a bell, change colours or reorder what is read is spelt out: C0 controls but tab and
newline (ESC and BEL among them), DEL, C1 (which some terminals obey), bidi overrides and isolates (CVE-2021-42574),
and lone surrogates, which no stream can encode. All else, right-to-left scripts included, is left as it is.

Each character is judged alone, so text may be given piece by piece. Accepted: an escape looks like the same characters
written out by the model; this is for reading, results.jsonl has the text itself.
"""

from __future__ import annotations

import re
from typing import Final

_UNSAFE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BREAKS: Final = {"\n": "\\n", "\t": "\\t", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_BREAK: Final = re.compile("[\n\t\u2028\u2029]")


def for_terminal(text: str) -> str:
    r"""The text with every unsafe character as `\xNN` or `\uNNNN`; lines stay lines."""
    return _UNSAFE.sub(_spelt_out, text)


def for_line(text: str) -> str:
    r"""The same on one line: newlines, tabs and the Unicode line separators become `\n`, `\t`, `\u2028`, `\u2029`."""
    return _BREAK.sub(lambda match: _BREAKS[match[0]], for_terminal(text))


def _spelt_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
