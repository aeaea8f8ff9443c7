"""What went wrong with one attempt: one table, and the only place that decides whether to try again.

Every exception, status, header and in-stream error becomes a `Fault` of one `FaultKind`; the kind's row in the table
says whose fault it was, whether a further attempt can mend it, and what else it means for the run. Classification goes
by the error's type or code, never by its message and never by the status alone: 429 is both "wait a second" and "your
account is empty", and the same codes arrive inside a 200 stream.

Sources: the API's error-code page (retry, quota, slow_down), and answers seen from compatible servers.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from runner import ratelimits
from runner.limits import MAX_ERROR_TEXT_CHARS, MAX_RETRY_AFTER_S
from runner.ratelimits import UNKNOWN, RateLimits
from runner.redact import shortened


class FaultKind(enum.Enum):
    """The kinds of fault; the value is `error.code` of a record."""

    RATE_LIMITED = "rate_limited"
    SLOW_DOWN = "slow_down"
    OVERLOADED = "overloaded"
    CAPACITY = "capacity_unavailable"
    QUOTA = "no_quota"
    AUTH = "not_authorized"
    CERTIFICATE = "certificate"
    SERVER_ERROR = "server_error"
    TRY_AGAIN = "try_again"
    CONNECT = "connection"
    BROKEN = "connection_broken"
    TRUNCATED = "truncated"
    MALFORMED = "malformed"
    WRONG_CONTENT = "wrong_content"
    TOO_LARGE = "too_large"
    REDIRECT = "redirect"
    FIRST_TOKEN_TIMEOUT = "first_token_timeout"  # noqa: S105 - a token of text
    IDLE_TIMEOUT = "idle_timeout"
    TOTAL_TIMEOUT = "total_timeout"
    BAD_REQUEST = "bad_request"
    UNWANTED_FINISH = "unwanted_finish"
    NEVER_FITS = "never_fits"
    NOT_SERVED = "not_served"
    FD_LIMIT = "too_many_open_files"
    INTERNAL = "internal"


class Row(NamedTuple):
    """What a kind of fault means."""

    whose: str  # "server", "network", "request", "account", "user" or "local"
    retry: bool = False  # a further attempt may mend it
    throttle: bool = False  # everybody is to slow down: shared cool-down; such attempts have a bound of their own
    stops_run: bool = False  # no other job could succeed either


TABLE: dict[FaultKind, Row] = {
    FaultKind.RATE_LIMITED: Row("server", retry=True, throttle=True),
    FaultKind.SLOW_DOWN: Row("server", retry=True, throttle=True),
    FaultKind.OVERLOADED: Row("server", retry=True, throttle=True),
    FaultKind.CAPACITY: Row("server", retry=True),  # flex has no room: this request waits, others need not
    FaultKind.QUOTA: Row("account", stops_run=True),
    FaultKind.AUTH: Row("account", stops_run=True),
    FaultKind.CERTIFICATE: Row("user", stops_run=True),  # a proxy or a wrong host: every job would meet it
    FaultKind.SERVER_ERROR: Row("server", retry=True),
    FaultKind.TRY_AGAIN: Row("server", retry=True),  # 408, 409, 425
    FaultKind.CONNECT: Row("network", retry=True),
    FaultKind.BROKEN: Row("network", retry=True),
    FaultKind.TRUNCATED: Row("server", retry=True),  # a clean end without a terminal event
    FaultKind.MALFORMED: Row("server", retry=True),
    FaultKind.WRONG_CONTENT: Row("server", retry=True),  # 200 with HTML, a compressed body, JSON where SSE was due
    FaultKind.TOO_LARGE: Row("server"),  # the next attempt would be as large
    FaultKind.REDIRECT: Row("user"),  # following one would hand prompt and headers to another host
    FaultKind.FIRST_TOKEN_TIMEOUT: Row("server", retry=True),
    FaultKind.IDLE_TIMEOUT: Row("server", retry=True),
    FaultKind.TOTAL_TIMEOUT: Row("server", retry=True),
    FaultKind.BAD_REQUEST: Row("request"),
    FaultKind.UNWANTED_FINISH: Row("user"),  # ended well, but in a way that --fail-on names
    FaultKind.NEVER_FITS: Row("request"),  # needs more tokens than the limit gives in a minute
    FaultKind.NOT_SERVED: Row("user"),  # no endpoint of the pool serves the model
    FaultKind.FD_LIMIT: Row("local", retry=True, throttle=True),
    FaultKind.INTERNAL: Row("local"),
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that went wrong."""

    kind: FaultKind
    message: str
    """For a person. It may hold text of the server's: bounded here, redacted before it reaches a file."""
    status: int | None = None
    """The HTTP status, where an answer with one arrived."""
    server_code: str | None = None
    """`code` (or else `type`) of the API's error object."""
    retry_after_s: float | None = None
    """How long the server asked to wait; finite, within [0, MAX_RETRY_AFTER_S]."""
    body: Any = None
    """The error answer's body, parsed where it is JSON; for the record of a failed job."""
    request_id: str | None = None
    limits: RateLimits = UNKNOWN
    """What the answer's headers say of the rate limits."""
    should_retry: bool | None = None
    """The server's own x-should-retry, where it sent one; it outranks the table, but not `stops_run`."""

    @property
    def row(self) -> Row:
        """This kind's row of the table."""
        return TABLE[self.kind]

    @property
    def is_shared(self) -> bool:
        """Whether its wait is everybody's from the first on: an overload's is that attempt's, till it shows more."""
        return self.row.throttle and self.kind is not FaultKind.OVERLOADED

    @property
    def retry(self) -> bool:
        """Whether a further attempt may mend it."""
        if self.should_retry is not None and not self.row.stops_run:
            return self.should_retry
        return self.row.retry


