"""The parts that the pages of a load test are made of: the page itself, tables and lists of facts. Pure.

The head's content security policy allows the one style sheet and the one script of this package, by their hashes, and
nothing else. Every text passes `markup`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from functools import cache
from importlib import resources
from itertools import zip_longest
from typing import Final, NamedTuple

from runner.load.markup import Markup, element

POLICY: Final = "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'"


class Cell(NamedTuple):
    """What a table shows and what it sorts by; `by` None stays at the end."""

    shown: str
    by: float | str | None = None
    name: str | None = "n"


def page(title: str, body: Markup) -> str:
    """A page of this look: style, script, and the policy that lets nothing else in."""
    style, script = _resource("report.css"), _resource("report.js")
    policy = f"{POLICY}; style-src {_hash(style)}; script-src {_hash(script)}"
    head = element(
        "head",
        None,
        element("meta", {"charset": "utf-8"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("title", None, title),
        element("link", {"rel": "icon", "href": "data:,"}),
        element("style", None, style),
    )
    made = element("body", None, element("main", None, body), element("script", None, script))
    return f"<!doctype html>\n{element('html', {'lang': 'en'}, head, made)}\n"


@cache
def _resource(name: str) -> Markup:
    return Markup(resources.files("runner.load").joinpath(name).read_text("utf-8"))


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def table(heads: Iterable[str], rows: Iterable[tuple[str | None, list[Cell]]], *, sortable: bool = True) -> Markup:
    """A table in a box that scrolls by itself. A row is its class and its cells; the first cell is its heading."""
    rows = list(rows)
    names = [cell.name for cell in rows[0][1][1:]] if rows else []
    first, *others = heads
    top = [element("th", {"scope": "col"}, first)]
    top += [
        element("th", {"scope": "col", "class": name and "n"}, head)
        for head, name in zip_longest(others, names[: len(others)])
    ]
    body = [
        element("tr", {"class": name}, *(_cell(cell, heading=not i) for i, cell in enumerate(cells)))
        for name, cells in rows
    ]
    whole = element(
        "table",
        {"class": "sortable" if sortable else None},
        element("thead", None, element("tr", None, *top)),
        element("tbody", None, *body),
    )
    return element("div", {"class": "scroll"}, whole)


def _cell(cell: Cell, *, heading: bool) -> Markup:
    by = f"{cell.by!r}" if isinstance(cell.by, int | float) else cell.by
    if heading:
        return element("th", {"scope": "row", "data-v": by}, cell.shown)
    return element("td", {"class": cell.name, "data-v": by}, cell.shown)


def facts(rows: Iterable[tuple[str, str]]) -> Markup:
    """Names and texts."""
    made = [element("tr", None, element("th", {"scope": "row"}, n), element("td", None, t)) for n, t in rows]
    return element("div", {"class": "scroll"}, element("table", {"class": "facts"}, element("tbody", None, *made)))
