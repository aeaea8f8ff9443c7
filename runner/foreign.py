"""Exceptions of the SDK, httpx2 and aiohttp → `Fault`: the one place that knows their classes."""

from __future__ import annotations

import errno
import ssl
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import orjson

from runner import faults
from runner.faults import Fault, FaultKind
from runner.limits import MAX_ERROR_TEXT_CHARS
from runner.redact import shortened

_FD_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE})

FOREIGN = (openai.OpenAIError, httpx2.TransportError)
"""What a request may raise; `fault_of` knows them all."""


def fault_of(error: Exception) -> Fault:
    """The fault behind one of `FOREIGN`."""
    if isinstance(error, openai.APIStatusError):
        return _of_status(error)
    chain = tuple(_chain(error))
    message = _innermost_message(chain)
    if any(isinstance(link, OSError) and link.errno in _FD_ERRNOS for link in chain):
        return Fault(
            FaultKind.FD_LIMIT,
            f"{message}: more sockets than `ulimit -n` allows; raise it or lower --concurrency",
        )
    if any(isinstance(link, ssl.SSLCertVerificationError) for link in chain):
        return Fault(FaultKind.CERTIFICATE, message)
    if any(isinstance(link, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError) for link in chain):
        return Fault(FaultKind.CONNECT, message)
    return Fault(FaultKind.BROKEN, message)


def let_go(error: BaseException) -> None:
    """Forgets through which frames an error and its causes came, once its fault is known.

    What failed holds the error, and frames hold what failed: a server that is down would leave thousands of such rings
    to the garbage collector, each with its buffers.
    """
    link: BaseException | None = error
    while link is not None:
        link.__traceback__ = None
        link = link.__cause__ or link.__context__


def _of_status(error: openai.APIStatusError) -> Fault:
    response = error.response
    return faults.from_status(error.status_code, response.headers, parse_error_body(response.content), time.time())


def parse_error_body(content: bytes) -> Any:
    """An error body as JSON where it is JSON, else as text, bounded."""
    try:
        body = orjson.loads(content)
        orjson.dumps([[[[body]]]])  # what is nested deeper than a record can hold is kept as text
    except (orjson.JSONDecodeError, orjson.JSONEncodeError, TypeError):
        return shortened(content.decode("utf-8", "replace"), MAX_ERROR_TEXT_CHARS)
    return body


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, outermost first."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _innermost_message(chain: tuple[BaseException, ...]) -> str:
    """What the system said, which the outer layers reduce to "Connection error."."""
    # What breaks the protocol is told by the transport; its parser says "User callback error" of what we refuse.
    told = tuple(link for link in chain if isinstance(link, httpx2.RemoteProtocolError))
    for link in told or reversed(chain):
        text = str(link).strip()
        if text:
            return shortened(text, MAX_ERROR_TEXT_CHARS)
    return type(chain[0]).__name__
