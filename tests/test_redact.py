from __future__ import annotations

import base64
import json
import logging
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.redact import CUT, REPLACEMENT, RedactingFilter, Redactor

KEY = 'canary+"key/ é 7f3'  # everything that an encoding changes
KEYS = st.text(st.characters(codec="utf-8"), min_size=8, max_size=40)


def encodings(key):
    data = key.encode()
    return {
        "plain": key,
        "url": quote(key),
        "query": quote(key, safe=""),
        "json": json.dumps(key),
        "unescaped json": json.dumps(key, ensure_ascii=False),
        "repr": repr(key),
        "base64": base64.b64encode(data).decode(),
        "basic": base64.b64encode(b"user:" + data + b":x").decode(),
        "urlsafe": base64.urlsafe_b64encode(b"u:" + data).decode(),
    }


@pytest.mark.parametrize("form", encodings(KEY))
def test_a_known_key_is_found_however_it_is_written(form):
    text = encodings(KEY)[form]
    shown = Redactor([KEY]).redact(f"before {text} after")
    assert text.strip("\"'") not in shown
    assert REPLACEMENT in shown
    assert shown.startswith("before ")
    assert shown.endswith(" after")


@given(KEYS, st.text(max_size=20), st.text(max_size=20))
def test_whatever_the_key_it_does_not_get_through(key, before, after):
    shown = Redactor([key]).redact(f"{before} {key} {after}")
    assert key not in shown.replace(REPLACEMENT, "") or key in REPLACEMENT


@given(st.text())
def test_twice_is_the_same_as_once(text):
    redactor = Redactor([KEY])
    once = redactor.redact(text + KEY)
    assert redactor.redact(once) == once


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer abcDEF123456",
        "{'api-key': 'abcDEF123456'}",
        '{"x-api-key": "abcDEF123456"}',
        "[(b'authorization', b'Bearer abcDEF123456')]",
        "https://u:abcDEF123456@proxy:8080/",
        "https://h/v1?api_key=abcDEF123456&x=1",
        "Incorrect API key provided: sk-abcDEF123456.",
    ],
)
def test_an_unknown_key_is_found_by_where_it_stands(text):
    shown = Redactor().redact(text)
    assert "abcDEF123456" not in shown
    assert REPLACEMENT in shown


@pytest.mark.parametrize(
    "text", ["a bearer of bad news", "basic training", "the key is under the mat", "task-force", "http://h/v1/models"]
)
def test_prose_is_left_alone(text):
    assert Redactor(["none"]).redact(text) == text


def test_a_short_key_is_no_part_of_longer_words():
    redactor = Redactor(["none", "abc"])
    assert redactor.redact("none nonetheless abc") == f"{REPLACEMENT} nonetheless abc"


def test_json_is_redacted_in_keys_and_values_and_bounded():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    loop: dict = {}
    loop["loop"] = loop
    shown = Redactor([KEY]).redact_json({KEY: [KEY, {"x": (KEY, b"y" + KEY.encode())}], "deep": deep, "loop": loop})
    text = repr(shown)
    assert KEY not in text
    assert repr(KEY)[1:-1] not in text
    assert CUT in text


def log_of(*args, exc_info=None, **extra):
    record = logging.makeLogRecord({"msg": args[0], "args": args[1:], "exc_info": exc_info, **extra})
    RedactingFilter(Redactor([KEY])).filter(record)
    return logging.Formatter("%(message)s").format(record) + repr(record.__dict__)


def test_a_log_record_is_clean_in_message_arguments_and_fields():
    shown = log_of("said %s %r", KEY, KEY, headers={"authorization": KEY})
    assert KEY not in shown
    assert "said" in shown


def test_a_log_record_is_clean_in_its_traceback():
    try:
        raise ValueError(KEY)
    except ValueError as error:
        shown = log_of("failed", exc_info=(type(error), error, error.__traceback__))
    assert KEY not in shown
    assert "ValueError" in shown


def test_arguments_that_do_not_fit_do_not_raise_into_a_run():
    assert "can't be shown" in log_of("%d items", "no number")
