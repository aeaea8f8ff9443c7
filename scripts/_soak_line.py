"""A line of gigabytes on standard input: it is a rejected record, its neighbours are run, and it is never held.

The real process against the embedded simulator. Its peak is compared with that of the same run whose middle line is
short: it may be higher by the longest line that is taken, which is held until it is over that, and by SLACK_BYTES.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from runner.limits import MAX_LINE_BYTES
from tests.process import RUNNER, environment, records
from tests.test_endless import MEASURED

SLACK_BYTES = 32 << 20
BLOCK = b"a" * (1 << 20)
OPTIONS = ("-", "--simulate", "--model", "synthetic-1", "--progress", "none", "--out", "out")


def soak(mebibytes: int) -> int:
    root = Path(tempfile.mkdtemp(prefix="soak-line-"))
    try:
        return measure(root, mebibytes)
    finally:
        shutil.rmtree(root)


def measure(root: Path, mebibytes: int) -> int:
    began = time.monotonic()
    short = peak_bytes(root / "short", 0)
    more = peak_bytes(root / "long", mebibytes) - short
    took_s = time.monotonic() - began
    codes = [(record["custom_id"], (record["error"] or {}).get("code")) for record in records(root / "long" / "out")]
    named = sorted(codes, key=str) == [("after", None), ("before", None), (None, "line_too_long")]
    allowed = MAX_LINE_BYTES + SLACK_BYTES
    good = named and more <= allowed
    print(
        f"{'OK' if good else 'VIOLATED'}: a line of {mebibytes:,} MiB in {took_s:.0f} s: {codes}; peak "
        f"{(short + more) / 1e6:.0f} MB, {more / 1e6:+.0f} of {allowed / 1e6:.0f} MB beside a short one"
    )
    return 0 if good else 1


def peak_bytes(folder: Path, mebibytes: int) -> int:
    """The peak of a run with a line of so many MiB between two jobs."""
    folder.mkdir()
    command = [sys.executable, "-S", "-c", MEASURED, *RUNNER[1:], *OPTIONS]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=folder, env=environment(), **pipes) as process:  # type: ignore[call-overload]
        for block in lines(mebibytes):
            process.stdin.write(block)
        process.stdin.close()
        peak, _ = map(int, process.stdout.read().split()[-2:])
    return peak


def lines(mebibytes: int) -> Iterator[bytes]:
    yield b'{"custom_id":"before","prompt":"x"}\n{"custom_id":"long","prompt":"'
    yield from (BLOCK for _ in range(mebibytes))
    yield b'"}\n{"custom_id":"after","prompt":"x"}\n'
