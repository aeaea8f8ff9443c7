"""What a mutant is: a mistake, made by replacing exact pieces of the source, and the tests that must see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Edit(NamedTuple):
    """A piece of the source, as it stands there, and what replaces it."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Mutant:
    """One mistake."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    """Those that must see it; one that turns red is enough."""
