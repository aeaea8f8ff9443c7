from __future__ import annotations

import os
import stat

import orjson
import pytest

from runner import manifest
from runner.api import run_plan
from runner.errors import InputError, LockedError, OutputError, UsageError
from runner.files import OsFiles, make_folder
from runner.folder import FILES, held, open_folder, write_summary
from runner.plan import Plan
from runner.recovery import RESULTS as RESULTS_NAME
from runner.settings import Settings
from runner.testing.memory_files import MemoryFiles, Tear
from tests.memory_run import (
    OUT,
    RESULTS,
    SETTINGS,
    SUPERSEDED,
    Options,
    World,
    check_finished,
    execute,
    ids_of,
    lines_of,
    record,
    run,
)
from tests.process import write_jobs

JOBS = [f"j{n}" for n in range(4)]
MANIFEST = OUT / "manifest.json"
SUMMARY = OUT / "summary.json"


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path / "jobs.jsonl", failing=frozenset({"j2"}))
    world.write_jobs(JOBS)
    return world


@pytest.fixture
def finished(world):
    fs = MemoryFiles()
    assert run(fs, world)
    return fs


def opened(fs, world, **kwargs):
    return execute(lambda: open_folder(fs, world.plan(**kwargs)))


# ── Resuming ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_folder_has_nothing_done(world):
    fs = MemoryFiles()
    make_folder(fs, OUT)
    folder = opened(fs, world)
    assert len(folder.done) == 0
    assert folder.earlier is None
    assert not folder.has_deltas
    assert folder.scanned.lines == len(JOBS) + 1


def test_a_finished_folder_has_everything_done_and_runs_nothing(finished, world):
    folder = opened(finished, world)
    assert len(folder.done) == len(JOBS) + 1
    assert folder.has_deltas
    before = finished.content(RESULTS)
    assert run(finished, world)
    assert finished.content(RESULTS) == before
    assert world.answers == len(JOBS)


def test_every_run_is_named_in_the_manifest(finished, world):
    assert run(finished, world)
    assert run(finished, world)
    found = orjson.loads(finished.content(MANIFEST))
    assert [resume["started"] for resume in found["resumes"]] == ["now", "now"]


def test_lines_that_are_added_and_reordered_are_fine(finished, world):
    more = ["new", *reversed(JOBS)]
    world.write_jobs(more)
    assert run(finished, world)
    check_finished(finished, world, more)
    assert world.answers == len(JOBS) + 1


def test_retry_failed_runs_those_again_and_keeps_their_old_records(finished, world):
    world.failing = frozenset()
    assert run(finished, world, Options({"retry_failed": True}))
    check_finished(finished, world, JOBS)
    assert [name for name in ids_of(lines_of(finished, SUPERSEDED)) if name in JOBS] == ["j2"]
    assert opened(finished, world).recovered.failed == 1  # the line that is no job


def test_retry_failed_touches_nothing_where_nothing_failed(world):
    world.failing = frozenset()
    world.write_jobs(JOBS, bad_line=False)
    fs = MemoryFiles()
    assert run(fs, world)
    before = fs.content(RESULTS)
    assert run(fs, world, Options({"retry_failed": True}))
    assert (fs.content(RESULTS), fs.content(SUPERSEDED)) == (before, None)


# ── Nothing left ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def whole(world):
    """A finished run over lines which all are jobs with an id."""
    world.write_jobs(JOBS, bad_line=False)
    fs = MemoryFiles()
    assert run(fs, world)
    return fs


def test_a_folder_with_a_record_of_every_line_is_known_to_be_complete(whole, world):
    assert opened(whole, world).complete
    assert run(whole, world)
    assert opened(whole, world).complete


def test_a_folder_that_lacks_a_record_is_not_complete(whole, world):
    for missing in range(len(JOBS)):
        fs, lines = whole.after_kill(), lines_of(whole, RESULTS)
        fs.put(RESULTS, b"".join(lines[:missing] + lines[missing + 1 :]))
        assert not opened(fs, world).complete
        fs.put(RESULTS, b"".join([*lines[:missing], *lines[missing + 1 :], record("foreign")]))
        assert not opened(fs, world).complete, "as many records as lines, but not theirs"


def test_failed_jobs_that_are_to_run_again_are_left(whole, world):
    assert opened(whole.after_kill(), world).complete
    assert not opened(whole, world, retry_failed=True).complete


