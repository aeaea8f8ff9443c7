"""A body that was not streamed → the same Answer, by the same rules of success."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from runner.accumulate.choices import telling_finish
from runner.accumulate.parsing import MalformedChunk, Raw, clean, parse, raise_error, read_usage
from runner.jobs import Api
from runner.outcome import Usage


class Answer(NamedTuple):
    """A whole answer."""

    body: dict[str, Any]
    finish: str
    """As `Completed.finish`."""
    usage: Usage | None


def parse_body(api: Api, body: bytes) -> Answer:
    """Reads a 200 body.

    Raises StreamError where it holds a non-null `error`, or a response that failed or was cancelled; MalformedChunk
    where it isn't what the API sends: choices each with a finish_reason, a response that is completed or incomplete,
    a list of embeddings.
    """
    value = parse("", body)
    if value is None:
        raise MalformedChunk("a body without an object")
    if isinstance(value, Raw):
        value = clean(value)
    if value.get("error") is not None or value.get("object") == "error":
        raise_error(value)
    return Answer(value, _FINISHES[api](value), read_usage(value.get("usage")))


def _choices_finish(value: dict[str, Any]) -> str:
    choices = value.get("choices")
    if not isinstance(choices, list) or not choices:
        raise MalformedChunk("a body without choices")
    reasons = [choice.get("finish_reason") if isinstance(choice, dict) else None for choice in choices]
    if not all(reason and isinstance(reason, str) for reason in reasons):
        raise MalformedChunk("a choice without a finish_reason")
    return telling_finish(reasons) or "stop"


def _chat_finish(value: dict[str, Any]) -> str:
    finish = _choices_finish(value)
    if not all(isinstance(choice.get("message"), dict) for choice in value["choices"]):
        raise MalformedChunk("a choice without a message")
    return finish


def _text_finish(value: dict[str, Any]) -> str:
    finish = _choices_finish(value)
    if not all(isinstance(choice.get("text"), str) for choice in value["choices"]):
        raise MalformedChunk("a choice without text")
    return finish


def _embeddings_finish(value: dict[str, Any]) -> str:
    data = value.get("data")
    if not isinstance(data, list) or not data or not all(_has_embedding(entry) for entry in data):
        raise MalformedChunk("a body without embeddings")
    return "stop"


def _has_embedding(entry: Any) -> bool:
    """Floats, or base64 of them."""
    return isinstance(entry, dict) and isinstance(entry.get("embedding"), list | str)


def _response_finish(value: dict[str, Any]) -> str:
    """How a response object ended. Raises StreamError or MalformedChunk where it didn't end well."""
    status = value.get("status")
    if status in ("failed", "cancelled"):
        raise_error(value)
    if status not in ("completed", "incomplete"):
        raise MalformedChunk("a response that is neither completed nor incomplete")
    if not isinstance(value.get("output"), list):
        raise MalformedChunk("a response without output")
    return finish_of_status(value)


def finish_of_status(response: dict[str, Any]) -> str:
    """`completed`, or `incomplete:<reason>`."""
    if response.get("status") != "incomplete":
        return "completed"
    details = response.get("incomplete_details")
    reason = details.get("reason") if isinstance(details, dict) else None
    return f"incomplete:{reason if isinstance(reason, str) and reason else 'unknown'}"


_FINISHES: dict[Api, Callable[[dict[str, Any]], str]] = {
    Api.CHAT: _chat_finish,
    Api.COMPLETIONS: _text_finish,
    Api.RESPONSES: _response_finish,
    Api.EMBEDDINGS: _embeddings_finish,
}
