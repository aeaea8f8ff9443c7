"""The shape of the code, held: what is pure stays pure, the sides of the wire don't know each other."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.process import ROOT, environment

PACKAGE = ROOT / "runner"
PURE = (
    "accumulate",
    "announced",
    "background",
    "breaker",
    "capacity",
    "chance",
    "cooldown",
    "costs",
    "deltas",
    "digests",
    "endpoints",
    "errors",
    "escape",
    "faults",
    "habit",
    "jobs",
    "limits",
    "lines",
    *(f"load/{name}" for name in ("arrivals", "draws", "level", "prompts", "quantiles", "samples", "search", "slo")),
    *(f"load/{name}" for name in ("timeline", "traces", "verdict", "definitions", "figures", "results", "markup")),
    *(f"load/{name}" for name in ("chart", "panels", "html", "table", "noise", "compare", "export")),
    *(f"load/{name}" for name in ("page", "details", "repeats", "sheet", "budget")),
    "metrics",
    "outcome",
    "parsing",
    "ratelimits",
    "records",
    "redact",
    "sketch",
    "spellings",
    "sse",
    "tickets",
    "totals",
    "wire",
    "written",
)
"""No clock, no socket, no file, no loop: bytes and values in, values out."""
IMPURE = {
    *("aiohttp", "anyio", "asyncio", "fcntl", "glob", "httpx2", "io", "openai", "os", "pathlib", "random", "secrets"),
    *("select", "shutil", "signal", "socket", "ssl", "subprocess", "tempfile", "tenacity", "threading", "time"),
}
SHOWN_LINES = 420
"""No module a reader must scroll for long."""


def files_of(name: str) -> list[Path]:
    path = PACKAGE / name
    return sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


@cache
def imports(path: Path) -> frozenset[str]:
    """Modules that a file imports when it is imported; not those for the type checker alone."""
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        todo.extend(ast.iter_child_nodes(node))
    return frozenset(found)


def reached(path: Path) -> set[str]:
    """Everything a file needs, through the modules of this project that it imports."""
    seen: set[Path] = set()
    found: set[str] = set()
    todo = [path]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        found |= imports(current)
        for name in imports(current):
            if name.startswith("runner."):
                inner = ROOT / name.replace(".", "/")
                todo += [p for p in (inner.with_suffix(".py"), inner / "__init__.py") if p.is_file()]
    return found


@pytest.mark.parametrize("path", [path for name in PURE for path in files_of(name)], ids=lambda path: path.stem)
def test_a_pure_module_reaches_no_clock_socket_file_or_loop(path):
    assert not {name.partition(".")[0] for name in reached(path)} & IMPURE


def test_only_the_client_side_imports_the_sdk():
    users = {path.stem for path in PACKAGE.rglob("*.py") if any(n.split(".")[0] == "openai" for n in imports(path))}
    assert users == {"client", "foreign"}


def test_the_simulator_and_the_client_side_share_only_errors_and_bounds():
    shared = {"runner.errors", "runner.limits"}
    for path in (PACKAGE / "simulator").rglob("*.py"):
        foreign = {
            ".".join(name.split(".")[:2])
            for name in imports(path)
            if name.startswith("runner.") and not name.startswith("runner.simulator")
        }
        assert foreign <= shared, path


def test_no_module_imports_what_could_run_a_prompt():
    forbidden = {"pickle", "yaml", "marshal", "shelve"}
    for path in PACKAGE.rglob("*.py"):
        assert not {name.partition(".")[0] for name in imports(path)} & forbidden, path
        calls = {
            n.func.id
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.Call) and hasattr(n.func, "id")
        }
        assert not calls & {"eval", "exec", "compile", "__import__"}, path


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_says_what_it_is_for_and_is_not_long(path):
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text))
    assert text.count("\n") <= SHOWN_LINES


def test_help_imports_nothing_heavy():
    code = "import sys, runner.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    assert not {"openai", "aiohttp", "anyio", "rich", "pydantic", "httpx2", "tenacity"} & set(loaded.stdout.split())
