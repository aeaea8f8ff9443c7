"""What the README says is there is there."""

from __future__ import annotations

import re

import click
import pytest

from runner import cli, jobs
from runner.errors import LockedError, OutputError, RunnerError, UsageError
from runner.jobs import Job
from runner.lines import LineSplitter
from runner.parsing import JobParser
from tests.process import ROOT

README = (ROOT / "README.md").read_text()
TESTS = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))


def options_of(command):
    return {name for option in command.params for name in (*option.opts, *option.secondary_opts) if name[:2] == "--"}


BENCH_OPTIONS = set(re.findall(r'add_argument\("(--[a-z-]+)"', (ROOT / "scripts" / "_bench.py").read_text()))
ALL_OPTIONS = BENCH_OPTIONS | {name for command in cli.cli.commands.values() for name in options_of(command)}


@pytest.mark.parametrize("option", sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) - {"--help", "--port"}))
def test_an_option_in_the_readme_exists(option):
    assert option in ALL_OPTIONS


@pytest.mark.parametrize("command", sorted(set(re.findall(r"python -m runner (\w+) ", README)) - {"jobs"}))
def test_a_command_in_the_readme_exists(command):
    assert command in cli.COMMANDS


def test_every_command_is_in_the_readme_and_routed():
    assert set(cli.COMMANDS) == cli.cli.commands.keys()
    for command in set(cli.COMMANDS) - {"run"}:
        assert f"runner {command}" in README


def test_every_option_says_what_it_does():
    for command in cli.cli.commands.values():
        for option in command.params:
            assert not isinstance(option, click.Option) or option.help, option


def test_the_exit_codes_are_those_of_the_errors():
    table = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", README, re.MULTILINE) for code in row.split(",")}
    assert {0, 1, 4, 130, 143} | {
        kind.exit_code for kind in (RunnerError, UsageError, LockedError, OutputError)
    } <= table


@pytest.mark.parametrize("line", re.findall(r'`(\{"(?:prompt|messages|input|custom_id": "a).*?\})` \|', README))
def test_an_example_line_is_a_job(line):
    assert isinstance(parsed(line.encode())[0], Job)


def test_the_example_jobs_are_jobs_of_every_kind():
    found = parsed((ROOT / "jobs.jsonl").read_bytes())
    assert all(isinstance(job, Job) for job in found)
    assert {job.api for job in found} == set(jobs.Api)
    assert len(found) == 20


def parsed(data):
    splitter, parser = LineSplitter(), JobParser()
    return [parser.parse(line) for line in [*splitter.feed(data), *splitter.finish()]]


def test_the_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_record_in_the_readme_has_the_fields_of_a_record():
    (shape,) = re.findall(r"```\n(\{\"id\".*?)```", README, re.DOTALL)
    assert set(re.findall(r'"(\w+)"', shape)) == {
        *("id", "custom_id", "response", "status_code", "request_id", "body"),
        *("error", "code", "message", "metadata", "runner"),
    }


@pytest.mark.parametrize("name", sorted(set(re.findall(r"test_\w+\.py", README))))
def test_a_test_file_in_the_readme_exists(name):
    assert list((ROOT / "tests").rglob(name))


@pytest.mark.parametrize("start", sorted(set(re.findall(r"(?:::|`…)(test_\w+|[a-z]\w+)…?", README))))
def test_a_test_in_the_readme_exists(start):
    """Its name stands there in full, or its beginning, or a part of it behind an ellipsis."""
    assert start in TESTS


def test_python_in_the_readme_runs_as_a_file():
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        compile(block, "README.md", "exec")
