"""Exceptions that end a run, each with the exit code that it maps to.

What goes wrong with one job is never an exception here: it is a `Fault` in that job's record. These are the things
that stop the whole run, so the type says whose move it is: the user's, the operating system's, or the server's.
"""

from __future__ import annotations

import errno
from typing import ClassVar, Final


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


class ResourceError(UsageError):
    """Raised when the system doesn't give what every run needs: descriptors, threads, memory, a process."""


class LockedError(RunnerError):
    """Raised when another run holds the output folder."""

    exit_code = 3


class OutputError(RunnerError):
    """Raised when the output can't be written: the disk is full, read-only or failing. EX_IOERR of sysexits.h."""

    exit_code = 74


_TOO_FEW: Final = {
    errno.EMFILE: "more files are needed than `ulimit -n` allows: raise it",
    errno.ENFILE: "the system has no more files to open",
    errno.EAGAIN: "the system has no more of what was asked for (processes, or memory for them)",
    errno.ENOMEM: "the system has no more memory",
}


def of_system(error: BaseException) -> RunnerError | None:
    """What the system may refuse at any moment, in any line, as an error with one line for the user; None: a bug.

    Only for what nobody nearer to the cause has taken: there a traceback would tell a user nothing.
    """
    link: BaseException | None = error
    while link is not None:
        if (lacking := _lacking(link)) is not None:
            return ResourceError(lacking)
        link = link.__cause__ or link.__context__  # an event loop that can't begin fails again at its end
    if not isinstance(error, OSError):
        return None
    return OutputError(f"{error.filename or 'the system'}: {error.strerror or str(error) or type(error).__name__}")


def _lacking(error: BaseException) -> str | None:
    if isinstance(error, MemoryError):
        return _TOO_FEW[errno.ENOMEM]
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "the system gives no more threads: `ulimit -u`, `ulimit -v` or a container's limit is too low"
    if isinstance(error, OSError) and error.errno in _TOO_FEW:
        return f"{_TOO_FEW[error.errno]} ({error.strerror})"
    return None


def first_of_ours(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a group is about: several tasks may have met the same full disk."""
    ours = group.subgroup(RunnerError)
    found: BaseException = group if ours is None else ours
    while isinstance(found, BaseExceptionGroup):
        if found is group and len(found.exceptions) > 1 and ours is None:
            return group
        found = found.exceptions[0]
    return found
