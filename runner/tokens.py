"""A job → how many tokens to reserve for it.

The output is what the line caps it to, times its choices; a line without a cap reserves the setting. The input is
counted by tiktoken where it is installed and its encoding lies in its cache already (it is never fetched: a run must
not depend on a download), else by a heuristic: a token for 4 ASCII characters, a token for 1.5 others, 4 a message and
3 for the answer's beginning; tools and schemas by their JSON; a stated constant for each image. The heuristic errs
upwards on plain English (by about 10 %), and real usage corrects it after each answer.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import orjson

from runner.jobs import Api, Job

IMAGE_TOKENS: Final = 1_105
"""A 1024 × 1024 image at high detail costs 765, the largest tiling 1,105 (the API's vision guide)."""
MESSAGE_TOKENS: Final = 4
PRIMING_TOKENS: Final = 3
TIKTOKEN_MAX_CHARS: Final = 200_000
"""Longer texts are estimated: tiktoken takes about 0.2 s for a million characters, for an answer good to 10 %."""

_URLS: Final = {
    "o200k_base": "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken",
    "cl100k_base": "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken",
}


class Estimate(NamedTuple):
    """Tokens to reserve."""

    input_tokens: int
    output_tokens: int
    method: Literal["tiktoken", "heuristic"]


def estimate(job: Job, *, default_output_tokens: int) -> Estimate:
    """What a job may cost; `default_output_tokens` stands in for a cap that its line doesn't name."""
    pieces: list[str] = []
    extra = _collect(job.api, job.body, pieces)
    encoding = _encoding_for(job.body.get("model"))
    size = sum(map(len, pieces))
    if encoding is not None and size <= TIKTOKEN_MAX_CHARS:
        counted = sum(len(encoding.encode_ordinary(piece)) for piece in pieces)
        return Estimate(counted + extra, _output(job, default_output_tokens), "tiktoken")
    return Estimate(sum(map(heuristic, pieces)) + extra, _output(job, default_output_tokens), "heuristic")


def heuristic(text: str) -> int:
    """About how many tokens a text is."""
    ascii_chars = len(text) if text.isascii() else sum(char < "\x80" for char in text)
    return -(-ascii_chars // 4) + (2 * (len(text) - ascii_chars) + 2) // 3


def _output(job: Job, default: int) -> int:
    if job.api is Api.EMBEDDINGS:
        return 0
    body = job.body
    caps = [body.get(key) for key in ("max_completion_tokens", "max_output_tokens", "max_tokens")]
    cap = next((cap for cap in caps if isinstance(cap, int) and not isinstance(cap, bool) and cap >= 0), default)
    counts = [body.get(key) for key in ("n", "best_of")]
    return cap * max([count for count in counts if isinstance(count, int) and count > 0], default=1)


def _collect(api: Api, body: dict[str, Any], pieces: list[str]) -> int:
    """Gathers the body's texts; returns the tokens that aren't text."""
    extra = PRIMING_TOKENS
    schemas = (body[key] for key in ("tools", "functions", "response_format", "text") if body.get(key))
    pieces.extend(orjson.dumps(schema).decode() for schema in schemas)
    if isinstance(body.get("instructions"), str):
        pieces.append(body["instructions"])
    stack: list[Any] = [body.get("messages"), body.get("input"), body.get("prompt")]
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            pieces.append(value)
        elif isinstance(value, list):
            # A list of integers is a text that was tokenised already.
            extra += sum(isinstance(item, int) for item in value)
            stack.extend(item for item in value if not isinstance(item, int))
        elif isinstance(value, dict):
            extra += MESSAGE_TOKENS if "role" in value else 0
            if "image" in str(value.get("type", "")):
                extra += IMAGE_TOKENS  # and not its base64 text
                continue
            stack.extend(inner for key, inner in value.items() if key not in ("role", "type", "id"))
    return extra


@functools.cache
def _encoding_for(model: Any) -> Any | None:
    """The encoding of tiktoken for a model, if it can be had without a network."""
    if not isinstance(model, str):
        return None
    try:
        import tiktoken  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return None
    try:
        name = tiktoken.encoding_name_for_model(model)
    except KeyError:
        name = "o200k_base"
    return tiktoken.get_encoding(name) if _is_cached(name) else None


def _is_cached(name: str) -> bool:
    """Whether the encoding's file lies where tiktoken would look for it (tiktoken/load.py)."""
    url = _URLS.get(name)
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    path = Path(folder or Path(tempfile.gettempdir()) / "data-gym-cache")
    return url is not None and (path / hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()).is_file()
