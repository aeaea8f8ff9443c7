"""Signals as the kernel delivers them, to this very process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import anyio
import pytest

from runner.signals import ASKED_TO_STOP, hangup_ignored, listen


async def heard(numbers: list[signal.Signals]) -> list[signal.Signals | str]:
    """What is reported of signals that come one after the other."""
    reports: list[signal.Signals | str] = []
    reported = anyio.Event()

    def report(what: signal.Signals | str) -> None:
        reports.append(what)
        reported.set()

    async with anyio.create_task_group() as tasks:
        await tasks.start(listen, report, lambda: report("second"))
        for number in numbers:
            reported = anyio.Event()
            os.kill(os.getpid(), number)
            with anyio.fail_after(10):  # where it isn't heard
                await reported.wait()
        tasks.cancel_scope.cancel()
    return reports


@pytest.mark.parametrize("first", ASKED_TO_STOP)
@pytest.mark.parametrize("second", ASKED_TO_STOP)
async def test_the_first_signal_is_reported_once_and_every_later_one_as_the_second(first, second):
    assert await heard([first, second, first]) == [first, "second", "second"]


async def test_when_nobody_listens_any_more_signals_are_as_before():
    before = signal.getsignal(signal.SIGTERM)
    await heard([signal.SIGINT])
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_hangup_is_ignored_for_as_long_as_it_says():
    before = signal.getsignal(signal.SIGHUP)
    with hangup_ignored():
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is before


def test_a_host_program_may_ignore_hangups_from_a_thread_of_its_own():
    code = (
        "import threading; from runner.signals import hangup_ignored\n"
        "def run():\n"
        "    with hangup_ignored(): print('went on')\n"
        "thread = threading.Thread(target=run); thread.start(); thread.join()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "went on\n", ended.stderr
