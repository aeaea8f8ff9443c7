"""Exceptions that end a run, each with the exit code that it maps to.

What goes wrong with one job is never an exception here: it is a `Fault` in that job's record. These are the things
that stop the whole run, so the type says whose move it is: the user's, the operating system's, or the server's.
"""

from __future__ import annotations

from typing import ClassVar


class RunnerError(Exception):
    """Base of every error this package raises on purpose; its message is one line meant for the user."""

    exit_code: ClassVar[int] = 1


class UsageError(RunnerError):
    """Raised when an option, a configuration file, an environment variable or an input can't be used."""

    exit_code = 2


class InputError(UsageError):
    """Raised when a jobs file can't be read: it is missing, not a file, or its compression is damaged."""


class DamagedOutputError(UsageError):
    """Raised when results.jsonl is broken somewhere before its last line, where no crash of ours could have done it."""


class LockedError(RunnerError):
    """Raised when another run holds the output folder."""

    exit_code = 3


class StoppedError(RunnerError):
    """Raised when a limit that the user set, or an answer that no retry can mend, stops the run."""

    exit_code = 4


class OutputError(RunnerError):
    """Raised when the output can't be written: the disk is full, read-only or failing. EX_IOERR of sysexits.h."""

    exit_code = 74


def first_of_ours(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a group is about: several tasks may have met the same full disk."""
    ours = group.subgroup(RunnerError)
    found: BaseException = group if ours is None else ours
    while isinstance(found, BaseExceptionGroup):
        if found is group and len(found.exceptions) > 1 and ours is None:
            return group
        found = found.exceptions[0]
    return found
