"""Runs JSONL prompt files as concurrent AsyncOpenAI streams under RPM/TPM limits, one final record a job.

From a notebook or a scheduler:

    from runner import Settings, run
    result = await run("jobs.jsonl", settings=Settings(rpm=500), simulate="default")
    print(result.exit_code, result.summary["counts"])

Names are imported when they are used: `python -m runner --help` must not pay for openai's import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.api import Result, run
    from runner.jobs import Job
    from runner.settings import Settings

__version__ = "0.1.0"
__all__ = ["Job", "Result", "Settings", "__version__", "run"]

_HOMES = {"run": "runner.api", "Result": "runner.api", "Job": "runner.jobs", "Settings": "runner.settings"}


def __getattr__(name: str) -> Any:
    """Imports a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'runner' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