_QUOTA = frozenset({"insufficient_quota", "credit_balance_exhausted", "billing_hard_limit_reached"})
_QUOTA_SUFFIXES = ("_spend_limit_exceeded", "_usage_limit_exceeded")
_OVERLOAD = frozenset({"server_is_overloaded", "overloaded", "overloaded_error", "engine_overloaded"})
_CAPACITY = frozenset({"resource_unavailable", "resource_exhausted_flex", "flex_unavailable"})
_RATE = frozenset(
    {"rate_limit_exceeded", "rate_limit_error", "rate_limited", "requests", "tokens", "too_many_requests"}
)
_AUTH = frozenset({"invalid_api_key", "authentication_error", "invalid_authentication", "permission_error"})
_SERVER = frozenset(
    {"server_error", "internal_error", "internal_server_error", "api_error", "service_unavailable", "timeout"}
)
_REQUEST = frozenset(
    {
        "invalid_request_error",
        "context_length_exceeded",
        "invalid_prompt",
        "model_not_found",
        "not_found_error",
        "content_policy_violation",
        "content_filter",
        "vector_store_timeout",
        "invalid_image",
        "invalid_image_format",
        "invalid_image_mode",
        "invalid_image_url",
        "invalid_base64_image",
        "image_too_large",
        "image_too_small",
        "image_parse_error",
        "image_content_policy_violation",
        "image_file_too_large",
        "unsupported_image_media_type",
        "empty_image_file",
        "failed_to_download_image",
        "image_file_not_found",
    }
)

_BY_STATUS: dict[int, FaultKind] = {
    401: FaultKind.AUTH,
    402: FaultKind.QUOTA,  # how OpenRouter, DeepSeek and others say that nothing is left to pay with
    403: FaultKind.AUTH,
    408: FaultKind.TRY_AGAIN,
    409: FaultKind.TRY_AGAIN,
    425: FaultKind.TRY_AGAIN,
    429: FaultKind.RATE_LIMITED,
    529: FaultKind.OVERLOADED,
}


def _kind_by_code(words: tuple[str, ...]) -> FaultKind | None:
    """The kind that an error object's code or type names, or None when it names none we know."""
    for word in words:
        if word in _QUOTA or word.endswith(_QUOTA_SUFFIXES):
            return FaultKind.QUOTA
    for word in words:
        for names, kind in _CODES:
            if word in names:
                return kind
    return None


_CODES: tuple[tuple[frozenset[str], FaultKind], ...] = (
    (frozenset({"slow_down"}), FaultKind.SLOW_DOWN),
    (_OVERLOAD, FaultKind.OVERLOADED),
    (_CAPACITY, FaultKind.CAPACITY),
    (_RATE, FaultKind.RATE_LIMITED),
    (_AUTH, FaultKind.AUTH),
    (_SERVER, FaultKind.SERVER_ERROR),
    (_REQUEST, FaultKind.BAD_REQUEST),
)


def _kind_by_status(status: int) -> FaultKind:
    if 300 <= status < 400:
        return FaultKind.REDIRECT
    return _BY_STATUS.get(status, FaultKind.SERVER_ERROR if status >= 500 else FaultKind.BAD_REQUEST)


