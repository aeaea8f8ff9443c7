"""Whether anybody listens is known before a level is measured."""

from __future__ import annotations

import socket

import anyio
import pytest

from runner.load.knock import UnreachableError, refuse_silence
from runner.target import Target


def knock(*urls):
    anyio.run(refuse_silence, [Target(url, "key", "--base-url") for url in urls])


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def url(listener):
    return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def test_where_somebody_listens_the_test_goes_on_and_nothing_is_sent(listener):
    knock(url(listener), url(listener))
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(5)
        assert connection.recv(1) == b""
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):  # the same endpoint twice is asked once
        listener.accept()


def test_a_port_where_nobody_listens_is_one_clear_line(listener):
    silent = url(listener)
    listener.close()
    with pytest.raises(UnreachableError, match=r"nobody answers at http://127.*/v1 \(connection refused\)") as raised:
        knock(silent)
    assert raised.value.exit_code == 1
    assert "\n" not in str(raised.value)


def test_one_silent_endpoint_of_several_is_named_and_its_password_is_not(listener):
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9/v1") as raised:
        knock(url(listener), "http://user:secret@127.0.0.1:9/v1?key=secret")
    assert "secret" not in str(raised.value)


def test_behind_a_proxy_only_the_proxy_could_be_asked_and_so_nothing_is(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    knock("http://model.example:8000/v1")