def test_a_folder_is_complete_only_if_all_its_records_are_of_this_very_input(whole, world):
    """A line that became no job, under an id whose earlier line had its record: it has yet to get one of its own."""
    assert len(JOBS) == 4
    world.jobs.write_bytes(world.jobs.read_bytes().replace(b'"prompt":"j0 0"', b'"prompt":["j0"]'))
    folder = opened(whole, world)
    assert len(folder.done) == folder.scanned.lines
    assert not folder.complete
    whole.put(MANIFEST, manifest.encode({"input": folder.described(world.plan()), "one_input": folder.one_input}))
    assert not opened(whole, world).complete, "and not a run later, either"
    assert run(whole, world)
    assert len(opened(whole, world).done) == len(JOBS) + 1


@pytest.mark.parametrize("earlier", [None, {}, {"one_input": False}, {"one_input": 1}])
def test_without_a_manifest_that_says_so_a_folder_is_not_known_to_be_complete(whole, world, earlier):
    described = opened(whole, world).described(world.plan())
    whole.remove(MANIFEST)
    if earlier is not None:
        whole.put(MANIFEST, manifest.encode({"input": described, **earlier}))
    assert not opened(whole, world).complete
    assert run(whole, world)
    assert not opened(whole, world).complete


@pytest.mark.parametrize(
    "more",
    [
        b'{"prompt":"no id"}',
        b'{"custom_id":"j0","prompt":"twice"}',
        b"{not a job",
        b'{"custom_id":7,"prompt":"a number"}',
    ],
)
def test_lines_that_only_the_parser_can_name_leave_it_to_the_parser(world, more):
    world.write_jobs(JOBS, bad_line=False)
    world.jobs.write_bytes(world.jobs.read_bytes() + more + b"\n")
    fs = MemoryFiles()
    assert run(fs, world)
    folder = opened(fs, world)
    assert len(folder.done) == folder.scanned.lines == len(JOBS) + 1
    assert not folder.complete


# ── Changes ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_another_body_under_a_known_id_is_refused_by_name_and_nothing_is_touched(finished, world):
    before = finished.content(RESULTS)
    world.write_jobs(JOBS, version=1)
    with pytest.raises(UsageError, match=r"4 finished job\(s\) now ask something else.*'j0'.*--accept-changes"):
        run(finished, world)
    assert finished.content(RESULTS) == before


def test_accept_changes_runs_them_again_and_keeps_their_old_records(finished, world):
    before = lines_of(finished, RESULTS)
    world.write_jobs(JOBS, version=1)
    assert run(finished, world, Options({"accept_changes": True}))
    check_finished(finished, world, JOBS)
    assert set(lines_of(finished, SUPERSEDED)) <= set(before)
    assert len(lines_of(finished, SUPERSEDED)) == len(JOBS)


# ── Another input ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_another_input_is_refused_and_nothing_is_touched(finished, world, tmp_path):
    state = finished.state()
    other = World(tmp_path / "other.jsonl")
    other.write_jobs(["x"])
    with pytest.raises(UsageError, match=r"holds the run of .*jobs\.jsonl, not of .*other\.jsonl.*--out.*--fresh"):
        run(finished, other)
    assert finished.state() == state


@pytest.mark.parametrize("name", FILES)
async def test_a_jobs_file_that_the_run_would_write_over_is_refused_and_stays(tmp_path, name):
    """…as it is, under whatever name: moved aside as torn, appended to or replaced it would have been."""
    folder = tmp_path / "folder"
    folder.mkdir()
    jobs = write_jobs(folder / name, [{"prompt": "a"}])
    (tmp_path / "link").symlink_to(folder)
    before = jobs.read_bytes()
    for fresh in (False, True):
        plan = Plan.of([str(jobs)], out=str(tmp_path / "link"), settings=Settings(), simulate="default", fresh=fresh)
        with pytest.raises(UsageError, match=f"{name} is a file that the run itself writes.*--out"):
            await run_plan(plan)
    assert [path.name for path in folder.iterdir()] == [name]
    assert jobs.read_bytes() == before


def test_another_input_goes_with_fresh_and_what_was_there_is_kept(finished, world, tmp_path):
    before = finished.content(RESULTS)
    other = World(tmp_path / "other.jsonl")
    other.write_jobs(["x"])
    assert run(finished, other, Options({"fresh": True}))
    check_finished(finished, other, ["x"])
    disk = finished.after_power_loss(Tear.NOTHING, names_kept=False)
    assert disk.content(OUT / "old-stamp" / "results.jsonl") == before
    assert disk.exists(OUT / "old-stamp" / "manifest.json")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\0" * 40])
def test_a_manifest_that_is_none_is_refused(finished, world, data):
    finished.put(MANIFEST, data)
    with pytest.raises(UsageError, match=r"manifest\.json is not a manifest.*--fresh"):
        opened(finished, world)


