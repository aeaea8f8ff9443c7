from __future__ import annotations

from pathlib import Path

import pytest

from runner import manifest
from runner.errors import UsageError
from runner.settings import Settings

FOLDER = Path("out")


def described(path="a.jsonl", sha="1" * 64):
    return manifest.describe_input([path], sha, 3, 100)


def new(**kwargs):
    return manifest.new(
        described(**kwargs), Settings(), {"name": "https://user:pw@host:1/v1?key=s"}, 7, simulated=False
    )


def test_the_same_file_may_have_changed():
    manifest.check_same_input(new(), described(sha="2" * 64), FOLDER)


def test_the_same_bytes_may_have_moved():
    manifest.check_same_input(new(), described(path="elsewhere/b.jsonl"), FOLDER)


def test_another_file_with_other_bytes_is_refused_by_name():
    with pytest.raises(UsageError, match=r"a\.jsonl.*b\.jsonl.*--out.*--fresh"):
        manifest.check_same_input(new(), described(path="b.jsonl", sha="2" * 64), FOLDER)


def test_unchanged_needs_a_known_hash():
    assert manifest.unchanged(new(), described())
    assert not manifest.unchanged(new(), described(sha="2" * 64))
    stdin = manifest.describe_input(["-"], None, None, None)
    old = manifest.new(stdin, Settings(), {"name": "http://h"}, 1, simulated=True)
    assert not manifest.unchanged(old, stdin)
    manifest.check_same_input(old, stdin, FOLDER)


def test_credentials_and_query_of_the_url_are_left_out():
    assert new()["endpoint"] == "https://host:1/v1"
    assert manifest.without_credentials("http://u:p@[::1]:80/v1") == "http://[::1]:80/v1"


def test_a_resume_keeps_the_start_and_is_listed():
    first, second = new(), new() | {"started": "later"}
    third = manifest.resumed(manifest.resumed(first, second), new() | {"started": "last"})
    assert third["started"] == first["started"]
    assert third["resumes"] == [{"started": at, "endpoint": "https://host:1/v1"} for at in ("later", "last")]


WRONG_INSIDE = (
    b'{"input":{"paths":5}}',
    b'{"input":{"paths":[1]}}',
    b'{"input":{},"resumes":7}',
    b'{"input":{},"resumes":null}',
)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"{}", b'{"input": 3}', b"[" * 100_000, b"\0" * 500, *WRONG_INSIDE])
def test_what_is_no_manifest_is_refused(data):
    with pytest.raises(UsageError, match=r"manifest\.json"):
        manifest.load(data, Path("manifest.json"))


def test_it_reads_back():
    assert manifest.load(manifest.encode(new()), Path("m"))["input"] == described()


def test_a_file_name_that_is_no_unicode_can_be_written():
    described = manifest.describe_input(["b\udcff.jsonl"], None, None, None)
    made = manifest.new(described, Settings(), {"name": "http://h"}, 1, simulated=True)
    assert b"b\\\\udcff.jsonl" in manifest.encode(made)
