"""The polling of `--server-metrics` beside a load test: a client of its own, and a recorder for every level."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import httpx2

from runner.load.scrape import Recorder, fetcher, poll


class Scraper:
    """Where polled values go now."""

    def __init__(self) -> None:
        self.recorder = Recorder()

    def begin(self) -> None:
        """A level begins."""
        self.recorder = Recorder()


@asynccontextmanager
async def scraping(url: str | None, warn: Callable[[str], None]) -> AsyncIterator[Scraper | None]:
    """Polls for as long as it lasts; None without a URL."""
    if url is None:
        yield None
        return
    scraper = Scraper()
    async with httpx2.AsyncClient(follow_redirects=False) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(poll, fetcher(client, url), lambda: scraper.recorder, lambda text: warn(f"runner: {text}"))
        yield scraper
        tasks.cancel_scope.cancel()
