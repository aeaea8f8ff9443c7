"""Text of models and users → what may be shown on a terminal. Pure."""

from __future__ import annotations

import re
from typing import Final

# C0 without tab and newline, DEL, C1 (which some terminals obey), bidi overrides and isolates, lone surrogates.
_UNSAFE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def for_terminal(text: str) -> str:
    """The text with everything that could move a cursor, ring a bell or reorder it spelt out."""
    return _UNSAFE.sub(
        lambda match: f"\\x{ord(match[0]):02x}" if match[0] < "\u0100" else f"\\u{ord(match[0]):04x}", text
    )


def for_line(text: str) -> str:
    """The same on one line."""
    return for_terminal(text).replace("\n", "\\n").replace("\t", "\\t")
