"""The live view and --echo. What a person sees is looked at by eye; here is what must hold whatever they see."""

from __future__ import annotations

import io
import re

import anyio
import orjson
import pytest

from runner.admission import AdmissionStatistics
from runner.limits import MAX_ECHO_CHARS
from runner.metrics import Finished, RunMetrics
from runner.progress import Echo, duration, live_view, plain_line
from runner.testing.virtual_time import run_virtual


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Gone(io.StringIO):
    """A terminal that was closed."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def snapshot(**admission):
    run = RunMetrics(lambda: 0.0, total=10)
    run.finished(Finished(ok=True, output_tokens=7))
    run.finished(Finished(ok=False, error_code="truncated"))
    return run.snapshot(AdmissionStatistics(**admission))


def show(style, stream, seconds=35.0):
    async def body():
        async with live_view(style, snapshot, stream):
            await anyio.sleep(seconds)

    run_virtual(body)
    return stream


def test_without_a_terminal_there_is_a_line_now_and_then_and_one_at_the_end():
    lines = show("auto", io.StringIO()).getvalue().splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("2/10 done, 1 failed, 0 in flight")


def test_json_is_one_whole_object_a_line():
    lines = show("json", io.StringIO(), 3.5).getvalue().splitlines()
    assert len(lines) == 4
    assert {orjson.loads(line)["failed"] for line in lines} == {1}


def test_none_shows_nothing():
    assert show("none", io.StringIO()).getvalue() == ""


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end():
    shown = show("auto", Terminal(), 1.0).getvalue()
    assert "2 of 10 done" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert "\x1b" in shown


@pytest.mark.parametrize("style", ["plain", "json"])
def test_a_stream_that_is_gone_does_not_end_the_run(style):
    show(style, Gone())


def test_a_closed_stream_does_not_end_the_run():
    stream = io.StringIO()
    stream.close()
    show("plain", stream)


def test_the_line_says_how_much_of_the_limits_is_used():
    line = plain_line(snapshot(rpm_allowed=600, rpm_used=599.0, tpm_allowed=1000, tpm_used=20, cooldown_remaining_s=3))
    assert "RPM 599/600" in line
    assert "TPM 20/1,000" in line
    assert "cooling down 3 s" in line


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0s"), (59.6, "1m00s"), (75, "1m15s"), (3600, "1h00m"), (90061, "25h01m")]
)
def test_a_duration_is_read_at_a_glance(seconds, shown):
    assert duration(seconds) == shown


def echoed(*calls):
    out = io.StringIO()
    echo = Echo(out)
    for name, *arguments in calls:
        getattr(echo, name)(*arguments)
    return out.getvalue()


def test_echo_prints_one_job_at_a_time_and_the_others_in_turn():
    shown = echoed(
        *(("text", "a", "one "), ("text", "b", "two "), ("text", "a", "more"), ("text", "c", "three")),
        *(("end", "c"), ("end", "a"), ("text", "b", "and last"), ("end", "b")),
    )
    assert shown == "── a ──\none more\n── c ──\nthree\n── b ──\ntwo and last\n"


def test_echo_of_a_job_that_begins_anew():
    shown = echoed(
        *(("text", "a", "x"), ("text", "b", "never seen"), ("void", "b", "truncated"), ("void", "a", "truncated")),
        *(("text", "a", "y"), ("text", "b", "z"), ("end", "a"), ("end", "b")),
    )
    assert shown == "── a ──\nx\n[again: truncated]\ny\n── b ──\nz\n"


def test_echo_holds_no_more_than_its_bound_of_answers_behind_a_slow_one():
    out = io.StringIO()
    echo = Echo(out)
    echo.text("slow", "x")
    for i in range(30):
        echo.text(f"j{i}", "y" * 100_000)
        echo.end(f"j{i}")
        assert sum(len(text) for texts in echo._waiting.values() for text in texts) <= MAX_ECHO_CHARS
    echo.end("slow")
    assert out.getvalue().count("y") == 3_000_000


def test_echo_escapes_what_a_model_says_and_what_a_job_is_called():
    out = io.StringIO()
    Echo(out).text("id\x1b]0;x\x07\n", "\x1b[2Jhello")
    assert "\x1b" not in out.getvalue()
    assert "\x07" not in out.getvalue()


def test_echo_to_a_closed_pipe_does_not_end_the_run():
    Echo(Gone()).text("a", "text")


def test_nothing_is_redrawn_on_a_terminal_that_shows_the_answers():
    stream = Terminal()

    async def body():
        async with live_view("auto", snapshot, stream, echoing=True) as say:
            await anyio.sleep(5)
            say("stopping")

    run_virtual(body)
    assert stream.getvalue() == "runner: stopping\n"


@pytest.mark.parametrize("style", ["rich", "plain", "json"])
def test_what_must_be_known_now_is_said_now(style):
    stream = Terminal()

    async def body():
        async with live_view(style, snapshot, stream) as say:
            say("SIGINT: 3 in flight [x]")
            return stream.getvalue()

    assert "SIGINT: 3 in flight [x]" in run_virtual(body)
