"""run.log: JSON lines, redacted, and nothing of the libraries below WARNING."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import orjson

from runner.errors import OutputError
from runner.redact import STANDARD_FIELDS, RedactingFilter, Redactor


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, message, the `extra` fields, and a traceback where there is one.

    Nothing is redacted here: a `RedactingFilter` has been over the record before.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its newline."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {key: value for key, value in record.__dict__.items() if key not in STANDARD_FIELDS}
        if record.exc_text:
            entry["traceback"] = record.exc_text
        return orjson.dumps(entry, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


@contextlib.contextmanager
def log_to(path: Path, level: str, redactor: Redactor) -> Iterator[None]:
    """Appends this program's log to `path` for as long as it lasts.

    Of the libraries only warnings get in: httpx2 logs request URLs at INFO, and a key may stand in one.

    Raises:
        OutputError: the file can't be opened.
    """
    # Not blocking: to open a named pipe would wait for its reader, perhaps for ever.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o600)
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}") from error
    handler = logging.StreamHandler(os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace"))
    handler.addFilter(lambda record: record.levelno >= logging.WARNING or record.name.startswith("runner"))
    handler.addFilter(RedactingFilter(redactor))
    handler.setFormatter(JsonLines())
    # A log that can't be written must not end the run: the records matter, and they report a full disk themselves.
    handler.handleError = lambda record: None  # type: ignore[method-assign]
    ours = logging.getLogger("runner")
    libraries = logging.getLogger()
    before = ours.level
    ours.setLevel(level)
    libraries.addHandler(handler)
    try:
        yield
    finally:
        libraries.removeHandler(handler)
        ours.setLevel(before)
        with contextlib.suppress(OSError):  # the same on a full disk
            handler.stream.close()
