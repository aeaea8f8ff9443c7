"""Answers that aren't 200: status codes, Retry-After in every shape, redirects."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from typing import Any, Final, NamedTuple

import orjson
from aiohttp import web

from runner.simulator.allowance import come_back
from runner.simulator.exchange import JSON, Exchange
from runner.simulator.refusals import ApiError, error_object, wrong_key

Run = Callable[[Exchange], Awaitable[web.StreamResponse]]

_RETRY_S: Final = 0.1
"""What a simulated 429 asks to wait, unless the request says: short, since rehearsals are many."""


class _Words(NamedTuple):
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None


STATUSES: Final[Mapping[int, _Words]] = {
    400: _Words("Invalid value for 'temperature' (simulated).", code="invalid_value", param="temperature"),
    401: _Words("Incorrect API key provided: sk-sim***0000.", code="invalid_api_key"),
    403: _Words(
        "Country, region, or territory not supported.", "request_forbidden", "unsupported_country_region_territory"
    ),
    404: _Words("The model does not exist or you do not have access to it.", code="model_not_found"),
    408: _Words("The request timed out.", "timeout"),
    409: _Words("The resource was updated by another process. Please try again.", code="conflict"),
    422: _Words("The request could not be processed.", code="unprocessable_entity"),
    425: _Words("Too early. Please try again.", code="too_early"),
    429: _Words("Rate limit reached on requests per min (simulated).", "requests", "rate_limit_exceeded"),
    500: _Words("The server had an error while processing your request. Sorry about that!", "server_error"),
    502: _Words("Bad gateway.", "server_error"),
    503: _Words("The engine is currently overloaded, please try again later.", "server_error"),
    504: _Words("The upstream server timed out.", "server_error"),
    529: _Words("Overloaded.", "overloaded_error"),
}
_HTML: Final = b"<html>\r\n<head><title>%d</title></head>\r\n<body><h1>%d (simulated)</h1></body>\r\n</html>\r\n"
_PROXY_STATUSES: Final = (502, 504)


def http(status: int) -> Run:
    """A status with the API's error body; 502 and 504 come with a proxy's HTML, as they do in the wild."""
    words = STATUSES[status]

    async def run(ex: Exchange) -> web.StreamResponse:
        if status in _PROXY_STATUSES:
            return ex.whole(status, _HTML % (status, status), "text/html")
        return ex.refusal(_error(ex, status, words))

    return run


def refuse(status: int, message: str, type_: str, code: str, param: str | None = None) -> Run:
    """An error of its own kind."""

    async def run(ex: Exchange) -> web.StreamResponse:
        return ex.refusal(_error(ex, status, _Words(message, type_, code, param)))

    return run


def _error(ex: Exchange, status: int, words: _Words) -> ApiError:
    error = error_object(words.message, words.type, words.param, words.code)
    return ApiError(status, error, _wait(ex, status, words.type))


def _wait(ex: Exchange, status: int, kind: str) -> dict[str, str]:
    """Retry-After where the request asks for one, and on a 429 that waiting can mend."""
    asked = ex.plan.rehearsal.retry_after_s
    if asked is not None:
        return come_back(asked)
    return come_back(_RETRY_S) if status == 429 and kind != "insufficient_quota" else {}


def retry_after(value: Callable[[], str | None]) -> Run:
    """A 429 whose Retry-After is what `value` gives, or that has none."""

    async def run(ex: Exchange) -> web.StreamResponse:
        words, text = STATUSES[429], value()
        error = error_object(words.message, words.type, words.param, words.code)
        return ex.refusal(ApiError(429, error, {} if text is None else {"retry-after": text}))

    return run


def http_date(offset_s: float) -> Callable[[], str]:
    """An HTTP date so far from now."""
    return lambda: formatdate(time.time() + offset_s, usegmt=True)


def redirect(status: int) -> Run:
    """A redirect to `/redirected`, which answers well: following it looks like a success, and is counted."""

    async def run(ex: Exchange) -> web.StreamResponse:
        return ex.whole(status, b"", "text/plain", {"location": f"http://{ex.request.host}/redirected"})

    return run


async def storm(ex: Exchange, left_s: float) -> web.StreamResponse:
    """The 429 of a storm: come back when it is over."""
    words = STATUSES[429]
    error = error_object(words.message, words.type, words.param, words.code)
    return ex.refusal(ApiError(429, error, come_back(left_s)))


async def echo_key_401(ex: Exchange) -> web.StreamResponse:
    """A 401 that repeats the key as it was sent."""
    key = ex.request.headers.get("authorization", "").removeprefix("Bearer ")
    error: Any = wrong_key("none").error
    error["message"] = f"Incorrect API key provided: {key}. You can find your API key at the simulator."
    return ex.whole(401, orjson.dumps({"error": error}), JSON)
