"""The live line."""

from __future__ import annotations

import io
from dataclasses import replace

import anyio
import orjson
import pytest

from runner.load.crew import Live
from runner.load.spec import LevelSpec
from runner.load.view import live_line, shown
from runner.testing.virtual_time import run_virtual

SPEC = LevelSpec("open", 20.0, "20/s", duration_s=30.0)
LIVE = Live(t_s=12.3, in_flight=7, sent=240, succeeded=230, throttled=2, ttft_p50_s=0.21, lag_max_s=0.0015)


def test_the_line_says_where_the_level_is_and_what_came_back():
    text = shown(SPEC, 1, 4, LIVE)
    assert text.startswith("level 2/4 20/s · 12/30 s · 7 in flight · 230 ok · 2 ×429")
    assert "TTFT p50 210 ms" in text
    assert "failed" not in text


def test_a_search_does_not_know_how_many_levels_there_will_be():
    assert shown(SPEC, 1, None, LIVE).startswith("level 2 20/s")


def test_a_level_of_so_many_requests_counts_them():
    spec = LevelSpec("closed", 4.0, "4 concurrent", requests=300)
    assert "12 s, 240/300 sent" in shown(spec, 0, 1, LIVE)


def test_after_the_sending_it_says_that_answers_are_awaited():
    assert "waiting for answers, 3 s ·" in shown(SPEC, 0, 1, LIVE._replace(t_s=33.0))


def test_while_requests_wait_for_limits_it_does_not_say_how_long_answers_are_waited_for_at_most():
    spec = replace(SPEC, drain_s=5.0)
    assert "waiting for answers, 22 s (--drain 5 s) ·" in shown(spec, 0, 1, LIVE._replace(t_s=52.0, waiting=53))


def drawn(style, seconds=25.0, stream=None):
    stream = io.StringIO() if stream is None else stream

    async def draw():
        async with live_line(style, lambda: (SPEC, 0, 1, LIVE), stream) as line:
            line.say("runner: hello")
            await anyio.sleep(seconds)

    run_virtual(draw)
    return stream.getvalue()


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self):
        return True


@pytest.mark.parametrize("columns", [21, 40, 60, 70, 73, 80, 200])
def test_at_a_terminal_a_number_is_whole_or_not_there(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    drawn("auto", 0.6, stream)
    line = stream.getvalue().split("\r\x1b[K")[1]
    whole, seen = shown(SPEC, 0, 1, LIVE), line.split(" · ")
    assert whole.split(" · ")[: len(seen)] == seen
    assert len(line) < columns
    assert (line == whole) == (len(whole) < columns)


def test_in_a_pipe_a_line_comes_now_and_then():
    lines = drawn("auto").splitlines()
    assert lines[0] == "runner: hello"
    assert len(lines) == 3


def test_as_json_every_line_is_an_object():
    lines = [orjson.loads(line) for line in drawn("json", 3.5).splitlines()]
    assert lines[0] == {"message": "runner: hello"}
    assert [line["succeeded"] for line in lines[1:]] == [230, 230, 230]


def test_none_is_silent():
    assert drawn("none") == ""


def test_the_views_of_several_processes_add_up():
    whole = LIVE.joined(Live(t_s=12.0, in_flight=1, sent=10, ttft_p50_s=0.4, lag_max_s=0.1))
    assert (whole.in_flight, whole.sent, whole.ttft_p50_s, whole.lag_max_s, whole.t_s) == (8, 250, 0.4, 0.1, 12.3)
