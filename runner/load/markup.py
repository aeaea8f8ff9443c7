"""HTML and SVG that is safe by construction: whatever is not Markup is escaped for where it stands. Pure.

Text of models, users and servers is spelt out as on a terminal (control codes, bidi overrides), then escaped; it only
ever becomes text or a quoted attribute, never a tag, a URL, a style or a script.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Final

from runner.escape import for_terminal

_VOID: Final = frozenset({"br", "link", "meta"})
Attributes = Mapping[str, "str | float | None"]


class Markup(str):
    """Markup already: it is put where it stands without another escape."""

    __slots__ = ()


def text(value: str) -> Markup:
    """Any text as markup that shows it."""
    return value if isinstance(value, Markup) else Markup(escape(for_terminal(value), quote=True))


def join(parts: Iterable[str]) -> Markup:
    """Parts one after the other, each escaped unless it is Markup."""
    return Markup("".join(text(part) for part in parts))


def element(name: str, attributes: Attributes | None = None, *children: str) -> Markup:
    """`<name attribute="…">children</name>`. An attribute that is None is left out; names are the program's own."""
    written = "".join(f' {key}="{_value(value)}"' for key, value in (attributes or {}).items() if value is not None)
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def _value(value: str | float) -> str:
    if isinstance(value, str):
        return text(value)
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
