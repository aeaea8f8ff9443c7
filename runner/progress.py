"""The live view, on stderr, and --echo, on stdout.

A view reads snapshots a few times a second; it never ends or holds up the run: what its stream doesn't take is dropped,
and a view that fails is logged and shown no more. rich is imported only when it draws.

What is shown fits the width: parts that don't fit on a line go to the next, whole. Numbers that change many times a
second are as wide as they were, so that nothing jumps.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from typing import IO, Any, Final, Literal, Protocol

import anyio
import orjson

from runner.escape import for_line, for_terminal
from runner.limits import MAX_ECHO_CHARS
from runner.metrics import Snapshot
from runner.terminal import Outlet, console

log = logging.getLogger(__name__)

Style = Literal["auto", "rich", "plain", "json", "none"]
_PERIOD_S: Final = {"rich": 0.25, "plain": 10.0, "json": 1.0}
_GAP: Final = "  "
_MARGIN: Final = 4
"""Columns left free: the terminal's own ^C, at the end of a full line, would begin another and shift the view."""
_LIMITERS: Final = {"requests": "RPM", "tokens": "TPM", "disk": "the disk", "server": "the server"}
"""What `limited_by` names by something other than its own word."""


class _View(Protocol):
    def draw(self, now: Snapshot) -> None: ...
    def say(self, text: str) -> None: ...
    def close(self) -> None: ...


