"""The folder of a load test: whose it is, where numbers go on, parts that are joined."""

from __future__ import annotations

import orjson
import pytest

from runner.errors import LockedError, UsageError
from runner.folder import FILES
from runner.load.store import Store
from runner.lock import lock_folder
from tests.load.examples import healthy


def record(name, n=0):
    return orjson.dumps({"id": name, "custom_id": name, "error": None, "runner": {"digest": "00", "n": n}}) + b"\n"


def ids(folder):
    return [orjson.loads(line)["id"] for line in (folder / "results.jsonl").read_bytes().splitlines()]


def test_numbers_go_on_behind_the_highest_that_was_recorded(tmp_path):
    (tmp_path / "results.jsonl").write_bytes(record("a#3") + record("b#11") + record("c#7.2"))
    assert Store(tmp_path).recover().numbers == 12


def test_what_was_spent_is_the_sum_over_all_records_parts_that_were_not_joined_included(tmp_path):
    def priced(name, cost):
        return orjson.dumps({**orjson.loads(record(name)), "runner": {"digest": "00", "cost": cost}}) + b"\n"

    store = Store(tmp_path)
    (tmp_path / "results.jsonl").write_bytes(priced("a#0", 0.25) + priced("a#1", None))
    store.part(0).mkdir()
    (store.part(0) / "results.jsonl").write_bytes(priced("a#2", 0.5))
    assert store.recover() == (3, 0.75)


def test_a_new_folder_begins_with_the_first(tmp_path):
    assert Store(tmp_path).recover() == (0, 0.0)


def test_what_a_crash_tore_is_moved_aside(tmp_path):
    (tmp_path / "results.jsonl").write_bytes(record("a#3") + record("a#4")[:20])
    assert Store(tmp_path).recover().numbers == 4
    assert ids(tmp_path) == ["a#3"]


def test_parts_are_joined_once_whatever_a_crash_left_of_the_joining(tmp_path):
    store = Store(tmp_path)
    (tmp_path / "results.jsonl").write_bytes(record("a#0"))
    for index in range(2):
        store.part(index).mkdir()
        torn = b"" if index else b'{"id"'
        (store.part(index) / "results.jsonl").write_bytes(record("a#0") + record(f"a#{index + 1}") + torn)
        (store.part(index) / "deltas.jsonl").write_bytes(b'{"custom_id":"a#1"}\n')
    assert store.recover().numbers == 3
    assert ids(tmp_path) == ["a#0", "a#1", "a#2"]
    assert len((tmp_path / "deltas.jsonl").read_bytes().splitlines()) == 2
    assert not store.part(0).exists()
    assert store.recover().numbers == 3


def test_the_folder_of_a_run_is_refused(tmp_path):
    (tmp_path / "manifest.json").write_bytes(b'{"input": {}}')
    with pytest.raises(UsageError, match="holds a run"):
        Store(tmp_path).manifest()


@pytest.mark.parametrize("name", ["load.json", "load.csv", "report.html"])
def test_a_report_of_somebody_else_is_not_written_over(tmp_path, name):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(UsageError, match=f"{name} isn't this program's.*--out.*--fresh"):
        Store(tmp_path).manifest()


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    store = Store(tmp_path)
    assert store.manifest() is None
    store.write_manifest({"seed": 5})
    assert store.manifest() == {"kind": "load", "seed": 5}


def test_results_are_written_and_read_again(tmp_path):
    store, result = Store(tmp_path), healthy()
    assert store.earlier() is None
    store.write(result, ("vllm",))
    assert store.earlier() == result
    assert {"load.json", "load.csv", "report.html"} <= {path.name for path in tmp_path.iterdir()}
    assert [path for path in tmp_path.iterdir() if path.name.startswith("vllm-")]


def test_one_test_at_a_time(tmp_path):
    with lock_folder(tmp_path / "x"), pytest.raises(LockedError), lock_folder(tmp_path / "x"):
        pass


def test_fresh_moves_aside_what_is_there(tmp_path):
    (tmp_path / "results.jsonl").write_bytes(record("a#0"))
    (tmp_path / "load.json").write_bytes(b"{}")
    (tmp_path / "vllm-closed-2-0.json").write_bytes(b"{}")
    (tmp_path / "summary.json").write_bytes(b"{}")  # the folder was that of a run
    store = Store(tmp_path)
    with lock_folder(store.path):
        store.start_afresh()
        assert store.recover().numbers == 0
    (old,) = tmp_path.glob("old-*")
    assert {path.name for path in old.iterdir()} == {
        "results.jsonl",
        "load.json",
        "vllm-closed-2-0.json",
        "summary.json",
    }


def test_a_run_that_begins_afresh_in_its_folder_moves_its_files_aside_too(tmp_path):
    store = Store(tmp_path)
    store.write_manifest({"seed": 5})
    store.write(healthy())
    assert {path.name for path in tmp_path.iterdir()} <= set(FILES)
