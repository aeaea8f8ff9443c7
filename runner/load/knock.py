"""Whether anybody listens at the endpoints, before a load test begins.

A connection is opened and closed again; no request is sent, so that nothing is paid and no server counts one. A port
where nobody listens would otherwise be measured: some thousand refused connections a second, for every level.

Accepted: behind a proxy of the environment only the proxy could be asked, and so nothing is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

import anyio

from runner.errors import RunnerError
from runner.limits import CONNECT_TIMEOUT_S
from runner.manifest import without_credentials
from runner.target import Target
from runner.transport import environment_proxy

_PORTS: Final = {"http": 80, "https": 443}


class UnreachableError(RunnerError):
    """Raised when nobody listens at an endpoint."""


async def refuse_silence(targets: Iterable[Target]) -> None:
    """Knocks at every endpoint once.

    Raises:
        UnreachableError: nobody listens at one of them.
    """
    for base_url in dict.fromkeys(target.base_url for target in targets):
        if environment_proxy(base_url) is None:
            await _knock(base_url)


async def _knock(base_url: str) -> None:
    parts = urlsplit(base_url)
    port = parts.port or _PORTS[parts.scheme]
    try:
        with anyio.fail_after(CONNECT_TIMEOUT_S):
            stream = await anyio.connect_tcp(parts.hostname or "", port)
            await stream.aclose()
    except TimeoutError:
        why = f"no connection within {CONNECT_TIMEOUT_S:g} s"
    except OSError as error:
        why = _reason(error)
    else:
        return
    raise UnreachableError(
        f"nobody answers at {without_credentials(base_url)} ({why}): is the server up? Nothing was sent"
    )


def _reason(error: OSError) -> str:
    """What the system says: anyio tells only that all attempts failed."""
    found: BaseException = error
    while isinstance(cause := found.__cause__, BaseException):
        found = cause
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    if not isinstance(found, OSError) or found.errno is None:
        return str(found)
    # asyncio words it anew; names that don't resolve have negative numbers and words of their own.
    return (os.strerror(found.errno) if found.errno > 0 else found.strerror or "").lower()
