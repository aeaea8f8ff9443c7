"""`load` and `compare`, from what the command line gave.

A load test has defaults of its own where a run's would falsify it: one attempt a request, no deltas.jsonl, and the
transport that costs least. What the user says counts more, as a flag; a configuration's value for these doesn't.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from runner.errors import InputError, UsageError
from runner.files import OsFiles, atomic_write
from runner.folder import LOAD_JSON
from runner.load import compare as comparing
from runner.load import results
from runner.load.options import LoadOptions
from runner.load.results import LoadResult
from runner.settings import load
from runner.terminal import Outlet, console

DEFAULTS: Final = {"max_attempts": 1, "deltas": False, "transport": "native"}
_OWN: Final = {field.name for field in fields(LoadOptions)}


def run_command(config: str | None, given: Mapping[str, Any], argv: list[str]) -> int:
    """Runs a load test. `given` is every option, None where it wasn't said.

    Raises:
        RunnerError: it could not begin, or its output can't be written.
    """
    said = {key: value for key, value in given.items() if value is not None and value != ()}
    options = LoadOptions(paths=tuple(said.pop("jobs", ())), **{key: said[key] for key in said if key in _OWN})
    flags = {key: value for key, value in said.items() if key not in _OWN}
    settings = load(flags={**DEFAULTS, **flags}, config=config)
    if options.simulate is not None and settings.base_url is not None:
        raise UsageError("--simulate and --base-url contradict each other")
    if settings.max_cost is not None and not settings.prices:
        raise UsageError("--max-cost needs prices: name a configuration file that has them with --config")
    from runner.load.run import execute  # the SDK's imports, which a wrong option should not have to wait for

    return execute(options, settings, argv)


def run_compare(a: Path, b: Path, page: Path | None) -> int:
    """Prints two load tests side by side, and writes the page if one is wanted.

    Raises:
        UsageError: one of them isn't a load test.
        OutputError: the page can't be written.
    """
    name_a, name_b = _names(a, b)
    found = comparing.compare(_read(a), _read(b), name_a, name_b)
    console(Outlet(sys.stdout, waits=True)).print(comparing.render(found))
    if page is not None:
        atomic_write(OsFiles(), page, comparing.to_html(found).encode())
    return 0


def _read(path: Path) -> LoadResult:
    path = path / LOAD_JSON if path.is_dir() else path
    try:
        return results.decode(path.read_bytes(), path)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None


def _names(a: Path, b: Path) -> tuple[str, str]:
    names = tuple(path.name if path.name != LOAD_JSON else path.resolve().parent.name for path in (a, b))
    return (names[0], names[1]) if names[0] != names[1] else (str(a), str(b))