@contextlib.asynccontextmanager
async def live_view(
    style: Style, snapshot: Callable[[], Snapshot], stream: IO[str] | None, *, echoing: bool = False
) -> AsyncIterator[Callable[[str], None]]:
    """Shows the run for as long as it lasts, and its last state at the end; gives what prints a line at once.

    `stream`: None where there is none. `echoing`: the answers are printed on a terminal at the same time, so that
    nothing may be redrawn there.
    """
    out = Outlet(stream)
    if style == "auto":
        style = "none" if echoing else "rich"
    if style == "rich" and (not out.isatty() or os.environ.get("TERM") == "dumb"):
        style = "plain"  # nothing can be redrawn there
    if style == "none":
        yield _LineView(out, json_form=False).say
        return
    view = _Steady(lambda: _RichView(out) if style == "rich" else _LineView(out, json_form=style == "json"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_redraw, view, snapshot, _PERIOD_S[style])
        try:
            yield view.say
        finally:
            tasks.cancel_scope.cancel()
            view.draw(snapshot())
            view.close()
            out.drain()  # what comes late would be drawn over the summary


async def _redraw(view: _View, snapshot: Callable[[], Snapshot], period_s: float) -> None:
    while True:
        await anyio.sleep(period_s)
        view.draw(snapshot())


class _Steady:
    """A view whose failures are its own. The first ends it."""

    def __init__(self, make: Callable[[], _View]) -> None:
        self._view: _View | None = None
        self._view = self._tried(make)

    def draw(self, now: Snapshot) -> None:
        """Shows the state."""
        if self._view is not None:
            self._tried(self._view.draw, now)

    def say(self, text: str) -> None:
        """Shows a line."""
        if self._view is not None:
            self._tried(self._view.say, text)

    def close(self) -> None:
        """Gives the screen back."""
        if self._view is not None:
            self._tried(self._view.close)

    def _tried(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except Exception:  # a night's run must not end because a frame couldn't be drawn
            log.exception("the live view failed")
            self._view = None


class _LineView:
    """A line now and then: for logs and pipes."""

    def __init__(self, out: Outlet, *, json_form: bool) -> None:
        self._out = out
        self._json = json_form

    def draw(self, now: Snapshot) -> None:
        line = orjson.dumps(now._asdict()).decode() if self._json else plain_line(now)
        self._out.write(f"{line}\n")

    def say(self, text: str) -> None:
        """A line beside the view."""
        self._out.write(f"runner: {for_line(text)}\n")

    def close(self) -> None:
        """Nothing is left on the screen."""


class _RichView:
    """A few lines that are redrawn in place."""

    def __init__(self, out: Outlet) -> None:
        from rich.live import Live

        self._out = out
        # Standard streams stay what they are: --echo and warnings have their own way out.
        self._live = Live(
            console=console(out), auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        self._live.start()

    def draw(self, now: Snapshot) -> None:
        if self._out.behind:
            return  # a stopped terminal is to show the state of now when it goes on, not a film of the past
        self._live.update(_panel(now, self._live.console.width), refresh=True)

    def say(self, text: str) -> None:
        """A line above the view."""
        self._live.console.print(f"runner: {for_line(text)}", markup=False, emoji=False)

    def close(self) -> None:
        self._live.stop()


def _panel(now: Snapshot, width: int) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    width -= _MARGIN
    lines = Table.grid()  # a bar doesn't end its line by itself
    if now.total:
        lines.add_row(ProgressBar(total=now.total, completed=min(now.done, now.total), width=max(1, width)))
    for parts, style in ((_counts(now), ""), (_rates(now), "dim")):
        for line in packed(parts, width):
            text = Text(line[: max(0, width)], style=style, no_wrap=True)
            text.highlight_regex(r"[1-9][\d,]* failed", "red")
            lines.add_row(text)
    return lines


def packed(parts: Iterable[str], width: int) -> list[str]:
    """The parts on as few lines as hold them; a part is never cut while it fits on a line of its own."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(_GAP) + len(part) <= width:
            lines[-1] += _GAP + part
        else:
            lines.append(part)
    return lines


def plain_line(now: Snapshot) -> str:
    """The snapshot as one line of text."""
    return _GAP.join([", ".join(_counts(now)), *_rates(now)])


def _counts(now: Snapshot) -> list[str]:
    """Where the jobs are."""
    total = f"{now.total:,}" if now.total is not None else ""
    parts = [f"{now.done:>{len(total)},}{'/' if total else ''}{total} done"]
    if now.total:
        parts[0] += f" ({min(1.0, now.done / now.total):4.0%})"
    parts += [f"{now.failed:,} failed", f"{now.in_flight:>{len(f'{now.limit:,}')},} in flight (limit {now.limit:,})"]
    if now.retries:
        parts.append(f"failed attempts {now.retries:,}")
    return parts


def _rates(now: Snapshot) -> list[str]:
    """How fast they go, and what holds them up."""
    parts = [f"{now.tokens_per_s:>7,.0f} tok/s", f"{now.jobs_per_s:>6,.1f} jobs/s"]
    for name, used, allowed in (("RPM", now.rpm_used, now.rpm_allowed), ("TPM", now.tpm_used, now.tpm_allowed)):
        if allowed is not None:
            parts.append(f"{name} {used:>{len(f'{allowed:,.0f}')},.0f}/{allowed:,.0f}")
    if now.cooldown_s > 0:
        parts.append(f"server asked to wait {duration(max(1, now.cooldown_s))}")
    elif now.limited_by is not None:
        parts.append(f"limited by {_LIMITERS.get(now.limited_by, now.limited_by)}")
    if now.cost:
        parts.append(f"cost {now.cost:,.2f}")
    parts.append(f"{duration(now.elapsed_s)} so far")
    if now.eta_s is not None:
        parts.append(f"ETA {duration(now.eta_s)}")
    return parts


def duration(seconds: float) -> str:
    """`75` → `1m15s`, two days → `2d00h`."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    if hours >= 48:
        return f"{hours // 24}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{left:02d}s" if minutes else f"{left}s"


class Echo:
    """Prints text as it arrives, one job at a time: what others say meanwhile is printed when their turn comes.

    Whole answers that have waited are printed in between when MAX_ECHO_CHARS of them have gathered. A reader that is
    too slow misses some, and is told how much; results.jsonl has all of it.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._out = Outlet(sys.stdout if stream is None else stream)
        self._speaker: str | None = None
        self._waiting: dict[str, list[str]] = {}  # in the order in which they began
        self._ended: dict[str, None] = {}  # of those who wait, in the order in which they ended
        self._ended_chars = 0

    def text(self, job_id: str, text: str) -> None:
        """A job's next piece of text."""
        if self._speaker is None:
            self._speak(job_id)
        if self._speaker == job_id:
            self._write(for_terminal(text))
        else:
            self._waiting.setdefault(job_id, []).append(text)

    def void(self, job_id: str, reason: str) -> None:
        """What a job said is void: it begins anew. What wasn't printed yet never is."""
        if self._speaker == job_id:
            self._write(f"\n[again: {for_line(reason)}]\n")
        else:
            self._waiting.pop(job_id, None)

    def end(self, job_id: str) -> None:
        """A job is finished; the next one's turn has come."""
        if self._speaker == job_id:
            self._write("\n")
            self._speaker = None
            self._next()
        elif job_id in self._waiting:
            self._ended[job_id] = None
            self._ended_chars += sum(map(len, self._waiting[job_id]))
            if self._ended_chars > MAX_ECHO_CHARS:
                self._catch_up()

    def _next(self) -> None:
        """Those who have ended come first, then the one who has waited longest speaks."""
        self._print_ended()
        if self._waiting:
            following = next(iter(self._waiting))
            self._speak(following)
            self._write(for_terminal("".join(self._waiting.pop(following))))

    def _catch_up(self) -> None:
        self._write("\n")
        self._print_ended()
        if self._speaker is not None:
            self._speak(self._speaker)

    def _print_ended(self) -> None:
        for job_id in self._ended:
            self._write(f"── {for_line(job_id)} ──\n{for_terminal(''.join(self._waiting.pop(job_id)))}\n")
        self._ended.clear()
        self._ended_chars = 0

    def _speak(self, job_id: str) -> None:
        self._speaker = job_id
        self._write(f"── {for_line(job_id)} ──\n")

    def _write(self, text: str) -> None:
        self._out.write(text)
