"""The mistakes of scripts/mutants are still mistakes that can be made: each names source that stands there, once."""

from __future__ import annotations

import sys

import pytest

from tests.process import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
try:
    import _mutants  # type: ignore[import-not-found]
finally:
    sys.path.remove(str(ROOT / "scripts"))


@pytest.mark.parametrize("mutant", _mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_replaces_what_stands_there_once(mutant):
    assert all(edit.new != edit.old for edit in mutant.edits)
    saved, changed = _mutants.mutated(ROOT, mutant)  # raises where it doesn't apply
    assert saved
    assert all(changed[path] != text for path, text in saved.items())


@pytest.mark.parametrize("mutant", _mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_the_tests_that_are_to_see_a_mutant_are_there(mutant):
    for name in mutant.tests:
        file, _, test = name.partition("::")
        function = test.partition("[")[0].rpartition("::")[2]
        assert not function or f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), name
