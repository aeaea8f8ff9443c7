"""The live line of a load test, on stderr: the level, how far it is, what came back so far.

At a terminal one line is drawn over and over; in a pipe a line every PLAIN_S; as JSON (`--progress json`) one object a
second. What can't be written is dropped: a test must not end, or wait, because nobody reads.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import IO, Final, Literal

import anyio
import orjson

from runner.escape import for_line
from runner.load.crew import Live
from runner.load.figures import ms
from runner.load.spec import LevelSpec
from runner.terminal import Outlet

DRAWN_S: Final = 0.5
PLAIN_S: Final = 10.0
JSON_S: Final = 1.0
_BETWEEN: Final = " · "
_CLEAR: Final = "\r\x1b[K"

Style = Literal["auto", "rich", "plain", "json", "none"]
Now = tuple[LevelSpec, int, int | None, Live]
"""The level, how many were run before, of how many (None: a search), and how it stands."""


@asynccontextmanager
async def live_line(style: Style, now: Callable[[], Now | None], stream: IO[str] | None) -> AsyncIterator[Line]:
    """Draws for as long as it lasts; gives what prints a line of its own."""
    line = Line(style, Outlet(stream))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(line.draw_now_and_then, now)
        try:
            yield line
        finally:
            tasks.cancel_scope.cancel()
            line.clear()
            line.out.drain()


class Line:
    """See the module."""

    def __init__(self, style: Style, out: Outlet) -> None:
        self.out = out
        drawn = out.isatty() if style in ("auto", "rich") else False
        self._style = style if style in ("json", "none") else "drawn" if drawn else "plain"
        self._is_drawn = False

    def say(self, text: str) -> None:
        """Prints a line at once."""
        if self._style == "none":
            return
        self.clear()
        if self._style == "json":
            self.out.write(orjson.dumps({"message": text}).decode() + "\n")
        else:
            self.out.write(for_line(text) + "\n")

    def clear(self) -> None:
        """Takes away what is drawn."""
        if self._is_drawn:
            self.out.write(_CLEAR)
            self._is_drawn = False

    async def draw_now_and_then(self, now: Callable[[], Now | None]) -> None:
        """Runs until it is cancelled."""
        if self._style == "none":
            return
        period_s = {"drawn": DRAWN_S, "plain": PLAIN_S, "json": JSON_S}[self._style]
        while True:
            await anyio.sleep(period_s)
            found = now()
            if found is not None:
                self._draw(*found)

    def _draw(self, spec: LevelSpec, done: int, of: int | None, live: Live) -> None:
        if self._style == "json":
            figures = {"level": spec.label, "repeat": spec.repeat, **live._asdict()}
            self.out.write(orjson.dumps(figures).decode() + "\n")
            return
        text = for_line(shown(spec, done, of, live))
        if self._style == "plain":
            self.out.write(text + "\n")
            return
        self.out.write(_CLEAR + _fitting(text, max(20, shutil.get_terminal_size().columns - 1)))
        self._is_drawn = True


def shown(spec: LevelSpec, done: int, of: int | None, live: Live) -> str:
    """The line."""
    level = f"level {done + 1}" + (f"/{of}" if of is not None else "")
    parts = [f"{level} {spec.label}", _time(spec, live), f"{live.in_flight:,} in flight"]
    parts += [f"{live.waiting:,} waiting for limits"] * bool(live.waiting) + [f"{live.succeeded:,} ok"]
    parts += [f"{live.failed:,} failed"] * bool(live.failed) + [f"{live.throttled:,} ×429"] * bool(live.throttled)
    parts += [f"{live.dropped:,} dropped"] * bool(live.dropped)
    if live.ttft_p50_s is not None:
        parts.append(f"TTFT p50 {ms(live.ttft_p50_s)} ms")
    parts.append(f"lag {ms(live.lag_max_s)} ms")
    return _BETWEEN.join(parts)


def _fitting(text: str, columns: int) -> str:
    """As many parts as fit: the half of a number would be another number."""
    while len(text) > columns and _BETWEEN in text:
        text = text.rpartition(_BETWEEN)[0]
    return text[:columns]


def _time(spec: LevelSpec, live: Live) -> str:
    if spec.duration_s is None:
        sent = f"{live.sent:,}/{spec.requests:,} sent" if spec.requests is not None else f"{live.sent:,} sent"
        return f"{live.t_s:.0f} s, {sent}"
    if live.t_s > spec.duration_s:
        # No "of at most": the drain counts from the last request, and not while requests wait for limits.
        most = "" if spec.drain_s is None else f" (--drain {spec.drain_s:g} s)"
        return f"waiting for answers, {live.t_s - spec.duration_s:.0f} s{most}"
    return f"{live.t_s:.0f}/{spec.duration_s:g} s"
