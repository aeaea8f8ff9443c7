"""The folder of a load test: whose it is, what stands in it, and how it is written.

    results.jsonl   a record for every request, as in a run; runner.load says of which level and when what happened
    load.json       the figures, written after every level, so that an interrupted test keeps what it measured
    load.csv, report.html   the same figures, and the exports
    manifest.json   what the test was asked; the same command goes on in the folder, another is refused

A level that was cut short stands in load.json until the same command runs it again, from its start: a measurement
with a hole in it is none. Requests are numbered over the whole test, so that none has the id of another.

Processes write parts of their own (`part-<n>/`), which are joined into results.jsonl at the end, or by the next start
after a kill; a record that is there already is not written again.
"""

from __future__ import annotations

import re
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from runner.digests import id_key
from runner.errors import UsageError
from runner.files import AppendFile, OsFiles, atomic_write, read_file
from runner.folder import FILES, LOAD_CSV, LOAD_JSON, MANIFEST, REPORT, refuse_strangers
from runner.load import html, results, sheet
from runner.load.export import LAYOUTS, export
from runner.load.results import LoadResult
from runner.manifest import LOAD_TEST
from runner.recovery import DELTAS, RESULTS, parse, read_lines, recover, start_afresh
from runner.written import of_any, read_any

_NUMBER: Final = re.compile(r"#(\d+)(?:\.\d+)?\Z")
_PART: Final = "part-{}"
_MAX_PARTS: Final = 256


class Before(NamedTuple):
    """What the records of earlier starts say."""

    numbers: int  # of requests: the next one has this number
    cost: float  # of their answers, as far as it is known


class Store:
    """The folder of a load test; whoever changes it holds its lock."""

    def __init__(self, path: Path) -> None:
        self.fs = OsFiles()
        self.path = path

    @property
    def exists(self) -> bool:
        """Whether there is a folder, or something else of its name."""
        return self.fs.exists(self.path)

    # ── Coming back ──────────────────────────────────────────────────────────────────────────────────────────────

    def manifest(self) -> dict[str, Any] | None:
        """What the folder's test was asked; None: it is new.

        Raises:
            UsageError: it is the folder of something else.
        """
        data = read_file(self.fs, self.path / MANIFEST)
        if data is None:
            refuse_strangers(self.fs, self.path, (LOAD_JSON, LOAD_CSV, REPORT))
            return None
        try:
            found = orjson.loads(data)
        except orjson.JSONDecodeError:
            found = None
        if not isinstance(found, dict) or found.get("kind") != LOAD_TEST:
            raise UsageError(f"{self.path} holds a run, not a load test: name another folder with --out")
        return found

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Says whose the folder is."""
        data = orjson.dumps({"kind": LOAD_TEST, **manifest}, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        atomic_write(self.fs, self.path / MANIFEST, data)

    def earlier(self) -> LoadResult | None:
        """What was measured before.

        Raises:
            UsageError: load.json is not of this schema.
        """
        data = read_file(self.fs, self.path / LOAD_JSON)
        return None if data is None else results.decode(data, self.path / LOAD_JSON)

    def recover(self) -> Before:
        """Repairs and joins what a crash left, and reads what the records say. Blocks."""
        self.join()
        numbers, cost = 0, 0.0
        fd = self.fs.open_append(self.path / RESULTS)
        try:
            for line in read_lines(self.fs, fd):
                found = read_any(line.data)
                if found is None:
                    continue
                number = _NUMBER.search(found[0].id)
                numbers = max(numbers, int(number[1]) + 1) if number else numbers
                cost += of_any(found[1]).runner.cost or 0.0
        finally:
            self.fs.close(fd)
        return Before(numbers, cost)

    def start_afresh(self) -> None:
        """Moves aside what is there. Blocks."""
        self.join()
        exports = (path.name for layout in LAYOUTS for path in self.path.glob(f"{layout}-*.json"))
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        start_afresh(self.fs, self.path, stamp, (*exports, *FILES))

    # ── Parts ────────────────────────────────────────────────────────────────────────────────────────────────────

    def part(self, index: int) -> Path:
        """The folder of one process."""
        return self.path / _PART.format(index)

    def join(self) -> None:
        """Joins the parts that are there. Blocks."""
        done = recover(self.fs, self.path).done
        for index in range(_MAX_PARTS):
            folder = self.part(index)
            if not self.fs.exists(folder):
                continue
            recover(self.fs, folder)
            for name in (RESULTS, DELTAS):
                self._join(folder / name, self.path / name, done)
            for found in folder.iterdir():
                self.fs.remove(found)
            folder.rmdir()

    def _join(self, part: Path, whole: Path, done: Any) -> None:
        if not self.fs.exists(part):
            return
        fd = self.fs.open_append(part)
        try:
            with closing(AppendFile(self.fs, whole)) as file:
                for line in read_lines(self.fs, fd):
                    entry = parse(line.data) if whole.name == RESULTS else None
                    if entry is None or id_key(entry.id) not in done:
                        file.append(line.data + b"\n")
                file.sync()
        finally:
            self.fs.close(fd)

    # ── Results ──────────────────────────────────────────────────────────────────────────────────────────────────

    def write(self, result: LoadResult, layouts: tuple[str, ...] = ()) -> None:
        """Writes load.json, load.csv, the report and the exports."""
        files = {LOAD_CSV: sheet.to_csv(result), REPORT: html.report(result).encode()}
        for layout in layouts:
            files |= export(result, layout)
        # load.json last: the others are made of it.
        for name, data in {**files, LOAD_JSON: results.encode(result)}.items():
            atomic_write(self.fs, self.path / name, data)

    def write_figures(self, result: LoadResult) -> None:
        """Writes load.json alone."""
        atomic_write(self.fs, self.path / LOAD_JSON, results.encode(result))
