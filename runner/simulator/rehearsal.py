"""The `simulate` key of a body, and a request's identity. Pure.

`simulate` is for rehearsals: which scenario this request is to meet, how fast and how long its answer is. It never
changes what the answer says, so it is no part of the identity that words are drawn from.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import orjson

from runner.limits import SIMULATOR_TOKENS
from runner.simulator.refusals import ApiError, bad_request, wrong_type

_DELIVERY: Final = frozenset({"stream", "stream_options", "simulate"})


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a body's `simulate` key asks for; None leaves it to the profile or the scenario."""

    fault: str | None = None
    times: int | None = None
    """Only the first so many requests with the same content meet the fault."""
    ttft_s: float | None = None
    tokens: int | None = None
    """Length of the answer, where no maximum is below it."""
    tokens_per_s: float | None = None
    after: int | None = None
    """Content events before a fault in mid-stream; half of them by default."""
    delay_s: float | None = None
    """Length of a stall, after which the answer goes on; or the pause between two writes of a slow scenario."""
    retry_after_s: float | None = None
    bytes: int | None = None
    """Size of a huge line or a gzip bomb."""
    count: int | None = None
    """Number of empty deltas."""
    stream_s: float | None = None
    """How long after its POST the events of a background response can be had; the API's is five minutes."""
    expires_s: float | None = None
    """How long after its POST a background response is there."""
    refuse: bool = False
    """The model declines: `refusal` in place of content."""


_NUMBERS: Final = {"ttft_s", "tokens_per_s", "delay_s", "retry_after_s", "stream_s", "expires_s"}
_INTEGERS: Final = {"times": 0, "tokens": 1, "after": 0, "bytes": 1, "count": 0}


def read(body: Mapping[str, Any], model: str, known: Collection[str] | None) -> Rehearsal:
    """What a body asks for, by its `simulate` key or by a model name `<model>#SCENARIO`; `known` None knows them all.

    A scenario that isn't known is refused: a rehearsal with a slip of the pen must not pass for a success.

    Raises:
        ApiError: 400 for an unknown scenario, an unknown key or a value out of range.
    """
    asked = body.get("simulate")
    if asked is None:
        asked = {}
    if not isinstance(asked, dict):
        raise wrong_type("simulate", "an object", asked)
    name = str(body.get("model", ""))
    if name.startswith(f"{model}#"):
        asked = {"fault": name[len(model) + 1 :], **asked}
    for key, value in asked.items():
        _check(key, value)
    fault = asked.get("fault")
    if known is not None and fault is not None and fault not in known:
        raise _refuse("fault", f"no scenario is called {str(fault)[:60]!r}")
    return Rehearsal(**asked)


def _check(key: str, value: Any) -> None:
    if key in _INTEGERS:
        good = isinstance(value, int) and not isinstance(value, bool) and value >= _INTEGERS[key]
        good = good and (key != "tokens" or value <= SIMULATOR_TOKENS)
    elif key in _NUMBERS:
        good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
        good = good and (key != "tokens_per_s" or value > 0)
    elif key == "fault":
        good = isinstance(value, str)
    elif key == "refuse":
        good = isinstance(value, bool)
    else:
        raise _refuse(key, "unknown key")
    if not good:
        raise _refuse(key, "out of range")


def _refuse(key: str, why: str) -> ApiError:
    return bad_request(f"Invalid 'simulate.{key}': {why}.", f"simulate.{key}", "invalid_value")


def prompt_key(body: Mapping[str, Any]) -> str:
    """A request's identity: 32 hex digits of what is asked, however it is to be delivered.

    `stream`, `stream_options`, `simulate` and a `#SCENARIO` suffix of the model are no part of it; nor is key order.
    """
    content = {key: value for key, value in body.items() if key not in _DELIVERY}
    model = content.get("model")
    if isinstance(model, str) and "#" in model:
        content["model"] = model[: model.rindex("#")]
    return blake2b(orjson.dumps(content, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


def digest(key: str, *salts: int) -> int:
    """128 bits that a request, a seed and a position always give."""
    text = ":".join((key, *map(str, salts)))
    return int.from_bytes(blake2b(text.encode(), digest_size=16).digest(), "big")
