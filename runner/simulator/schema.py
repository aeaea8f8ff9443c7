"""A small value that a JSON schema allows: arguments of a tool call, or a structured answer. Pure.

It knows what schemas of tools and of structured outputs use (type, enum, const, anyOf, $ref, bounds); a keyword it
doesn't know is taken as if it weren't there.
"""

from __future__ import annotations

import random
from typing import Any, Final

_MAX_DEPTH: Final = 8
_FORMATS: Final = {
    "date": "2025-01-31",
    "date-time": "2025-01-31T12:00:00Z",
    "time": "12:00:00Z",
    "email": "a@example.com",
    "uri": "https://example.com/",
    "uuid": "123e4567-e89b-42d3-a456-426614174000",
    "ipv4": "192.0.2.1",
}
_NAMES: Final = ("Paris", "東京", "São Paulo", "blue", "café", "seven", "north", "Ω")


def example(schema: Any, rng: random.Random) -> Any:
    """A value for `schema`; `{}` where it says nothing of use."""
    root = schema if isinstance(schema, dict) else {}
    return _value(root, root, rng, 0)


def _value(schema: Any, root: dict[str, Any], rng: random.Random, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return None
    if "const" in schema:
        return schema["const"]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return rng.choice(schema["enum"])
    if isinstance(schema.get("$ref"), str):
        return _value(_resolve(schema["$ref"], root), root, rng, depth + 1)
    for union in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(union), list) and schema[union]:
            return _value(schema[union][0], root, rng, depth + 1)
    return _of_type(_type(schema), schema, root, rng, depth)


def _resolve(reference: str, root: dict[str, Any]) -> Any:
    """A `#/…` pointer into the schema itself; {} where it leads nowhere."""
    node: Any = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        if step:
            node = node.get(step) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _type(schema: dict[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((name for name in kind if name != "null"), "null")
    if isinstance(kind, str):
        return kind
    return "array" if "items" in schema else "object"


def _of_type(kind: str, schema: dict[str, Any], root: dict[str, Any], rng: random.Random, depth: int) -> Any:
    if kind == "object":
        properties = schema.get("properties")
        named = properties if isinstance(properties, dict) else {}
        return {name: _value(inner, root, rng, depth + 1) for name, inner in named.items()}
    if kind == "array":
        count = max(1, _whole(schema.get("minItems"), 1))
        items = schema.get("items", {"type": "string"})
        return [_value(items, root, rng, depth + 1) for _ in range(min(count, 16))]
    if kind == "string":
        return _string(schema, rng)
    if kind in ("integer", "number"):
        return _number(kind, schema, rng)
    return rng.random() < 0.5 if kind == "boolean" else None


def _string(schema: dict[str, Any], rng: random.Random) -> str:
    text = _FORMATS.get(str(schema.get("format"))) or rng.choice(_NAMES)
    text += "x" * (min(_whole(schema.get("minLength"), 0), 1_000) - len(text))
    return text[: max(0, _whole(schema.get("maxLength"), len(text)))]


def _number(kind: str, schema: dict[str, Any], rng: random.Random) -> int | float:
    low = _whole(schema.get("minimum"), _whole(schema.get("exclusiveMinimum"), -1) + 1)
    high = _whole(schema.get("maximum"), _whole(schema.get("exclusiveMaximum"), low + 100) - 1)
    value = rng.randint(low, max(low, high))
    return value if kind == "integer" else float(value)


def _whole(value: Any, default: int) -> int:
    # isinstance, not a cast: a schema may say "minimum": "three" or 1e400
    return int(value) if isinstance(value, int | float) and abs(value) < 1e15 else default
