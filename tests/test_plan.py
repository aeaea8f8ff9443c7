from __future__ import annotations

import pytest

from runner.errors import UsageError
from runner.plan import Plan, stem
from runner.settings import Settings


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("jobs.jsonl", "jobs"),
        ("a/b/night.jsonl.gz", "night"),
        ("x.ndjson.zst", "x"),
        ("plain", "plain"),
        ("v1.2.jsonl", "v1.2"),
        ("-", "stdin"),
        (".jsonl", "jobs"),
    ],
)
def test_the_folder_is_named_after_the_file(path, name):
    assert stem(path) == name


@pytest.mark.parametrize(
    ("paths", "options"),
    [
        (["a"], {"simulate": "default", "settings": Settings(base_url="http://h")}),
        (["-", "a"], {}),
        (["a"], {"fresh": True, "retry_failed": True}),
    ],
)
def test_contradictions_are_refused(paths, options):
    with pytest.raises(UsageError):
        Plan.of(paths, **({"settings": Settings()} | options))


def test_a_simulated_run_that_names_another_server_is_told_each_place_where_it_may_stand():
    """The user may have said no such thing: the configurations of local servers have a base URL."""
    with pytest.raises(UsageError, match=r"--base-url, RUNNER_BASE_URL or the configuration's base_url"):
        Plan.of(["a"], settings=Settings(base_url="http://h"), simulate="default")
