"""The README's tables are what the code has: nothing undocumented, nothing promised that isn't there."""

from __future__ import annotations

import dataclasses
import re
from importlib import resources

from runner.simulator import PRESETS, SCENARIOS, Profile
from runner.simulator.__main__ import parser, profile_of
from runner.simulator.rehearsal import Rehearsal

README = resources.files("runner.simulator").joinpath("README.md").read_text()


def table(first_cell):
    """Rows of the table with this heading, as lists of cells."""
    lines = README.split(f"| {first_cell} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names(rows):
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row[0])]


def test_every_scenario_stands_in_the_table_as_the_code_has_it_and_no_other():
    harmless = {True: "a success", False: ""}
    assert table("scenario") == [[f"`{name}`", s.summary, harmless[s.harmless]] for name, s in SCENARIOS.items()]


def test_every_option_stands_in_the_table_and_no_other():
    known = [option for action in parser()._actions for option in action.option_strings]
    assert sorted(names(table("option"))) == sorted(set(known) - {"-h", "--help", "--child"})


def test_the_defaults_in_the_table_are_the_codes():
    said = {name: row[1] for row in table("option") for name in names([row])}
    default = Profile()
    assert profile_of(parser().parse_args([])) == default
    assert float(said["--ttft"]) == default.ttft_s
    assert float(said["--tokens-per-s"]) == default.tokens_per_s
    assert float(said["--jitter"]) == default.jitter
    assert int(said["--output-tokens"]) == default.output_tokens
    assert int(said["--seed"]) == default.seed
    assert float(said["--burst-s"]) == default.burst_s
    assert {said[name] for name in ("--rpm", "--tpm", "--max-concurrency", "--fault", "--log", "--api-key-env")} == {
        "none"
    }
    assert (default.rpm, default.tpm, default.max_concurrency, default.fault_rates, default.api_key) == (
        *(None, None, None),
        {},
        None,
    )


def test_every_preset_and_every_key_of_a_rehearsal_is_explained():
    preset = next(row[2] for row in table("option") if row[0] == "`--preset`")
    assert set(re.findall(r"`(\w+)`", preset)) == set(PRESETS)
    assert sorted(names(table("`simulate` key"))) == sorted(field.name for field in dataclasses.fields(Rehearsal))
