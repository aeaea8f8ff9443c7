"""A million deltas that say nothing in each of 32 streams: what a run holds must not grow with what it has read.

The real process, with everything as a user has it (each empty delta is a line of deltas.jsonl: 3 GB in all), against a
server that writes as fast as it is read. Its peak is compared with that of the same run of short answers.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from tests.process import records
from tests.test_endless import ALLOWED_BYTES, SHORT, STREAMS, empty_deltas, peak_bytes

DAY_S = 86_400.0


def soak(deltas: int) -> int:
    root = Path(tempfile.mkdtemp(prefix="soak-endless-"))
    try:
        return measure(root, deltas)
    finally:
        shutil.rmtree(root)


def measure(root: Path, deltas: int) -> int:
    short, long = root / "short", root / "long"
    short.mkdir()
    long.mkdir()
    began = time.monotonic()
    more = -peak_bytes(SHORT, short)
    more += peak_bytes(empty_deltas(deltas), long, timeout_s=DAY_S)
    took_s = time.monotonic() - began
    with (long / "out" / "deltas.jsonl").open("rb") as file:
        written = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    found = records(long / "out")
    whole = len(found) == STREAMS and all(record["error"] is None for record in found) and written >= STREAMS * deltas
    good = whole and more <= ALLOWED_BYTES
    print(
        f"{'OK' if good else 'VIOLATED'}: {len(found)} records, {written:,} lines of deltas.jsonl of {STREAMS} × "
        f"{deltas:,} empty deltas in {took_s:.0f} s; peak {more / 1e6:+.1f} of {ALLOWED_BYTES / 1e6:.0f} MB"
    )
    return 0 if good else 1
