"""The mistakes of scripts/mutants are still mistakes that can be made: each names source that stands there, once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
try:
    import _mutants  # type: ignore[import-not-found]
finally:
    sys.path.remove(str(ROOT / "scripts"))


@pytest.mark.parametrize("mutant", _mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_replaces_what_stands_there_once(mutant):
    for edit in mutant.edits:
        text = (ROOT / edit.file).read_text(encoding="utf-8")
        assert text.count(edit.old) == 1, (edit.file, edit.old)
        assert edit.new != edit.old


@pytest.mark.parametrize("mutant", _mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_the_tests_that_are_to_see_a_mutant_are_there(mutant):
    for name in mutant.tests:
        file, _, test = name.partition("::")
        function = test.partition("[")[0].rpartition("::")[2]
        assert not function or f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), name
