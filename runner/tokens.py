"""A job → how many tokens to reserve for it.

The output is what the line caps it to, times the choices that are generated; a line without a cap reserves the setting.
The input is counted by tiktoken where it is installed and its encoding lies whole in its cache already (it is never
fetched: a run must not depend on a download), else by a heuristic: a token for 4 ASCII characters, a token for 1.5
others, 4 a message and 3 for the answer's beginning; tools and schemas by their JSON; a stated constant for each image,
recording and file, whose base64 text says little of what it costs. The heuristic errs upwards on plain English (by
about 10 %), and real usage corrects it after each answer.
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
from runner.tickets import Need
from runner.wire import choices_of, output_cap_of, prompts_of

IMAGE_TOKENS: Final = 1_105
"""A 1024 × 1024 image at high detail costs 765, the largest tiling 1,105 (the API's vision guide)."""
AUDIO_TOKENS: Final = 600
"""A minute of speech: the API counts a token for 100 ms."""
FILE_TOKENS: Final = 5 * IMAGE_TOKENS
"""Five pages: of a PDF the API reads the text and an image of each page."""
MESSAGE_TOKENS: Final = 4
PRIMING_TOKENS: Final = 3
TIKTOKEN_MAX_CHARS: Final = 200_000
"""Longer texts are estimated: tiktoken takes about 0.2 s for a million characters, for an answer good to 10 %."""
_MODELS_REMEMBERED: Final = 256
"""Whose encoding is known; a jobs file that names a million models fills no memory."""

_MEDIA: Final = {"input_audio": AUDIO_TOKENS, "file": FILE_TOKENS, "input_file": FILE_TOKENS}


class _Vocabulary(NamedTuple):
    """The file of an encoding, as tiktoken_ext/openai_public.py names it."""

    url: str
    sha256: str


_VOCABULARIES: Final = {
    "o200k_base": _Vocabulary(
        "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
    "cl100k_base": _Vocabulary(
        "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
}


_SCHEMAS: Final = frozenset({"tools", "functions", "response_format", "text"})
_TEXTS: Final = ("messages", "input", "prompt")


Method = Literal["tiktoken", "heuristic"]


def estimate(job: Job, *, default_output_tokens: int) -> tuple[Need, Method]:
    """What a job may cost, and what says so; `default_output_tokens` stands in for a cap that its line doesn't name."""
    pieces: list[str] = []
    counted = _collect(job.body, pieces)
    method: Method = "heuristic"
    encoding = _encoding_for(job.body.get("model"))
    if encoding is not None and sum(map(len, pieces)) <= TIKTOKEN_MAX_CHARS:
        counted += sum(len(encoding.encode_ordinary(piece)) for piece in pieces)
        method = "tiktoken"
    else:
        counted += sum(map(heuristic, pieces))
    if job.api is Api.EMBEDDINGS:
        return Need(counted, 0), method
    cap, choices = output_cap_of(job), choices_of(job)
    if job.api is Api.COMPLETIONS:
        choices = max(choices, _generated(job))
    if cap is None:
        return Need(counted, default_output_tokens * choices, choices), method
    return Need(counted, cap * choices), method


def heuristic(text: str) -> int:
    """About how many tokens a text is."""
    ascii_chars = len(text) if text.isascii() else len(text.encode("ascii", "ignore"))
    return -(-ascii_chars // 4) + (2 * (len(text) - ascii_chars) + 2) // 3


def _generated(job: Job) -> int:
    """Answers that a legacy completion has made: of best_of only the best are seen."""
    best_of = job.body.get("best_of")
    return best_of * prompts_of(job) if isinstance(best_of, int) else 1


def _collect(body: dict[str, Any], pieces: list[str]) -> int:
    """Gathers the body's texts; returns the tokens that aren't text."""
    extra = PRIMING_TOKENS
    if not _SCHEMAS.isdisjoint(body):
        schemas = (body[key] for key in _SCHEMAS if body.get(key))
        pieces.extend(orjson.dumps(schema).decode() for schema in schemas)
    if "instructions" in body and isinstance(body["instructions"], str):
        pieces.append(body["instructions"])
    stack: list[Any] = [body[key] for key in _TEXTS if key in body]
    while stack:
        value = stack.pop()
        kind = type(value)
        if kind is str:
            pieces.append(value)
        elif kind is list:
            # A list of integers is a text that was tokenised already.
            others = [item for item in value if not isinstance(item, int)]
            extra += len(value) - len(others)
            stack += others
        elif kind is dict:
            extra += MESSAGE_TOKENS if "role" in value else 0
            media = _media(value["type"]) if "type" in value else 0
            extra += media
            if not media:
                stack += [inner for key, inner in value.items() if key not in ("role", "type", "id")]
    return extra


def _media(kind: Any) -> int:
    """What a part of this type costs if it isn't text."""
    if not isinstance(kind, str):
        return 0
    return IMAGE_TOKENS if "image" in kind or kind == "computer_screenshot" else _MEDIA.get(kind, 0)


@functools.lru_cache(_MODELS_REMEMBERED)
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


@functools.cache
def _is_cached(name: str) -> bool:
    """Whether the encoding's file lies whole where tiktoken looks for it (tiktoken/load.py fetches a damaged one)."""
    path = _cache_path(name)
    try:
        found = path and hashlib.sha256(path.read_bytes()).hexdigest()
        return found is not None and found == _VOCABULARIES[name].sha256
    except OSError:
        return False


def _cache_path(name: str) -> Path | None:
    """Where tiktoken keeps an encoding's file; None where an empty variable tells it to keep none."""
    variables = [os.environ[key] for key in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR") if key in os.environ]
    folder = variables[0] if variables else os.path.join(tempfile.gettempdir(), "data-gym-cache")
    if not folder or name not in _VOCABULARIES:
        return None
    return Path(folder) / hashlib.sha1(_VOCABULARIES[name].url.encode(), usedforsecurity=False).hexdigest()
