"""An ended request → its sample, and what its record says of its times. Pure.

Stamps are monotonic nanoseconds of this machine, a sample's are seconds since its level's start: processes that share
a level share its start, and so their clocks.

Where the server sent no usage, the tokenizer counts the whole answer's text, never chunk by chunk: tokens don't end
where chunks do. A usage of no output tokens for an answer that has some is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from runner.faults import FaultKind
from runner.jobs import Api, Job
from runner.load.samples import THROTTLED, RequestSample
from runner.outcome import Completed, Failed, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from runner.attempt import Attempted
    from runner.records import History

    Count = Callable[[Job], int]

_MOMENTS: Final = (
    *("scheduled", "asked", "admitted", "sent", "headers"),
    *("first_chunk", "first_content", "first_text", "last_content", "end"),
)


_WRITTEN: Final = frozenset({"text", "content", "refusal", "reasoning", "reasoning_content", "name", "arguments"})
_HOLDERS: Final = frozenset({"message", "content", "summary", "tool_calls", "function", "function_call"})
"""Keys of an answer under which texts of the model stand, and under which objects with such texts do."""


def sample_of(
    history: History,
    attempted: Attempted | None,
    outcome: Outcome,
    *,
    ok: bool,
    zero_s: float,
    scheduled: float | None = None,
    by_tokenizer: int | None = None,
) -> RequestSample:
    """What a request left. `zero_s` is the level's start; `ok` what its record says of it."""
    fault = outcome.fault.kind.value if isinstance(outcome, Failed) else None
    earliest = -math.inf if scheduled is None else scheduled  # requests are made ready before their moment
    admitted = None if history.admitted_s is None else max(earliest, history.admitted_s - zero_s)
    sample = RequestSample(
        scheduled=scheduled,
        admitted=admitted,
        ok=ok,
        # A finish that the user counts as a failure is one, though the server did what it was asked.
        fault=fault if fault is not None or ok else FaultKind.UNWANTED_FINISH.value,
        attempts=max(1, history.attempts),
        throttled_attempts=sum(each.reason in THROTTLED for each in history.retries) + (fault in THROTTLED),
        # What was waited before its moment it would have waited anyway.
        limiter_wait_s=min(history.limiter_wait_s, math.inf if admitted is None else admitted - earliest),
        output_tokens_by_tokenizer=by_tokenizer,
    )
    return sample if attempted is None else _with_stamps(sample, attempted, outcome, zero_s)


def _with_stamps(sample: RequestSample, attempted: Attempted, outcome: Outcome, zero_s: float) -> RequestSample:
    def at(ns: int) -> float | None:
        return ns / 1e9 - zero_s if ns else None

    usage = outcome.usage
    return replace(
        sample,
        sent=at(attempted.sent_ns),
        headers=at(attempted.headers_ns),
        first_chunk=at(attempted.first_chunk_ns),
        first_content=at(attempted.first_content_ns),
        first_text=at(attempted.first_text_ns),
        last_content=at(attempted.last_content_ns),
        end=at(attempted.ended_ns),
        input_tokens=None if usage is None else usage.input_tokens,
        output_tokens=None if usage is None or (not usage.output_tokens and attempted.chunks) else usage.output_tokens,
        reasoning_tokens=None if usage is None else usage.reasoning_tokens,
        chunks=attempted.chunks,
        coalesced=attempted.coalesced,
        gaps=attempted.gaps,
    )


def moments(sample: RequestSample) -> dict[str, float]:
    """For the record: what happened when, in seconds since the level's start."""
    found = ((name, getattr(sample, name)) for name in _MOMENTS)
    return {f"{name}_s": round(value, 6) for name, value in found if value is not None}


def text_of(body: Mapping[str, Any]) -> str:
    """The visible text of an answer, of its first choice; empty where there is none."""
    choices = body.get("choices")
    if isinstance(choices, list):
        first = choices[0] if choices and isinstance(choices[0], dict) else {}
        message = first.get("message")
        text = message.get("content") if isinstance(message, dict) else first.get("text")
        return text if isinstance(text, str) else ""
    return "".join(_response_texts(body))


def _response_texts(body: Mapping[str, Any]) -> list[str]:
    items = body.get("output")
    contents = [item.get("content") for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    return [part["text"] for part in parts if isinstance(part.get("text"), str)]


def written_by(body: Mapping[str, Any]) -> str:
    """All that the model wrote, of every choice: reasoning, text, refusals and the arguments of tool calls.

    That is what a server's count of output tokens is about, and what TTFT and the chunks are.
    """
    return "".join(_written([body.get("choices"), body.get("output")]))


def _written(value: Any) -> Iterator[str]:
    """The texts of an answer under the keys that hold what a model writes, however deep."""
    if isinstance(value, list):
        for item in value:
            yield from _written(item)
    elif isinstance(value, dict):
        texts = {key: found for key, found in value.items() if isinstance(found, str) and found}
        if "reasoning" in texts and "reasoning_content" in texts:
            del texts["reasoning"]  # some servers say it under both names
        yield from (found for key, found in texts.items() if key in _WRITTEN)
        for key, found in value.items():
            if key in _HOLDERS:
                yield from _written(found)


def counted(outcome: Outcome, count: Count) -> int | None:
    """The tokenizer's count of an answer without usage; None where it has one, or failed."""
    if not isinstance(outcome, Completed) or (outcome.usage is not None and outcome.usage.output_tokens):
        return None
    body = {"model": outcome.body.get("model"), "prompt": written_by(outcome.body)}
    return count(Job("", 0, Api.COMPLETIONS, body, stream=False, digest=0, size_bytes=0))
