"""Log probabilities that look like some: fixed for a token and its place. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final
from zlib import crc32

_ALTERNATIVES: Final = (
    *(" the", " a", ".", ",", " and", " of", " in", " to", " it", " is"),
    *(" café", "漢", " was", " for", " on", " at", " by", " or", " an", " we"),
)


def of_token(token: str) -> float:
    """Its log probability, in (-2, 0]."""
    return -(crc32(token.encode()) % 2_000) / 1_000


def entry(token: str, top: int) -> dict[str, Any]:
    """A token in the form of chat and Responses, with `top` alternatives, the token itself being the first."""
    others = [other for other in _ALTERNATIVES if other != token]
    shown = [(token, of_token(token)), *((other, -3.0 - i / 10) for i, other in enumerate(others))][:top]
    return _bare(token, of_token(token)) | {"top_logprobs": [_bare(*pair) for pair in shown]}


def _bare(token: str, value: float) -> dict[str, Any]:
    return {"token": token, "logprob": value, "bytes": list(token.encode())}


def legacy(tokens: Iterable[str], top: int, offset: int) -> dict[str, Any]:
    """Tokens in the form of legacy completions; `offset` is where the first one begins in the text, in characters."""
    tokens = list(tokens)
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [of_token(token) for token in tokens],
        "top_logprobs": [{e["token"]: e["logprob"] for e in entry(token, top)["top_logprobs"]} for token in tokens],
        "text_offset": offsets,
    }
