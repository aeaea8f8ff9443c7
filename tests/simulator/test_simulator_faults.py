"""Every scenario, on every endpoint, as it stands on the wire.

`well` is a reference client that forgives nothing. What it says of a scenario must be what the table says: it finds
the harmless ones whole and true, and every other one faulty.
"""

from __future__ import annotations

import math

import orjson
import pytest

from runner.simulator import SCENARIOS, expected_text, running_app
from tests.simulator.simulator_client import FAST, FLAT_TOOLS, TOOLS, chat, post

STALLS = {"slow_headers", "stall_first", "stall_mid", "comments_forever", "one_byte_per_s", "endless"}
ENDING = [name for name in SCENARIOS if name not in STALLS]
LONG = "Tell me a long story, please."
BODIES = {
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
STREAMS = [(name, stream) for name in BODIES for stream in (True, False) if (name, stream) != ("embeddings", True)]


def well(raw, path, stream):
    """The text of a whole and proper answer, or None."""
    natural = "text/event-stream; charset=utf-8" if stream else "application/json"
    if raw.status != 200 or raw.ending != "whole" or "content-encoding" in raw.headers:
        return None
    if raw.headers["content-type"] != natural:
        return None
    try:
        objects = [orjson.loads(p) for p in raw.payloads if p != b"[DONE]"] if stream else [orjson.loads(raw.body)]
        if stream and not raw.body.endswith(b"\n\n"):
            return None
        read = {"/chat/completions": read_chat, "/responses": read_responses, "/completions": read_completions}
        return read.get(path, read_embeddings)(objects, stream)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None


def read_chat(objects, stream):
    texts, finishes = {}, {}
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


def rehearse(name, body, stream, **more):
    small = {"bytes": 3_000_000, "count": 500}
    return {**body, **({"stream": True} if stream else {}), "simulate": {"fault": name, **small, **more}}


@pytest.mark.parametrize("name", ENDING)
async def test_every_client_that_forgives_nothing_sees_what_the_table_says(name):
    async with running_app(FAST) as url:
        for endpoint, stream in STREAMS:
            path, body = BODIES[endpoint]
            raw = await post(url, path, rehearse(name, body, stream), ["authorization: Bearer sk-canary"])
            text = well(raw, path, stream)
            tolerable = (
                SCENARIOS[name].harmless
                or name == "huge_line"
                or (name == "nan_usage" and endpoint == "embeddings" and False)
            )
            assert (text is not None) == tolerable, (endpoint, stream, raw[:2], raw.body[:300])
            if SCENARIOS[name].harmless and endpoint != "embeddings" and name != "response_incomplete":
                assert text == expected_text(body), (endpoint, stream)
