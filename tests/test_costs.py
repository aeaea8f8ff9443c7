from __future__ import annotations

from runner.costs import cost_of, price_of
from runner.outcome import Usage
from runner.settings import Price, TierPrice

PRICES = {"m": Price(input=1, output=2), "m-mini": Price(input=10, output=20, cached_input=5)}


def test_the_longest_name_that_fits_counts():
    assert price_of("m-mini-2026-01-01", PRICES) is PRICES["m-mini"]
    assert price_of("m-large", PRICES) is PRICES["m"]
    assert price_of("other", PRICES) is None
    assert price_of(None, PRICES) is None


def test_cached_tokens_are_priced_apart():
    usage = Usage(input_tokens=1_000_000, cached_tokens=400_000, output_tokens=500_000)
    assert cost_of(usage, "m-mini", PRICES) == 0.6 * 10 + 0.4 * 5 + 0.5 * 20
    assert cost_of(usage, "m", PRICES) == 1 + 1


def test_an_unknown_price_or_usage_is_no_cost_rather_than_zero():
    assert cost_of(None, "m", PRICES) is None
    assert cost_of(Usage(1, 1), "other", PRICES) is None


def test_the_tier_that_served_the_answer_is_what_is_paid():
    prices = {"m": Price(input=4, output=8, flex=TierPrice(input=2, output=4))}
    usage = Usage(1_000_000, 1_000_000)
    costs = {tier: cost_of(usage, "m", prices, tier=tier) for tier in (None, "default", "flex", "priority", "new")}
    assert costs == {None: 12, "default": 12, "flex": 6, "priority": None, "new": 12}
    assert cost_of(usage, "m", PRICES, tier="flex") == 3  # no price of its own: the default's, which is no less
