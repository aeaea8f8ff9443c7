"""A body → what it asks for, the same words for the three APIs that answer in text; or the API's own refusal. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from runner.limits import SIMULATOR_CHOICES
from runner.simulator import prompt
from runner.simulator.refusals import bad_request, missing, wrong_type

CHAT: Final = "/chat/completions"
RESPONSES: Final = "/responses"
COMPLETIONS: Final = "/completions"
EMBEDDINGS: Final = "/embeddings"
_JSON_OBJECT: Final = {"type": "object", "properties": {"answer": {"type": "string"}, "count": {"type": "integer"}}}


class Tool(NamedTuple):
    """A function that may be called."""

    name: str
    parameters: Any


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for."""

    body: dict[str, Any]
    model: str
    prompt_tokens: int
    stream: bool = False
    include_usage: bool = False
    n: int = 1
    maximum: int | None = None
    """Output tokens of each choice."""
    stop: tuple[str, ...] = ()
    prompts: tuple[str | list[int], ...] = ()
    """Of a legacy completion: one choice each, times n."""
    empty: bool = False
    """The prompt says nothing."""
    effort: str | None = None
    """Of the reasoning, where some is asked for."""
    tools: list[Tool] = field(default_factory=list)
    must_call: bool = False
    parallel: bool = True
    legacy_functions: bool = False
    schema: Any = None
    """Of a structured answer."""
    logprobs: int | None = None
    """How many alternatives to show beside each token, or None for no logprobs."""
    refuse: bool = False

    def empty_at(self, index: int) -> bool:
        """Whether the prompt of that number says nothing."""
        return not self.prompts[index] if self.prompts else self.empty

    @property
    def service_tier(self) -> str:
        """The tier that serves: the one asked for, where it names one."""
        tier = self.body.get("service_tier")
        return tier if tier in ("flex", "priority", "scale") else "default"


def chat(body: dict[str, Any], *, refuse: bool = False) -> Asked:
    """What a chat body asks for.

    Raises:
        ApiError: 400, as the API words it.
    """
    messages = _required(body, "messages", list, "an array of objects")
    if not messages:
        words = "empty array. Expected an array with minimum length 1, but got an empty array instead."
        raise bad_request(f"Invalid 'messages': {words}", "messages", "empty_array")
    if any(not isinstance(message, dict) for message in messages):
        raise wrong_type("messages[0]", "an object", next(m for m in messages if not isinstance(m, dict)))
    tokens, empty = prompt.chat_size(body)
    legacy = "functions" in body and "tools" not in body
    tools = _tools(body.get("functions") if legacy else body.get("tools"), nested=not legacy)
    choice = body.get("function_call" if legacy else "tool_choice")
    effort = body.get("reasoning_effort")
    return Asked(
        **_common(body, tokens, refuse),
        **_chosen(tools, choice),
        include_usage=_include_usage(body),
        n=_n(body),
        maximum=_maximum(body, "max_completion_tokens", "max_tokens"),
        stop=_stop(body.get("stop")),
        empty=empty,
        effort=effort if isinstance(effort, str) and effort != "none" else None,
        parallel=body.get("parallel_tool_calls") is not False and not legacy,
        legacy_functions=legacy,
        schema=_chat_schema(body.get("response_format")),
        logprobs=_whole(body, "top_logprobs", 0, 20) or 0 if body.get("logprobs") is True else None,
    )


def responses(body: dict[str, Any], *, refuse: bool = False) -> Asked:
    """What a Responses body asks for.

    Raises:
        ApiError: 400.
    """
    value = _required(body, "input", (str, list), "a string or an array of items")
    if isinstance(value, list) and not value:
        raise bad_request("Invalid 'input': empty array.", "input", "empty_array")
    if body.get("background") and body.get("store") is False:
        raise bad_request("Background mode requires 'store' to be true.", "store", "invalid_value")
    tokens, empty = prompt.responses_size(body)
    reasoning = body.get("reasoning")
    effort = reasoning.get("effort") or "medium" if isinstance(reasoning, dict) else None
    form = body.get("text")
    include = body.get("include")
    wants = isinstance(include, list) and "message.output_text.logprobs" in include
    return Asked(
        **_common(body, tokens, refuse),
        **_chosen(_tools(body.get("tools"), nested=False), body.get("tool_choice")),
        maximum=_maximum(body, "max_output_tokens"),
        empty=empty,
        effort=None if effort == "none" else effort,
        parallel=body.get("parallel_tool_calls") is not False,
        schema=_format(form.get("format")) if isinstance(form, dict) else None,
        logprobs=_whole(body, "top_logprobs", 0, 20) or 0 if wants else None,
    )


