"""manifest.json: what was run, with what, when; and whether this input may go on in this folder.

The folder's name is the run's identity. Lines may be added and reordered between runs; another file under the same
name is refused rather than mixed.
"""

from __future__ import annotations

import platform
import socket
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import orjson

from runner import __version__
from runner.errors import UsageError
from runner.reservation import Reservation
from runner.settings import Settings

SCHEMA: Final = 1
LOAD_TEST: Final = "load"
"""`kind` of a load test's manifest, which is another one; a run's has none."""
ELSEWHERE: Final = "name another folder with --out, or start anew with --fresh (what is there is kept aside)"
"""What to do about a folder that holds something else."""
_VERSIONS: Final = ("openai", "httpx2", "aiohttp", "anyio", "tenacity", "aiolimiter", "orjson")


def describe_input(
    paths: Sequence[str], sha256: str | None, lines: int | None, size_bytes: int | None
) -> dict[str, Any]:
    """The input's identity. `sha256` and the counts are None for standard input, which can't be read twice."""
    names = [path if path == "-" else str(Path(path).resolve()) for path in paths]
    return {"paths": _written(names), "sha256": sha256, "lines": lines, "size_bytes": size_bytes}


def new(
    described: dict[str, Any], settings: Settings, endpoints: Mapping[str, str], seed: int, simulated: bool
) -> dict[str, Any]:
    """The manifest of a run that begins. `endpoints`: name → base URL of where it really sends."""
    urls = {name: without_credentials(url) for name, url in endpoints.items()}
    return {
        "schema": SCHEMA,
        "runner": __version__,
        "started": _now(),
        "resumes": [],
        "input": described,
        "endpoint": next(iter(urls.values())),
        **({"endpoints": urls} if len(urls) > 1 else {}),
        "synthetic": simulated,
        "seed": seed,
        "settings": settings.model_dump(mode="json"),
        "reservation": Reservation(settings.reserve_output_tokens).stated,
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in _VERSIONS},
        "host": {"name": socket.gethostname(), "platform": platform.platform(), "argv": _written(sys.argv[1:])},
    }


def resumed(old: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
    """The manifest of a run that goes on: this run's facts, the first run's start, and a list of the resumes.

    Each resume names where it sent, since that may change.
    """
    resume = {"started": current["started"], "endpoint": current.get("endpoint")}
    resumes = [*old.get("resumes", []), resume]
    return current | {"started": old.get("started", current["started"]), "resumes": resumes}


def load(data: bytes, path: Path) -> dict[str, Any]:
    """An existing manifest.

    Raises:
        UsageError: it isn't one of ours, or one of a later version's, which may mean its records otherwise.
    """
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError:
        found = None
    if isinstance(found, dict) and found.get("kind") == LOAD_TEST:
        raise UsageError(f"{path.parent} holds a load test: {ELSEWHERE}")
    if not isinstance(found, dict) or not _is_ours(found):
        raise UsageError(f"{path} is not a manifest of this program; move the folder away, or use --fresh or --out")
    schema = found.get("schema", SCHEMA)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise UsageError(
            f"{path} was written by a later version (runner {found.get('runner', '?')}): go on with that one, "
            f"{ELSEWHERE}"
        )
    return found


def _is_ours(found: dict[str, Any]) -> bool:
    """Whether what is read later is of the kind that was written."""
    given = found.get("input")
    if not isinstance(given, dict) or not isinstance(found.get("resumes", []), list):
        return False
    paths = given.get("paths", [])
    return isinstance(paths, list) and all(isinstance(path, str) for path in paths)


def check_same_input(old: dict[str, Any], described: dict[str, Any], folder: Path) -> None:
    """Refuses to mix two inputs in one folder.

    The same bytes may come from another place, and a file may change in its place (its jobs are checked one by one);
    another file with other bytes is another run.

    Raises:
        UsageError: it names both inputs and what to do.
    """
    before = old["input"]
    same_bytes = before.get("sha256") is not None and before.get("sha256") == described["sha256"]
    if same_bytes or before.get("paths") == described["paths"]:
        return
    raise UsageError(
        f"{folder} holds the run of {', '.join(before.get('paths', ['?']))}, not of {', '.join(described['paths'])}: "
        f"{ELSEWHERE}"
    )


def check_same_origin(old: dict[str, Any], *, simulated: bool, folder: Path) -> None:
    """Refuses to mix made-up answers with real ones.

    Raises:
        UsageError: the folder holds the other kind.
    """
    if bool(old.get("synthetic")) == simulated:
        return
    kinds = ("simulated", "real") if not simulated else ("real", "simulated")
    raise UsageError(f"{folder} holds {kinds[0]} answers, and this run's are {kinds[1]}: {ELSEWHERE}")


def unchanged(old: dict[str, Any], described: dict[str, Any]) -> bool:
    """Whether the input is byte for byte what it was, so that no job can have changed."""
    return described["sha256"] is not None and old["input"].get("sha256") == described["sha256"]


def of_one_input(old: dict[str, Any] | None, described: dict[str, Any], records: int) -> bool:
    """Whether all records of the folder came from these very bytes, by what the manifest says; None: there is none.

    A manifest is written before the first record of its run, so it can't claim too much after a crash.
    """
    if old is None:
        return records == 0
    return old.get("one_input") is True and unchanged(old, described)


def without_credentials(url: str) -> str:
    """The URL without user, password and query."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    netloc = host if parts.port is None else f"{host}:{parts.port}"
    return urlunsplit((parts.scheme, netloc, parts.path, "", ""))


def encode(manifest: dict[str, Any]) -> bytes:
    """The bytes of the file."""
    return orjson.dumps(manifest, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _written(texts: Sequence[str]) -> list[str]:
    """Texts of the operating system, which need not be Unicode, so that they can be written as JSON."""
    return [text.encode("utf-8", "backslashreplace").decode() for text in texts]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
