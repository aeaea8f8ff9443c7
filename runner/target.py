"""Where a run sends and with which key: decided once, visibly, before anything is sent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from runner.errors import UsageError
from runner.settings import DEFAULT_BASE_URL, Settings, problem_with_url

_NO_KEY = "no-key"


class Target(NamedTuple):
    """An endpoint to send to."""

    base_url: str
    api_key: str
    origin: str  # where the URL came from, for the first line a user sees
    simulated: bool = False


def resolve(settings: Settings, env: Mapping[str, str] = os.environ) -> Target:
    """The endpoint that settings and environment name.

    Raises:
        UsageError: there is no key for OpenAI (nothing is simulated unasked), or the URL can't be used.
    """
    key = env.get(settings.api_key_env, "").strip()
    url, origin = settings.base_url, "--base-url"
    if url is None and env.get("OPENAI_BASE_URL"):
        url, origin = env["OPENAI_BASE_URL"], "OPENAI_BASE_URL"
        if problem := problem_with_url(url):
            raise UsageError(f"environment variable OPENAI_BASE_URL: {problem}")
    if url is not None:
        # Local servers mostly want no key.
        return Target(url, key or _NO_KEY, origin)
    if not key:
        raise UsageError(
            f"no API key: the environment variable {settings.api_key_env} is not set. Set it, or name an "
            "OpenAI-compatible server with --base-url URL, or try everything without key and network: --simulate"
        )
    return Target(DEFAULT_BASE_URL, key, "default")
