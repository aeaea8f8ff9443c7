"""Tests that can't fail prove nothing: each mutant here is a mistake of the field, and a named test must see it.

Steps: copy the tree into a temporary directory; see that the named tests are green there; then, one mutant at a time,
replace an exact piece of the source, run only its tests, put the source back. A mutant whose text is no longer found
(or is found twice) is an error: the source changed, and the mutant must follow it. Not a mutation tester: no mutant is
generated, each stands for an incident.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import _mutants_disk
import _mutants_wire
from _mutant import Mutant

ROOT = Path(__file__).parents[1]
COPIED = ("runner", "tests", "configs", "scripts", "pyproject.toml", "constraints.txt", "README.md")
TIMEOUT_S = 300
"""One mutant's tests on a loaded machine. A test that hangs has seen its mutant too."""
BASE_TIMEOUT_S = 900
"""All of them, without a mutant."""


class Outdated(Exception):
    """Raised when a mutant doesn't apply: the source is no longer what it was written for."""


MUTANTS = (*_mutants_disk.MUTANTS, *_mutants_wire.MUTANTS)


def main(names: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if not names or any(name in mutant.name for name in names)]
    if not chosen:
        print(f"there is no such mutant; there are: {', '.join(mutant.name for mutant in MUTANTS)}")
        return 2
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = copy_tree(Path(folder))
        try:
            named_tests = sorted({test for mutant in chosen for test in mutant.tests})
            red = turned_red(tree, named_tests, BASE_TIMEOUT_S)
        except Outdated as error:
            print(error)
            return 1
        if red:
            print(f"red without any mutant, so they prove nothing: {', '.join(red)}")
            return 1
        survivors = [mutant.name for mutant in chosen if not is_seen(tree, mutant)]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants were seen")
    return 1 if survivors else 0


def copy_tree(folder: Path) -> Path:
    for name in COPIED:
        source, target = ROOT / name, folder / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    return folder


def is_seen(tree: Path, mutant: Mutant) -> bool:
    """Whether a test turned red; prints the mutant's row of the table."""
    saved: dict[Path, str] = {}
    try:
        saved = apply(tree, mutant)
        red = turned_red(tree, list(mutant.tests))
        said = ", ".join(named(red)) or "SURVIVED"
    except Outdated as error:
        red, said = [], f"DOES NOT APPLY: {error}"
    finally:
        for path, text in saved.items():
            path.write_text(text)
    print(f"{mutant.name:55} → {said}", flush=True)
    return bool(red)


def named(tests: list[str]) -> list[str]:
    """Names of test functions, with how many of their cases it was."""
    counts = Counter(test.rpartition("::")[2].partition("[")[0] for test in tests)
    return [f"{name} (×{count})" if count > 1 else name for name, count in counts.items()]


def apply(tree: Path, mutant: Mutant) -> dict[Path, str]:
    """Makes the edits; returns the files as they were.

    Raises:
        Outdated: a text isn't there exactly once; nothing is edited.
    """
    saved, changed = mutated(tree, mutant)
    for path, text in changed.items():
        path.write_text(text)
    return saved


def mutated(tree: Path, mutant: Mutant) -> tuple[dict[Path, str], dict[Path, str]]:
    """The files that it edits, as they are and as they would be.

    Raises:
        Outdated: a text isn't there exactly once.
    """
    saved: dict[Path, str] = {}
    changed: dict[Path, str] = {}
    for edit in mutant.edits:
        path = tree / edit.file
        text = changed.get(path) or saved.setdefault(path, path.read_text())
        if text.count(edit.old) != 1:
            raise Outdated(f"{edit.file} holds {text.count(edit.old)} times: {edit.old.strip()[:60]!r}")
        changed[path] = text.replace(edit.old, edit.new)
    for path, text in changed.items():
        compile(text, path, "exec")  # a mutant that can't be imported turns everything red and says nothing
    return saved, changed


def turned_red(tree: Path, tests: list[str], timeout_s: float = TIMEOUT_S) -> list[str]:
    """The tests that failed.

    Raises:
        Outdated: one of them doesn't exist, or can't be collected.
    """
    # PYTHONPATH comes before the place that the environment was installed from: the copy is what is tested.
    # No bytecode: an edit within the clock's grain of the last one, of the same length, would go unnoticed.
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-rfE", "--tb=no", "-p", "no:cacheprovider", *tests]
    try:
        ended = subprocess.run(
            command, cwd=tree, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return [f"no end within {timeout_s:g} s"]
    if ended.returncode not in (0, 1):
        raise Outdated(f"pytest ended with {ended.returncode}: {ended.stdout[-500:]}{ended.stderr[-500:]}")
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", ended.stdout, re.MULTILINE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
