"""A reference client that forgives nothing, and the requests that scenarios are tried with: one of each kind."""

from __future__ import annotations

import math
from typing import Any

import orjson

from tests.simulator.simulator_client import FLAT_TOOLS, TOOLS, chat

LONG = "Tell me a long story, please."
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/chat/completions", chat(LONG)),
    "chat, two choices": ("/chat/completions", chat(LONG, n=2)),
    "chat, reasoning": ("/chat/completions", chat(LONG, reasoning_effort="low")),
    "chat, tools": ("/chat/completions", chat(LONG, tools=TOOLS, tool_choice="required")),
    "responses": ("/responses", {"model": "m", "input": LONG}),
    "responses, reasoning": ("/responses", {"model": "m", "input": LONG, "reasoning": {"effort": "low"}}),
    "responses, tools": ("/responses", {"model": "m", "input": LONG, "tools": FLAT_TOOLS, "tool_choice": "required"}),
    "completions": ("/completions", {"model": "m", "prompt": LONG}),
    "embeddings": ("/embeddings", {"model": "m", "input": LONG}),
}
STREAMS = [(name, True) for name in BODIES if name != "embeddings"]
WHOLE = [(name, False) for name in BODIES]
DELIVERIES = STREAMS + WHOLE


def rehearse(name, body, stream=True, **more):
    """The body with a scenario; what is large by default is small here."""
    small = {"bytes": 3_000_000, "count": 500}
    return {**body, "stream": stream, "simulate": {"fault": name, **small, **more}}


def well(raw, path, stream):
    """The text of a whole and proper answer, or None."""
    natural = "text/event-stream; charset=utf-8" if stream else "application/json"
    if raw.status != 200 or raw.ending != "whole" or "content-encoding" in raw.headers:
        return None
    if raw.headers["content-type"] != natural or (stream and not raw.body.endswith(b"\n\n")):
        return None
    try:
        objects = [orjson.loads(p) for p in raw.payloads if p != b"[DONE]"] if stream else [orjson.loads(raw.body)]
        return _READERS[path](objects, stream)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


def read_chat(objects, stream):
    texts: dict[int, str] = {}
    finishes: dict[int, str | None] = {}
    for choice in (choice for one in objects for choice in one["choices"]):
        said = choice["delta" if stream else "message"]
        texts[choice["index"]] = texts.get(choice["index"], "") + (said.get("content") or "")
        finishes[choice["index"]] = choice["finish_reason"] or finishes.get(choice["index"])
    usages = [one["usage"]["prompt_tokens"] + 0 for one in objects if one.get("usage")]
    return texts[0] if all(finishes.values()) and all(map(math.isfinite, usages)) else None


def read_completions(objects, stream):
    text = "".join(choice["text"] for one in objects for choice in one["choices"])
    return text if objects[-1]["choices"][0]["finish_reason"] else None


def read_responses(objects, stream):
    final = objects[-1]["response"] if stream else objects[0]
    if stream and [one["sequence_number"] for one in objects] != list(range(len(objects))):
        return None
    if stream and any(one["type"] == "error" for one in objects):
        return None
    text = "".join(p["text"] for item in final["output"] if item["type"] == "message" for p in item["content"])
    deltas = "".join(one["delta"] for one in objects if one.get("type") == "response.output_text.delta")
    return text if final["status"] in ("completed", "incomplete") and (not stream or deltas == text) else None


def read_embeddings(objects, stream):
    return "" if len(objects[0]["data"][0]["embedding"]) == 1536 else None


_READERS = {
    "/chat/completions": read_chat,
    "/responses": read_responses,
    "/completions": read_completions,
    "/embeddings": read_embeddings,
}
