"""Every promise of the native transport holds on asyncio's own loop and, where it is installed, on uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib.util import find_spec

# Without the parser there is no native transport to test.
collect_ignore_glob = [] if find_spec("httptools") else ["test_*.py"]


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    if not find_spec("uvloop"):
        return {"asyncio": asyncio.SelectorEventLoop}
    import uvloop

    return {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}
