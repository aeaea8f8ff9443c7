"""Usage × price. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from runner.outcome import Usage

if TYPE_CHECKING:
    from runner.settings import Price

COST_UNKNOWN = "an answer's model has no price, or the server named no usage, so --max-cost can't be kept"
"""Why a run or a test ends that is to keep a cost."""
_PER = 1_000_000


def price_of(model: str | None, prices: Mapping[str, Price]) -> Price | None:
    """The price whose name is the longest that `model` begins with: "gpt-4o-mini" also prices its dated snapshots."""
    names = [name for name in prices if model is not None and model.startswith(name)]
    return prices[max(names, key=len)] if names else None


def cost_of(
    usage: Usage | None, model: str | None, prices: Mapping[str, Price], *, tier: str | None = None
) -> float | None:
    """What an answer cost, in the currency of the prices; None where usage or price is unknown.

    `tier` is the service tier that the answer names: the one that served it, whichever was asked for. One without a
    price of its own costs what the default does, but for priority, which is dearer: its cost is unknown.
    """
    price = price_of(model, prices) if prices else None
    if price is not None and tier in ("flex", "priority"):
        price = getattr(price, tier) or (price if tier == "flex" else None)
    if usage is None or price is None:
        return None
    cached_price = price.input if price.cached_input is None else price.cached_input
    fresh = usage.input_tokens - usage.cached_tokens
    return (fresh * price.input + usage.cached_tokens * cached_price + usage.output_tokens * price.output) / _PER
