"""What may be spent holds for a whole test, not for each of its starts."""

from __future__ import annotations

from runner.load.budget import Budget


def test_without_a_limit_nothing_is_too_much():
    assert Budget(None, 1e9).overdrawn(1e9) is None


def test_what_was_spent_before_counts_and_is_named():
    budget = Budget(1.0, 0.75)
    assert budget.overdrawn(0.24) is None
    assert budget.overdrawn(0.25) == "1 spent, 0.75 of it by earlier starts (--max-cost 1)"


def test_the_first_start_names_no_earlier_one():
    assert Budget(0.001).overdrawn(0.0012345) == "0.001234 spent (--max-cost 0.001)"
