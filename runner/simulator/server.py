"""Serves the simulator on a port: inside this process, or until a signal ends it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from aiohttp import web

from runner.errors import UsageError
from runner.simulator.app import make_app
from runner.simulator.ledger import Ledger
from runner.simulator.profile import Profile

_BACKLOG: Final = 4_096
"""Connections that may wait to be accepted: a load test opens thousands at once."""
_SHUTDOWN_S: Final = 0.02
"""Streams get no time to end: the simulator has nothing to lose."""


@asynccontextmanager
async def running_app(
    profile: Profile, ledger: Ledger | None = None, *, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[str]:
    """Serves inside this event loop; gives the base URL, which ends in /v1. Port 0 takes a free one.

    `ledger` lets the caller look at what the server saw.

    Raises:
        UsageError: the address can't be had, or the profile names a scenario that doesn't exist.
    """
    app = make_app(profile, ledger)
    server = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=_SHUTDOWN_S)
    await server.setup()
    try:
        try:
            await web.TCPSite(server, host, port, backlog=_BACKLOG).start()
        except (OSError, OverflowError) as error:  # OverflowError: no port has such a number
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"simulator: can't listen on {host}:{port}: {reason}") from error
        yield base_url(host, server.addresses[0][1])
    finally:
        await server.cleanup()


def base_url(host: str, port: int) -> str:
    """What goes into OPENAI_BASE_URL."""
    named = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{named}]:{port}/v1" if ":" in named else f"http://{named}:{port}/v1"


async def serve(
    profile: Profile,
    host: str,
    port: int,
    *,
    ready: Callable[[int], None],
    stop: asyncio.Event,
    log: Path | None = None,
) -> None:
    """Serves until `stop` is set; calls `ready` with the port when it listens.

    Raises:
        UsageError: the address or the log file can't be had.
    """
    try:
        ledger = Ledger(file=log).__enter__()
    except OSError as error:
        raise UsageError(f"simulator: can't write {log}: {error.strerror or error}") from error
    with ledger:
        async with running_app(profile, ledger, host=host, port=port) as url:
            ready(int(url.removesuffix("/v1").rpartition(":")[2]))
            await stop.wait()


async def serve_forever(
    profile: Profile,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    ready: Callable[[int], None] = lambda port: None,
    log: Path | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM, and returns quietly then.

    Raises:
        UsageError: the address or the log file can't be had.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        await serve(profile, host, port, ready=ready, stop=stop, log=log)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
