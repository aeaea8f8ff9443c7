"""Where a run sends and with which keys: decided once, visibly, before anything is sent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from runner.errors import UsageError
from runner.settings import DEFAULT_BASE_URL, EndpointSettings, Settings, problem_with_url

_NO_KEY = "no-key"
_SENT_BY_THE_SDK = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID")


class Target(NamedTuple):
    """An endpoint to send to."""

    base_url: str
    api_key: str
    origin: str  # where the URL came from, for the first line a user sees
    simulated: bool = False
    settings: EndpointSettings | None = None
    """What was said of it, where it is one of `endpoints`."""


def resolve(settings: Settings, env: Mapping[str, str] = os.environ) -> list[Target]:
    """The endpoints that settings and environment name: one, or those of `endpoints`.

    Raises:
        UsageError: there is no key for OpenAI (nothing is simulated unasked), or a key or a URL can't be used.
    """
    for name in _SENT_BY_THE_SDK:
        _key(name, env)
    if settings.endpoints:
        return [_one_of_several(each, env) for each in settings.endpoints]
    key = _key(settings.api_key_env, env)
    url, origin = settings.base_url, "--base-url"
    if url is None and env.get("OPENAI_BASE_URL"):
        url, origin = env["OPENAI_BASE_URL"], "OPENAI_BASE_URL"
        if problem := problem_with_url(url):
            raise UsageError(f"environment variable OPENAI_BASE_URL: {problem}")
    if url is not None:
        # Local servers mostly want no key.
        return [Target(url, key or _NO_KEY, origin)]
    if not key:
        raise UsageError(
            f"no API key: the environment variable {settings.api_key_env} is not set. Set it, or name an "
            "OpenAI-compatible server with --base-url URL, or try everything without key and network: --simulate"
        )
    return [Target(DEFAULT_BASE_URL, key, "default")]


def _key(name: str, env: Mapping[str, str]) -> str:
    """The key or name that a variable holds, without the end of its line; empty where there is none."""
    key = env.get(name, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise UsageError(
            f"environment variable {name}: it has characters that can't be sent: curly quotes, a line's end, …"
        )
    return key


def _one_of_several(endpoint: EndpointSettings, env: Mapping[str, str]) -> Target:
    key = _key(endpoint.api_key_env, env)
    if not key and (endpoint.base_url == DEFAULT_BASE_URL or endpoint.kind == "azure"):
        raise UsageError(
            f"endpoint {endpoint.name}: no API key: the environment variable {endpoint.api_key_env} is not set"
        )
    return Target(endpoint.base_url, key or _NO_KEY, "endpoints", settings=endpoint)


def simulated(settings: Settings, base_url: str) -> list[Target]:
    """The same with a simulator in the place of every endpoint."""
    if not settings.endpoints:
        return [Target(base_url, "simulated-key", "--simulate", simulated=True)]
    return [
        Target(base_url, f"simulated-key-{each.name}", "--simulate", simulated=True, settings=_plain(each))
        for each in settings.endpoints
    ]


def _plain(endpoint: EndpointSettings) -> EndpointSettings:
    """The simulator has no dated API."""
    return endpoint.model_copy(update={"kind": "openai", "api_version": None})
