"""Vectors that mean nothing: of unit length, and always the same for a text, a seed and a size. Pure."""

from __future__ import annotations

import base64
import math
import random
import sys
from array import array
from typing import Any, Final

from runner.simulator.asked import Asked
from runner.simulator.prompt import prompts, text_tokens
from runner.simulator.refusals import bad_request, missing, wrong_type
from runner.simulator.rehearsal import digest

_DIMENSIONS: Final = 1_536
_MAX_DIMENSIONS: Final = 8_192
_MAX_INPUTS: Final = 2_048


def asked(body: dict[str, Any], *, refuse: bool = False) -> Asked:
    """What an embeddings body asks for; its inputs stand in `prompts`.

    Raises:
        ApiError: 400.
    """
    for name in ("model", "input"):
        if body.get(name) is None:
            raise missing(name)
    if not isinstance(body["model"], str):
        raise wrong_type("model", "a string", body["model"])
    if body.get("encoding_format", "float") not in ("float", "base64"):
        raise bad_request("Invalid 'encoding_format': 'float' or 'base64'.", "encoding_format", "invalid_value")
    size = body.get("dimensions", _DIMENSIONS)
    if type(size) is not int or not 1 <= size <= _MAX_DIMENSIONS:
        raise bad_request(f"Invalid 'dimensions': 1 to {_MAX_DIMENSIONS}.", "dimensions", "invalid_value")
    try:
        inputs = tuple(prompts(body["input"]))
    except TypeError as error:
        raise wrong_type("input", str(error), body["input"]) from error
    if len(inputs) > _MAX_INPUTS:
        raise bad_request(f"'input' has more than {_MAX_INPUTS} items.", "input", "array_above_max_length")
    tokens = sum(map(text_tokens, inputs))
    return Asked(body=body, model=body["model"], prompt_tokens=tokens, prompts=inputs)


def body(asked: Asked, seed: int) -> dict[str, Any]:
    """The whole answer. Numbers are those of 32-bit floats, so that both encodings say the same."""
    as_base64 = asked.body.get("encoding_format") == "base64"
    size = asked.body.get("dimensions", _DIMENSIONS)
    vectors = [vector(text, size, seed) for text in asked.prompts]
    return {
        "object": "list",
        "data": [
            {"object": "embedding", "index": i, "embedding": _base64(v) if as_base64 else v.tolist()}
            for i, v in enumerate(vectors)
        ],
        "model": asked.model,
        "usage": {"prompt_tokens": asked.prompt_tokens, "total_tokens": asked.prompt_tokens},
    }


def vector(text: str | list[int], size: int, seed: int) -> array[float]:
    """`size` 32-bit floats of length 1."""
    rng = random.Random(digest(str(text), seed, size))
    values = [rng.uniform(-1, 1) for _ in range(size)]
    norm = math.sqrt(sum(value * value for value in values)) or 1.0
    return array("f", [value / norm for value in values])


def _base64(values: array[float]) -> str:
    if sys.byteorder == "big":  # the API's floats are little-endian
        values = array("f", values)
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode()
