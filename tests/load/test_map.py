"""The package says where things are."""

from __future__ import annotations

import re
from pathlib import Path

import runner.load


def test_every_module_stands_in_the_map_of_the_package_and_nothing_else_does():
    assert runner.load.__doc__ is not None
    rows = [line.split("|")[2] for line in runner.load.__doc__.splitlines() if line.startswith("| ")][2:]
    named = re.sub(r"\((?!one process or several: )[^)]*\)", "", " ".join(rows))
    told = set(re.findall(r"[a-z]+", named)) - {"one", "process", "or", "several", "with"}
    modules = {path.stem for path in Path(runner.load.__file__).parent.glob("*.py")} - {"__init__", "__main__"}
    assert told == modules
