"""The live view and --echo. What a person sees is looked at by eye; here is what must hold whatever they see."""

from __future__ import annotations

import fcntl
import io
import os
import re
import subprocess
import sys

import anyio
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import progress, terminal
from runner.admission import AdmissionStatistics
from runner.limits import MAX_ECHO_CHARS
from runner.metrics import RunMetrics
from runner.progress import Echo, duration, live_view, packed, plain_line
from runner.terminal import Outlet, flush_standard_streams
from runner.testing.virtual_time import run_virtual
from tests.process import environment


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Gone(Terminal):
    """A terminal that was closed."""

    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


@pytest.fixture(autouse=True)
def _terminal_that_can_redraw(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")


def snapshot(**admission):
    run = RunMetrics(lambda: 0.0, total=10)
    run.record({"id": "a", "error": None, "runner": {"digest": None, "usage": {"output_tokens": 7}}})
    run.record({"id": "b", "error": {"code": "truncated"}, "runner": {"digest": None}})
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
    assert lines[-1].startswith(" 2/10 done ( 20%), 1 failed, 0 in flight")


def test_json_is_one_whole_object_a_line():
    lines = show("json", io.StringIO(), 3.5).getvalue().splitlines()
    assert len(lines) == 4
    assert {orjson.loads(line)["failed"] for line in lines} == {1}


def test_none_shows_nothing():
    assert show("none", io.StringIO()).getvalue() == ""


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end():
    shown = show("auto", Terminal(), 1.0).getvalue()
    assert "2/10 done" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert "\x1b" in shown


@pytest.mark.parametrize("style", ["rich", "plain", "json"])
def test_a_stream_that_is_gone_does_not_end_the_run(style):
    show(style, Gone())


@pytest.mark.parametrize("style", ["auto", "rich", "plain", "json", "none"])
def test_a_stream_that_is_closed_or_was_never_open_does_not_end_the_run(style):
    stream = io.StringIO()
    stream.close()
    show(style, stream)
    show(style, None)


@pytest.mark.parametrize("style", ["rich", "plain", "json"])
def test_a_full_disk_behind_the_stream_does_not_end_the_run(style, monkeypatch):
    monkeypatch.setattr(Outlet, "isatty", lambda out: True)
    with open("/dev/full", "w") as stream:
        show(style, stream)
        Echo(stream).text("a", "text")


@pytest.mark.parametrize("when", ["_panel", "_RichView"])
def test_a_view_that_fails_is_logged_once_and_the_run_goes_on(when, monkeypatch, caplog):
    def broken(*_):
        raise KeyError("a defect of the view")

    monkeypatch.setattr(progress, when, broken)
    show("rich", Terminal())
    assert [record.message for record in caplog.records] == ["the live view failed"]


def full_pipe():
    """A pipe that nobody reads, and that holds no more."""
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    os.write(write, b"#" * 4096)
    return read, open(write, "w", encoding="ascii")


@pytest.mark.parametrize("style", ["rich", "plain", "json"])
def test_a_reader_that_does_not_read_does_not_hold_up_the_run(style, monkeypatch):
    """A write that blocked would hang this test: nobody ever reads."""
    monkeypatch.setattr(terminal, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(Outlet, "isatty", lambda out: True)
    read, stream = full_pipe()
    show(style, stream, 100.0)
    echo = Echo(stream)
    for _ in range(100):
        echo.text("a", "x" * 100_000)
    os.close(read)
    flush_standard_streams()
    assert not Outlet._backlogs
    stream.close()


def test_a_slow_reader_gets_all_up_to_a_bound_and_is_told_what_is_missing():
    read, stream = full_pipe()
    echo = Echo(stream)
    echo.text("é", "[begin] ")
    for _ in range(30):
        echo.text("é", "y" * 100_000)
    shown = os.read(read, 4096).decode()
    while echo._out._waiting or "reader was too slow" not in shown:
        echo._out.flush()
        shown += os.read(read, 1 << 20).decode()
    missing = re.search(r"\[([\d,]+) characters are not shown: the reader was too slow\]", shown)
    assert missing
    assert shown.count("y") + int(missing[1].replace(",", "")) == 3_000_000
    assert MAX_ECHO_CHARS <= shown.count("y") < MAX_ECHO_CHARS + 200_000
    assert "── \\xe9 ──".encode("ascii", "backslashreplace").decode() in shown
    os.close(read)
    stream.close()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_echo_loses_no_character_that_the_stream_cannot_show(encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Echo(stream).text("Zürich", "Straße 日本 🧛 end")
    shown = stream.buffer.getvalue().decode(encoding)
    assert shown == "── Zürich ──\nStraße 日本 🧛 end".encode(encoding, "backslashreplace").decode(encoding)
    assert shown.endswith("end")


@pytest.mark.parametrize("style", ["rich", "plain", "json"])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_view_on_a_stream_of_ascii_is_shown(style, terminal, monkeypatch):
    monkeypatch.setattr(Outlet, "isatty", lambda out: terminal)
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    show(style, stream)
    shown = stream.buffer.getvalue()
    assert b'"succeeded":1' in shown if style == "json" else b"2/10 done" in shown


def test_where_nothing_can_be_redrawn_there_are_lines(monkeypatch):
    assert "\x1b" not in show("rich", io.StringIO()).getvalue()
    monkeypatch.setenv("TERM", "dumb")
    assert show("rich", Terminal()).getvalue().count("2/10 done") == 4


def test_echo_reaches_a_descriptor_in_the_order_of_all_that_is_written():
    code = (
        "import sys; from runner.progress import Echo\n"
        "print('first'); echo = Echo(); echo.text('a', 'é\\ud800 日'); echo.end('a'); print('last')"
    )
    env = environment(PYTHONIOENCODING="ascii")
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    rule = "\\u2500\\u2500"
    assert ended.stdout == f"first\n{rule} a {rule}\n\\xe9\\ud800 \\u65e5\nlast\n"


def test_standard_streams_that_were_closed_are_no_results_file():
    code = (
        "import os; from runner.terminal import *\n"
        "open_standard_streams(); file = open(os.devnull); print(file.fileno()); print('x', file=sys.stderr)\n"
        "flush_standard_streams()"
    )
    ended = subprocess.run(
        ["sh", "-c", '"$0" -c "$1" 2>&- <&-', sys.executable, code.replace("import os;", "import os, sys;")],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(ended.stdout) > 2


# ── What is shown ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("width", [1, 5, 20, 40, 60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(
        sys.modules[__name__],
        "snapshot",
        lambda: RunMetrics(lambda: 0.0, total=10**9).snapshot(
            AdmissionStatistics(rpm_allowed=3e4, rpm_used=3e4, tpm_allowed=1.5e8, tpm_used=1.4e8, limit=20_000)
        ),
    )
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", show("rich", Terminal(), 1.0).getvalue())
    lines = re.split(r"[\r\n]+", shown)
    assert max(map(len, lines)) <= max(1, width - 2)


@given(st.lists(st.text("ab", min_size=1, max_size=30)), st.integers(1, 60))
def test_packed_lines_hold_every_part_whole_and_in_order(parts, width):
    lines = packed(parts, width)
    assert "  ".join(lines).split("  ") == (parts or [""])
    assert all(len(line) <= width or line in parts for line in lines)


def test_numbers_that_change_do_not_move_those_beside_them():
    def line(used, in_flight):
        statistics = AdmissionStatistics(rpm_allowed=600, rpm_used=used, in_flight=in_flight, limit=128)
        return plain_line(RunMetrics(lambda: 0.0, total=10).snapshot(statistics))

    assert len(line(1.0, 1)) == len(line(599.0, 128))


def test_a_wait_that_the_server_asked_for_is_called_that():
    assert "server asked to wait 1s" in plain_line(snapshot(cooldown_remaining_s=0.2))


def test_the_line_says_how_much_of_the_limits_is_used():
    line = plain_line(snapshot(rpm_allowed=600, rpm_used=599.0, tpm_allowed=1000, tpm_used=20, cooldown_remaining_s=3))
    assert "RPM 599/600" in line
    assert "TPM    20/1,000" in line
    assert "server asked to wait 3s" in line


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (59.6, "1m00s"), (75, "1m15s"), (3600, "1h00m"), (90061, "25h01m"), (200_000, "2d07h")],
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


def test_what_nobody_took_by_the_end_is_said(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "_PATIENCE_S", 0.0)
    read, stream = full_pipe()
    Echo(stream).text("a", "x" * 1000)
    flush_standard_streams()
    assert re.fullmatch(r"runner: 1,0\d\d bytes for the standard output were not read\n", capsys.readouterr().err)
    os.close(read)
    stream.close()


def test_a_terminal_that_was_stopped_shows_the_state_of_now_when_it_goes_on(monkeypatch):
    monkeypatch.setattr(Outlet, "isatty", lambda out: True)
    read, stream = full_pipe()
    shown = []

    async def body():
        async with live_view("rich", snapshot, stream):
            await anyio.sleep(1_000)  # four thousand frames
            shown.append(os.read(read, 4096))
            await anyio.sleep(0.1)
            shown.append(os.read(read, 4096))

    run_virtual(body)
    assert shown[0] == b"#" * 4096
    assert shown[1].count(b"done") <= 1
    os.close(read)
    stream.close()
