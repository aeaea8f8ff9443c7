"""Signals of the terminal and of schedulers: the first asks for an orderly end, the second ends at once.

SIGINT and SIGTERM: the first lets jobs in flight finish within the grace period, the second cancels them; nothing is
torn either way, since the journal finishes the group it is writing. SIGHUP is ignored: a run outlives its terminal.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
from anyio.abc import TaskStatus

ASKED_TO_STOP = (signal.SIGINT, signal.SIGTERM)


async def listen(
    on_first: Callable[[signal.Signals], None],
    on_second: Callable[[], None],
    *,
    task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Waits for signals and reports them; runs until it is cancelled."""
    with anyio.open_signal_receiver(*ASKED_TO_STOP) as received:
        task_status.started()
        asked = False
        async for number in received:
            if asked:
                on_second()
            else:
                on_first(number)
            asked = True


@contextmanager
def hangup_ignored() -> Iterator[None]:
    """Ignores SIGHUP for as long as it lasts, where there is such a signal and this is the main thread."""
    try:
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    except (AttributeError, ValueError):  # Windows; a thread of a host program
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