def _error_object(body: Any) -> Mapping[str, Any]:
    """The API's error object: `{"error": {…}}`, a bare error, either in a list (Gemini), or nothing of the kind."""
    if isinstance(body, list) and body:
        body = body[0]
    if isinstance(body, Mapping):
        inner = body.get("error", body)
        if isinstance(inner, Mapping):
            return inner
        if isinstance(inner, str):
            return {"message": inner}
    return {}


def _words(error: Mapping[str, Any]) -> tuple[str, ...]:
    """Code before type: the code is the finer of the two."""
    return tuple(word for word in (error.get("code"), error.get("type")) if isinstance(word, str) and word)


def _message(error: Mapping[str, Any], body: Any, default: str) -> str:
    text = error.get("message")
    if not isinstance(text, str) or not text:
        text = body if isinstance(body, str) and body.strip() else default
    return shortened(text, MAX_ERROR_TEXT_CHARS).strip()


def from_status(status: int, headers: Mapping[str, str], body: Any, wall_now_s: float) -> Fault:
    """An answer whose status is not 200.

    `headers` are looked up in lower case; `body` is parsed JSON, or text; `wall_now_s` is Unix time, used only for a
    Retry-After that is a date.
    """
    error = _error_object(body)
    words = _words(error)
    by_code = _kind_by_code(words)
    by_status = _kind_by_status(status)
    kind = by_status
    if by_code is not None and _may_refine(status, by_code):
        kind = by_code
    should = headers.get("x-should-retry")
    return Fault(
        kind,
        _message(error, body, f"HTTP {status}"),
        status=status,
        server_code=words[0] if words else None,
        retry_after_s=retry_after(headers, wall_now_s),
        body=shortened(body, MAX_ERROR_TEXT_CHARS) if isinstance(body, str) else body,
        request_id=headers.get("x-request-id"),
        limits=ratelimits.read(headers),
        should_retry={"true": True, "false": False}.get(should.lower()) if should else None,
    )


def _may_refine(status: int, by_code: FaultKind) -> bool:
    """Whether a code's kind may replace the status's.

    401, 402 and 403 stop the run whatever they say, and a redirect is a redirect. A 4xx that says "requests" or
    "server_error" in its type is still a refusal of this request, except where the whole family is about rates (429).
    """
    if status in (401, 402, 403) or 300 <= status < 400:
        return False
    if by_code is FaultKind.QUOTA:
        return True
    if status == 429:
        return by_code in (FaultKind.SLOW_DOWN, FaultKind.OVERLOADED, FaultKind.CAPACITY)
    if status >= 500:
        return by_code in (FaultKind.SLOW_DOWN, FaultKind.OVERLOADED, FaultKind.RATE_LIMITED, FaultKind.CAPACITY)
    return False


def from_in_stream(error: Any) -> Fault:
    """An error that arrived inside a 200 stream: `{"error": {…}}`, a flat `error` event, or `response.error`.

    One whose code we don't know is the server's failure in the middle of an answer: retried.
    """
    obj = _error_object(error)
    # A flat Responses event is {"type": "error", "code", "message"}: its type says nothing.
    words = tuple(word for word in _words(obj) if word != "error")
    status = obj.get("status", obj.get("status_code", obj.get("code")))
    kind = _kind_by_code(words)
    if kind is None and isinstance(status, int) and not isinstance(status, bool) and 400 <= status < 600:
        kind = _kind_by_status(status)
    return Fault(
        kind or FaultKind.SERVER_ERROR,
        _message(obj, error, "the server reported an error inside the stream"),
        status=None,
        server_code=words[0] if words else None,
        body=error,
    )


def retry_after(headers: Mapping[str, str], wall_now_s: float) -> float | None:
    """Seconds to wait, from `retry-after-ms` or `Retry-After` (seconds or an HTTP date), or None without advice.

    Negative and past become 0. What can't be read or lies beyond MAX_RETRY_AFTER_S is a broken header and no advice:
    our own backoff goes on. A date is measured against the server's own `Date` header where there is one, so that clock
    skew cancels out.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return _sane(milliseconds / 1000)
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is not None:
        return _sane(seconds)
    when = _http_date(text)
    if when is None:
        return None
    server_now = _http_date(headers.get("date"))
    return _sane(when - (wall_now_s if server_now is None else server_now))


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return None if math.isnan(value) else value


def _http_date(text: str | None) -> float | None:
    """Unix time. All three forms of RFC 9110 §5.6.7 are UTC, though one of them doesn't say so."""
    if not text:
        return None
    try:
        when = parsedate_to_datetime(text)
        return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def _sane(seconds: float) -> float | None:
    return max(seconds, 0.0) if seconds <= MAX_RETRY_AFTER_S else None