def test_a_summary_of_somebody_else_is_not_written_over(world):
    fs = MemoryFiles()
    make_folder(fs, OUT)
    fs.put(SUMMARY, b"mine")
    state = fs.state()
    with pytest.raises(UsageError, match=r"summary\.json isn't this program's.*--out.*--fresh"):
        run(fs, world)
    assert fs.state() == state


def test_a_run_whose_manifest_was_lost_goes_on_beside_its_summary(finished, world):
    finished.put(SUMMARY, b"ours")
    finished.remove(MANIFEST)
    run(finished, world)
    check_finished(finished, world, JOBS)


def test_the_folder_of_a_load_test_is_refused_by_that_name(finished, world):
    finished.put(MANIFEST, b'{"kind": "load", "seed": 1}')
    with pytest.raises(UsageError, match=r"holds a load test.*--fresh"):
        opened(finished, world)


def test_a_missing_jobs_file_is_an_input_error(world):
    fs = MemoryFiles()
    make_folder(fs, OUT)
    world.jobs.unlink()
    with pytest.raises(InputError, match=r"jobs\.jsonl: No such file"):
        opened(fs, world)
    assert not fs.exists(RESULTS)


def test_strict_refuses_a_line_that_is_no_job(world):
    fs = MemoryFiles()
    make_folder(fs, OUT)
    plan = Plan.of([str(world.jobs)], settings=Settings(strict=True), out=str(OUT))
    with pytest.raises(UsageError, match="nothing was sent"):
        execute(lambda: open_folder(fs, plan))


# ── The real system ──────────────────────────────────────────────────────────────────────────────────────────────────


def plan_of(world, out, **kwargs) -> Plan:
    return Plan.of([str(world.jobs)], settings=SETTINGS, out=str(out), **kwargs)


def test_a_held_folder_is_private_and_locked(world, tmp_path):
    plan = plan_of(world, tmp_path / "results" / "jobs")
    with held(plan) as fs:
        folder = execute(lambda: open_folder(fs, plan))
        folder.write_manifest(
            manifest.new(folder.described(plan), SETTINGS, {"host": "http://host/v1"}, 1, simulated=True)
        )
        write_summary(fs, plan.out, {"counts": {}})
        with pytest.raises(LockedError):
            _hold(plan)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in plan.out.iterdir()}
    assert modes == dict.fromkeys([".lock", RESULTS_NAME, "manifest.json", "summary.json"], 0o600)
    _hold(plan)


def _hold(plan) -> None:
    with held(plan):
        pass


def test_fresh_moves_every_file_of_ours_and_leaves_the_lock_and_what_is_not_ours(world, tmp_path):
    for name in (*FILES, "notes.txt"):
        (tmp_path / name).write_text(name)
    plan = plan_of(world, tmp_path, fresh=True)
    _hold(plan)
    (old,) = tmp_path.glob("old-*")
    assert sorted(path.name for path in old.iterdir()) == sorted(FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "jobs.jsonl", "notes.txt", old.name]


def test_fresh_does_not_touch_a_folder_that_another_run_holds(world, tmp_path):
    (tmp_path / RESULTS_NAME).write_bytes(record("j0"))
    plan = plan_of(world, tmp_path, fresh=True)
    with held(plan_of(world, tmp_path)), pytest.raises(LockedError):
        _hold(plan)
    assert (tmp_path / RESULTS_NAME).read_bytes() == record("j0")


@pytest.mark.parametrize("name", [RESULTS_NAME, "deltas.jsonl", "manifest.json"])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_link_or_a_pipe_in_the_place_of_a_file_is_refused(world, tmp_path, name, kind):
    (tmp_path / "precious").write_bytes(b"precious")
    if kind == "link":
        (tmp_path / name).symlink_to("precious")
    else:
        os.mkfifo(tmp_path / name)
    plan = plan_of(world, tmp_path)
    with held(plan) as fs, pytest.raises(UsageError, match=rf"{name} is (a symbolic link|not a regular file)"):
        execute(lambda: open_folder(fs, plan))
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_folder_that_cannot_be_made_is_an_output_error(world):
    with pytest.raises(OutputError, match="out: Not a directory"):
        _hold(plan_of(world, world.jobs / "out"))


def test_the_real_files_hold_what_the_model_holds(world, tmp_path, finished):
    """The same run on both: the model leaves nothing out that the program relies on."""
    real = OsFiles()
    plan = plan_of(world, tmp_path / "out")
    with held(plan):
        (plan.out / RESULTS_NAME).write_bytes(finished.content(RESULTS) + b'{"torn')
        folder = execute(lambda: open_folder(real, plan))
    assert (plan.out / RESULTS_NAME).read_bytes() == finished.content(RESULTS)
    assert (plan.out / "torn.jsonl").read_bytes() == b'{"torn\n'
    assert len(folder.done) == len(JOBS) + 1
