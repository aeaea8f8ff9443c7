"""run.log: JSON lines, redacted, and nothing of the libraries below WARNING."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import orjson

from runner.redact import Redactor

_STANDARD: Final = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """One object a line: time, level, logger, message, the `extra` fields, and a traceback where there is one."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its newline."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(self._redactor.redact_json(entry), default=str, option=orjson.OPT_NON_STR_KEYS).decode()


@contextmanager
def log_to(path: Path, level: str, redactor: Redactor) -> Iterator[None]:
    """Appends this program's log to `path` for as long as it lasts.

    The libraries' loggers are held at WARNING: httpx2 logs request URLs at INFO, and a key may stand in one.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    handler = logging.StreamHandler(os.fdopen(descriptor, "a", encoding="utf-8", errors="backslashreplace"))
    handler.setFormatter(JsonLines(redactor))
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
        handler.stream.close()
