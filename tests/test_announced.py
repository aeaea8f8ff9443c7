from __future__ import annotations

import httpx2
import pytest
from hypothesis import given, strategies

from runner.announced import EVENT_STREAM, JSON, Announced, announced
from runner.faults import FaultKind

NAMES = strategies.sampled_from([b"content-type", b"Content-Type", b"CONTENT-ENCODING", b"x-request-id", b"x-other"])
VALUES = strategies.text("aZ/;=, \t-.", max_size=12).map(lambda text: text.strip().encode())


@given(strategies.lists(strategies.tuples(NAMES, VALUES), max_size=6))
def test_the_headers_are_those_that_httpx2_would_find(raw):
    headers = httpx2.Headers(raw)
    assert announced(raw) == Announced(
        headers.get("content-type", "").partition(";")[0].strip().lower(),
        headers.get("content-encoding", "identity").strip().lower(),
        headers.get("x-request-id"),
    )


def test_what_was_asked_for_is_read():
    head = announced([(b"Content-Type", b"text/event-stream; charset=utf-8"), (b"x-request-id", b"r")])
    assert head.refusal(EVENT_STREAM, 200) is None
    assert head.request_id == "r"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ([], "no content type"),
        ([(b"content-type", b"text/html")], "text/html"),
        ([(b"content-type", JSON.encode()), (b"content-type", b"text/html")], "application/json, text/html"),
        ([(b"content-type", JSON.encode()), (b"content-encoding", b"gzip")], "compressed its answer: gzip"),
        ([(b"content-type", b"\xff" * 500)], "\xff" * 79),
    ],
)
def test_anything_else_is_refused_by_name(raw, said):
    fault = announced(raw).refusal(JSON, 200)
    assert fault is not None
    assert fault.kind is FaultKind.WRONG_CONTENT
    assert said in fault.message
    assert len(fault.message) < 200
