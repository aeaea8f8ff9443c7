"""The live view and --echo. What a person sees is looked at by eye; here is what must hold whatever they see."""

from __future__ import annotations

import io
import re

import anyio
import orjson
import pytest

from runner.metrics import AdmissionView, Finished, RunMetrics
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
    return run.snapshot(AdmissionView(**admission))


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


def test_echo_says_who_speaks_when_the_speaker_changes():
    out = io.StringIO()
    echo = Echo(out)
    echo.text("a", "one ")
    echo.text("a", "two")
    echo.text("b", "three")
    echo.void("a", "truncated")
    echo.end("a")
    assert out.getvalue() == "── a ──\none two\n── b ──\nthree\n── a ──\n\n[again: truncated]\n\n"


def test_echo_escapes_what_a_model_says_and_what_a_job_is_called():
    out = io.StringIO()
    Echo(out).text("id\x1b]0;x\x07\n", "\x1b[2Jhello")
    assert "\x1b" not in out.getvalue()
    assert "\x07" not in out.getvalue()


def test_echo_to_a_closed_pipe_does_not_end_the_run():
    Echo(Gone()).text("a", "text")
