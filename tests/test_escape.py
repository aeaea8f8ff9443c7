from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.escape import for_line, for_terminal


@given(st.text(st.characters()))
def test_nothing_that_moves_a_cursor_gets_through(text):
    shown = for_line(text)
    shown.encode()  # no lone surrogate
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert len(shown.splitlines()) <= 1


@given(st.text(st.characters()), st.integers(0, 20))
def test_text_may_come_in_pieces(text, at):
    assert for_terminal(text[:at]) + for_terminal(text[at:]) == for_terminal(text)


@pytest.mark.parametrize("text", ["plain", "Straße 日本 שלום 🏞️", "a\tb\nc", "👩‍👩‍👧"])
def test_ordinary_text_of_any_script_is_left_alone(text):
    assert for_terminal(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", "\\x1b[31m"),
        ("\x9b2J", "\\x9b2J"),
        ("\u202e", "\\u202e"),
        ("a\rb", "a\\x0db"),
        ("\ud800", "\\ud800"),
    ],
)
def test_what_is_unsafe_is_spelt_out(text, shown):
    assert for_terminal(text) == shown


def test_a_line_stays_a_line():
    assert for_line("a\nb\tc\u2028d") == "a\\nb\\tc\\u2028d"
