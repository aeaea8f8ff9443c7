"""What one run is asked to do, beside its settings: input, folder, and what to do about what is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.errors import UsageError
from runner.settings import Settings

_SUFFIXES = (".gz", ".zst", ".jsonl", ".ndjson", ".json", ".txt")


@dataclass(frozen=True, slots=True)
class Plan:
    """One run."""

    paths: tuple[str, ...]
    """Jobs files in order; "-" is standard input."""
    out: Path
    settings: Settings
    simulate: str | None = None
    """Preset of the simulator, or None for a real endpoint."""
    retry_failed: bool = False
    accept_changes: bool = False
    fresh: bool = False

    @classmethod
    def of(
        cls,
        paths: Sequence[str],
        *,
        settings: Settings,
        out: str | None = None,
        simulate: str | None = None,
        retry_failed: bool = False,
        accept_changes: bool = False,
        fresh: bool = False,
    ) -> Plan:
        """A plan with its folder filled in.

        Raises:
            UsageError: the options contradict each other.
        """
        if simulate is not None and settings.base_url is not None:
            raise UsageError(
                "--simulate sends to the built-in simulator alone: leave out --base-url, RUNNER_BASE_URL or the "
                "configuration's base_url, whichever names another server"
            )
        if settings.base_url is not None and settings.endpoints:
            raise UsageError("a base URL and endpoints contradict each other: give the endpoint's own base_url")
        if out == "":
            raise UsageError("--out names no folder")
        if settings.max_cost is not None and not settings.prices:
            raise UsageError("--max-cost needs prices: name a configuration file that has them with --config")
        if len(paths) > 1 and "-" in paths:
            raise UsageError("standard input can't be read together with other files")
        if accept_changes and "-" in paths:
            raise UsageError("--accept-changes needs a file: standard input can't be looked through before it is run")
        if fresh and retry_failed:
            raise UsageError("--fresh and --retry-failed contradict each other")
        folder = Path(out) if out is not None else Path("results") / stem(paths[0])
        return cls(tuple(paths), folder, settings, simulate, retry_failed, accept_changes, fresh)


def stem(path: str) -> str:
    """`data/jobs.jsonl.gz` → `jobs`; "-" → `stdin`."""
    if path == "-":
        return "stdin"
    name = Path(path).name
    while suffix := next((suffix for suffix in _SUFFIXES if name.lower().endswith(suffix)), ""):
        name = name[: -len(suffix)]
    return name if name.strip(".") else "jobs"
