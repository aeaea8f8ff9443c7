"""What a job sends: the API's body, encoded once. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import orjson

from runner.jobs import Api, Job

if TYPE_CHECKING:
    from runner.settings import StreamOptions


_CAPS: Final = ("max_completion_tokens", "max_output_tokens", "max_tokens")


def encode_body(
    job: Job,
    *,
    model: str | None,
    stream_options: StreamOptions,
    renamed: str | None = None,
    service_tier: str | None = None,
) -> bytes:
    """The bytes to post. `model` is for a line that names none; what the line says always wins.

    But for `renamed`, what the model is called at the endpoint, and `service_tier`, where the line's had no room.
    """
    body = {**job.body} if "model" in job.body or model is None else {"model": model, **job.body}
    if renamed is not None:
        body["model"] = renamed
    if service_tier is not None:
        body["service_tier"] = service_tier
    if job.api is Api.EMBEDDINGS:
        return orjson.dumps(body)
    body["stream"] = job.stream
    if job.stream:
        options = _options(job.api, stream_options) | (body.get("stream_options") or {})
        if options:
            body["stream_options"] = options
    else:
        # The API refuses stream_options where nothing streams.
        body.pop("stream_options", None)
    return orjson.dumps(body)


def _options(api: Api, wanted: StreamOptions) -> dict[str, Any]:
    """Usage in the last chunk; no padding of each delta with random characters (`include_obfuscation`)."""
    options: dict[str, Any] = {}
    if wanted == "openai":
        options["include_obfuscation"] = False
    # A Responses stream has its usage in the terminal event anyway, and no option for it.
    if wanted != "none" and api is not Api.RESPONSES:
        options["include_usage"] = True
    return options


def choices_of(job: Job) -> int:
    """How many choices the answer owes: n, times the prompts of a legacy completion."""
    n = job.body.get("n")
    count = n if type(n) is int and n > 0 else 1
    return count * prompts_of(job)


def prompts_of(job: Job) -> int:
    """How many prompts it has: a legacy completion may hold many; a list of integers is one."""
    prompts = job.body.get("prompt")
    if not isinstance(prompts, list) or job.api is not Api.COMPLETIONS:
        return 1
    return len(prompts) if prompts and isinstance(prompts[0], str | list) else 1


def output_cap_of(job: Job) -> int | None:
    """The most tokens that its line allows each choice; None: it names no number."""
    for key in _CAPS:
        cap = job.body.get(key)
        if type(cap) is int and cap >= 0:
            return cap
    return None