def completions(body: dict[str, Any], *, refuse: bool = False) -> Asked:
    """What a legacy completion asks for. Without `max_tokens` the profile decides, not the API's 16.

    Raises:
        ApiError: 400.
    """
    value = _required(body, "prompt", (str, list), "a string or an array")
    try:
        prompts = tuple(prompt.prompts(value))
    except TypeError as error:
        raise wrong_type("prompt", str(error), value) from error
    n = _n(body)
    if n * len(prompts) > SIMULATOR_CHOICES:
        raise bad_request(f"Too many choices: at most {SIMULATOR_CHOICES}.", "prompt", "array_above_max_length")
    return Asked(
        **_common(body, sum(map(prompt.text_tokens, prompts)), refuse=False),
        include_usage=_include_usage(body),
        n=n,
        maximum=_maximum(body, "max_tokens"),
        stop=_stop(body.get("stop")),
        prompts=prompts,
        logprobs=_whole(body, "logprobs", 0, 20),
    )


def _common(body: dict[str, Any], tokens: int, refuse: bool) -> dict[str, Any]:
    return {
        "body": body,
        "model": _required(body, "model", str, "a string"),
        "prompt_tokens": tokens,
        "stream": body.get("stream") is True,
        "refuse": refuse,
    }


def _required(body: dict[str, Any], name: str, types: type | tuple[type, ...], expected: str) -> Any:
    if body.get(name) is None:
        raise missing(name)
    if not isinstance(body[name], types):
        raise wrong_type(name, expected, body[name])
    return body[name]


def _whole(body: dict[str, Any], name: str, low: int, high: int) -> int | None:
    """An integer of the body within bounds, or None where there is none."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type(name, "an integer", value)
    if not low <= value <= high:
        side = f"a value >= {low}" if value < low else f"a value <= {high}"
        code = "integer_below_min_value" if value < low else "integer_above_max_value"
        raise bad_request(
            f"Invalid '{name}': {code.replace('_', ' ')}. Expected {side}, but got {value} instead.", name, code
        )
    return value


def _n(body: dict[str, Any]) -> int:
    return _whole(body, "n", 1, 128) or 1


def _maximum(body: dict[str, Any], *names: str) -> int | None:
    values = (_whole(body, name, 1, 2**53) for name in names)
    return next((value for value in values if value is not None), None)


def _stop(value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, str) else value
    if values is None:
        return ()
    if not isinstance(values, list) or any(not isinstance(stop, str) for stop in values):
        raise wrong_type("stop", "a string or an array of strings", value)
    return tuple(stop for stop in values if stop)


def _include_usage(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _tools(values: Any, *, nested: bool) -> list[Tool]:
    """The functions among the tools; others (web search, custom tools) are there but never called."""
    tools = []
    for value in values if isinstance(values, list) else ():
        inner = value.get("function") if nested and isinstance(value, dict) else value
        if (
            isinstance(inner, dict)
            and isinstance(inner.get("name"), str)
            and inner.get("type", "function") == "function"
        ):
            tools.append(Tool(inner["name"], inner.get("parameters")))
    return tools


def _chosen(tools: list[Tool], choice: Any) -> dict[str, Any]:
    """`tools` and `must_call`, from the tools and the choice among them: a word, or an object that names one."""
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        choice = allowed.get("mode") if isinstance(allowed, dict) else None
    if isinstance(choice, dict):
        named = choice.get("function", choice)
        name = named.get("name") if isinstance(named, dict) else None
        return {"tools": [tool for tool in tools if tool.name == name][:1], "must_call": True}
    return {"tools": [] if choice == "none" else tools, "must_call": choice == "required"}


def _chat_schema(value: Any) -> Any:
    if isinstance(value, dict) and value.get("type") == "json_schema":
        inner = value.get("json_schema")
        return inner.get("schema") or {} if isinstance(inner, dict) else {}
    return _format(value)


def _format(value: Any) -> Any:
    """The schema of a structured answer, or None for plain text."""
    if not isinstance(value, dict):
        return None
    if value.get("type") == "json_schema":
        return value.get("schema") or {}
    return _JSON_OBJECT if value.get("type") == "json_object" else None
