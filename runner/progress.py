"""The live view, on stderr, and --echo, on stdout.

A view reads snapshots a few times a second; it never holds up the run: when its stream is closed under it, it stops
drawing and the run goes on. rich is imported only when it draws.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from typing import IO, Any, Final, Literal

import anyio
import orjson

from runner.escape import for_line, for_terminal
from runner.limits import MAX_ECHO_CHARS
from runner.metrics import Snapshot
from runner.terminal import console, stream_may_be_gone

Style = Literal["auto", "rich", "plain", "json", "none"]
_PERIOD_S: Final = {"rich": 0.25, "plain": 10.0, "json": 1.0}


@contextlib.asynccontextmanager
async def live_view(
    style: Style, snapshot: Callable[[], Snapshot], stream: IO[str], *, echoing: bool = False
) -> AsyncIterator[Callable[[str], None]]:
    """Shows the run for as long as it lasts, and its last state at the end; gives what prints a line at once.

    `echoing`: the answers are printed on a terminal at the same time, so that nothing may be redrawn there.
    """
    if style == "auto":
        style = "none" if echoing else "rich" if stream.isatty() else "plain"
    if style == "none":
        yield _LineView(stream, json_form=False).say
        return
    view = _RichView(stream) if style == "rich" else _LineView(stream, json_form=style == "json")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_redraw, view, snapshot, _PERIOD_S[style])
        try:
            yield view.say
        finally:
            tasks.cancel_scope.cancel()
            with stream_may_be_gone():
                view.draw(snapshot())
                view.close()


async def _redraw(view: _RichView | _LineView, snapshot: Callable[[], Snapshot], period_s: float) -> None:
    while True:
        await anyio.sleep(period_s)
        with stream_may_be_gone():
            view.draw(snapshot())


class _LineView:
    """A line now and then: for logs and pipes."""

    def __init__(self, stream: IO[str], *, json_form: bool) -> None:
        self._stream = stream
        self._json = json_form

    def draw(self, now: Snapshot) -> None:
        line = orjson.dumps(now._asdict()).decode() if self._json else plain_line(now)
        self._stream.write(f"{line}\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        """A line beside the view."""
        with stream_may_be_gone():
            self._stream.write(f"runner: {text}\n")
            self._stream.flush()

    def close(self) -> None:
        """Nothing is left on the screen."""


class _RichView:
    """A few lines that are redrawn in place."""

    def __init__(self, stream: IO[str]) -> None:
        from rich.live import Live

        self._live = Live(console=console(stream), auto_refresh=False, transient=True)
        self._live.start()

    def draw(self, now: Snapshot) -> None:
        self._live.update(_panel(now), refresh=True)

    def say(self, text: str) -> None:
        """A line above the view."""
        with stream_may_be_gone():
            self._live.console.print(f"runner: {text}", markup=False)

    def close(self) -> None:
        self._live.stop()


def _panel(now: Snapshot) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    done = now.resumed + now.succeeded + now.failed
    counts = Text(no_wrap=True, overflow="ellipsis")
    counts.append(f"{done:,}" + (f" of {now.total:,}" if now.total is not None else "") + " done")
    counts.append(f"  {now.failed:,} failed", style="red" if now.failed else "dim")
    counts.append(f"  {now.in_flight:,} in flight", style="cyan")
    counts.append(f" of {now.limit:,}", style="dim")
    rates = Text("  ".join(_rates(now)), no_wrap=True, overflow="ellipsis", style="dim")
    lines = Table.grid(expand=True)  # a bar doesn't end its line by itself
    if now.total:
        lines.add_row(ProgressBar(total=now.total, completed=min(done, now.total)))
    lines.add_row(counts)
    lines.add_row(rates)
    return lines


def plain_line(now: Snapshot) -> str:
    """The snapshot as one line of text."""
    done = now.resumed + now.succeeded + now.failed
    total = f"/{now.total}" if now.total is not None else ""
    return "  ".join([f"{done}{total} done, {now.failed} failed, {now.in_flight} in flight", *_rates(now)])


def _rates(now: Snapshot) -> list[str]:
    parts = [f"{now.tokens_per_s:,.0f} tok/s", f"{now.jobs_per_s:,.1f} jobs/s"]
    if now.rpm_allowed is not None:
        parts.append(f"RPM {now.rpm_used:,.0f}/{now.rpm_allowed:,.0f}")
    if now.tpm_allowed is not None:
        parts.append(f"TPM {now.tpm_used:,.0f}/{now.tpm_allowed:,.0f}")
    if now.limited_by is not None:
        parts.append(f"limited by {now.limited_by}")
    if now.cooldown_s > 0:
        parts.append(f"cooling down {now.cooldown_s:.0f} s")
    if now.cost:
        parts.append(f"cost {now.cost:,.2f}")
    parts.append(f"ETA {duration(now.eta_s)}" if now.eta_s is not None else f"{duration(now.elapsed_s)} so far")
    return parts


def duration(seconds: float) -> str:
    """`75` → `1m15s`."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{left:02d}s" if minutes else f"{left}s"


class Echo:
    """Prints text as it arrives, one job at a time: what others say meanwhile is printed when their turn comes.

    Whole answers that have waited are printed in between when MAX_ECHO_CHARS of them have gathered.
    """

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
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
        with stream_may_be_gone():
            self._stream.write(text)
            self._stream.flush()
