from __future__ import annotations

import logging
import os

import orjson
import pytest

from runner.errors import OutputError
from runner.logs import log_to
from runner.redact import Redactor

KEY = "canary-7f3a9b"


def logged(tmp_path, level="DEBUG"):
    path = tmp_path / "run.log"
    log = logging.getLogger("runner.test")
    with log_to(path, level, Redactor([KEY])):
        log.debug("debug %s", KEY)
        log.info("an attempt failed", extra={"job": f"j-{KEY}", "status": 500, "when": object()})
        try:
            raise ValueError(KEY)
        except ValueError:
            log.exception("internal")
        logging.getLogger("httpx2").info("GET https://h/?key=%s", KEY)
    return path, [orjson.loads(line) for line in path.read_bytes().splitlines()]


def test_it_is_json_lines_with_the_fields_and_without_the_key(tmp_path):
    path, lines = logged(tmp_path)
    assert [line["level"] for line in lines] == ["DEBUG", "INFO", "ERROR"]
    assert lines[1]["status"] == 500
    assert "ValueError" in lines[2]["traceback"]
    assert KEY.encode() not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_level_is_asked_for_and_given_back(tmp_path):
    before = logging.getLogger("runner").level
    _, lines = logged(tmp_path, "ERROR")
    assert [line["level"] for line in lines] == ["ERROR"]
    assert logging.getLogger("runner").level == before


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "run.log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError, match=r"run\.log"):
        logged(tmp_path)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_not_the_logs_to_report():
    with log_to("/dev/full", "INFO", Redactor()):  # type: ignore[arg-type]
        logging.getLogger("runner.test").warning("nowhere to go")
