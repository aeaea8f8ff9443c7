"""Prose that is made up of nothing: the same seed gives the same words. Pure.

An answer begins with a sentence of its own, so that no two are alike, and goes on with a stretch of a common pool,
so that an answer of a million tokens costs a slice and not a million draws. A token is a chunk.
"""

from __future__ import annotations

import random
from functools import lru_cache
from typing import Final

from runner.simulator.profile import token_range

_VOCABULARY: Final = """
the a of and to in that it is was for on as with by at from this but not are or an be which one all their has
when there more out other some time people water light house stone river morning evening letter number winter
summer garden window street paper voice answer question measure pattern signal engine market village forest
silver quiet narrow gentle early later often never always perhaps almost quickly slowly carefully between under
above through across against without because while until before after around toward turns holds keeps carries
follows begins ends moves waits opens closes writes reads counts finds leaves returns gathers spreads grows
falls second third small large bright heavy simple strange ordinary careful steady broken hidden common distant
open table harbor bridge mountain valley island engineer teacher traveler neighbor children machine instrument
record story reason method result example figure balance current surface depth history season journey weather
"""
_WORDS: Final = tuple(_VOCABULARY.split())
_RARE: Final = (
    "café",
    "naïve",
    "façade",
    "Zürich",
    "señor",
    "漢字",
    "東京",
    "Ωmega",
    "привет",
    "🙂",
    "🚀",
    "déjà",
    "½",
    "—",
)
_POOL_TOKENS: Final = 8_192
_REASONING_TOKENS: Final = {"minimal": 4, "low": 8, "medium": 16, "high": 32, "xhigh": 64}


def prose(seed: int, digest: int, count: int) -> list[str]:
    """`count` tokens; joined, they read as sentences. `digest` picks them: 64 bits or more."""
    rng = random.Random(digest)
    tokens = sentence(rng)
    pool, starts = _pool(seed)
    at = starts[digest % len(starts)]
    tokens[0] = tokens[0].strip()
    while len(tokens) < count:
        tokens += pool[at : at + count - len(tokens)]
        at = 0
    del tokens[count:]
    if count > 1 and tokens[-2] not in ".,":
        tokens[-1] = "."
    return tokens


def sentence(rng: random.Random) -> list[str]:
    """One sentence as tokens; the first word brings the space before it."""
    words = [rng.choice(_RARE if rng.random() < 0.04 else _WORDS) for _ in range(rng.randint(6, 12))]
    tokens = [" " + words[0].capitalize()]
    for word in words[1:]:
        if rng.random() < 0.08:
            tokens.append(",")
        tokens.append(" " + word)
    return [*tokens, "."]


@lru_cache(maxsize=8)
def _pool(seed: int) -> tuple[list[str], list[int]]:
    """Tokens, and where their sentences start."""
    rng = random.Random(seed)
    tokens: list[str] = []
    starts: list[int] = []
    while len(tokens) < _POOL_TOKENS:
        starts.append(len(tokens))
        tokens += sentence(rng)
    return tokens, starts


def natural_length(digest: int, output_tokens: int | tuple[int, int], empty_prompt: bool) -> int:
    """How long an answer would be if nothing cut it. An empty prompt gets a short one."""
    low, high = (3, 8) if empty_prompt else token_range(output_tokens)
    return low + (digest >> 16) % (high - low + 1)


def reasoning_length(effort: object) -> int:
    """Tokens of reasoning before an answer."""
    return _REASONING_TOKENS.get(effort, 16) if isinstance(effort, str) else 16


def fragments(text: str) -> list[str]:
    """Arguments or JSON as tokens, so that they arrive in several deltas; at least two where there is enough."""
    size = max(1, min(7, len(text) // 2))
    return [text[i : i + size] for i in range(0, len(text), size)]
