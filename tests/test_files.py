from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import lock
from runner.errors import LockedError, OutputError, UsageError
from runner.files import AppendFile, OsFiles, atomic_write, make_folder, read_file
from runner.lock import lock_folder
from runner.logs import log_to
from runner.redact import Redactor
from runner.testing.memory_files import Crashed, MemoryFiles, Tear, WriteFault

FILE = Path("/out/file")
ERRNOS = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS]
WRITES = frozenset({"write"})


def memory(fault=None, content=b"first\n", **kwargs) -> MemoryFiles:
    fs = MemoryFiles(fault=fault, **kwargs)
    fs.put(FILE, content)
    return fs


# ── Appending ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("number", ERRNOS)
@pytest.mark.parametrize("short", [None, 1, 5])
@pytest.mark.parametrize("first", [1, 2])
def test_a_failed_append_leaves_the_file_as_it_was_and_breaks_it(number, short, first):
    fs = memory(WriteFault(number, WRITES, first=first, short=short))
    file = AppendFile(fs, FILE)
    for _ in range(first - 1):
        file.append(b"second\n")
    before = fs.content(FILE)
    with pytest.raises(OutputError) as raised:
        file.append(b"third\n")
    assert str(raised.value) == f"{FILE}: {os.strerror(number)}"
    assert fs.content(FILE) == before
    with pytest.raises(OutputError, match=os.strerror(number)):
        file.append(b"fourth\n")
    with pytest.raises(OutputError):
        file.sync()
    assert "fsync" not in [operation for operation, _ in fs.log]


@pytest.mark.parametrize("short", [1, 3, 6])
def test_a_short_write_is_completed(short):
    fs = memory(WriteFault(errno.ENOSPC, WRITES, times=1, short=short))
    AppendFile(fs, FILE).append(b"second\n")
    assert fs.content(FILE) == b"first\nsecond\n"


def test_a_write_of_nothing_is_an_error_and_no_endless_loop(monkeypatch):
    fs = memory()
    monkeypatch.setattr(fs, "write", lambda fd, data: 0)
    with pytest.raises(OutputError, match="nothing was written"):
        AppendFile(fs, FILE).append(b"second\n")


def test_it_says_when_a_fragment_could_not_be_cut_back():
    fs = memory(WriteFault(errno.EIO, frozenset({"write", "truncate"}), short=2))
    with pytest.raises(OutputError, match=r"Input/output error \(and it could not be cut back: Input/output error\)"):
        AppendFile(fs, FILE).append(b"second\n")
    assert fs.content(FILE) == b"first\nse"


@pytest.mark.parametrize("times", [1, None])
@pytest.mark.parametrize("number", ERRNOS)
def test_a_failed_fsync_is_never_retried(number, times):
    fs = memory(WriteFault(number, frozenset({"fsync"}), times=times))
    file = AppendFile(fs, FILE)
    file.append(b"second\n")
    for _ in range(3):
        with pytest.raises(OutputError, match=rf"fsync: {os.strerror(number)}"):
            file.sync()
        with pytest.raises(OutputError):
            file.append(b"third\n")
    assert [operation for operation, _ in fs.log] == ["write", "fsync", "truncate"]


def test_what_a_failed_fsync_left_is_cut_off_so_that_nobody_counts_on_it():
    fs = memory(WriteFault(errno.EIO, frozenset({"fsync"}), times=1))
    file = AppendFile(fs, FILE)
    file.append(b"second\n")
    with pytest.raises(OutputError, match="fsync"):
        file.sync()
    assert fs.content(FILE) == b"first\n"
    # The next run's records land where the lost pages were, and are as durable as it is told.
    again = AppendFile(fs, FILE)
    again.append(b"third\n")
    again.sync()
    assert fs.after_power_loss(Tear.ALL, names_kept=True).content(FILE) == b"first\nthird\n"


def test_bytes_of_a_failed_fsync_never_reach_the_disk_in_this_model():
    """The model must be able to fail the test above."""
    fs = memory(WriteFault(errno.EIO, frozenset({"fsync"}), times=1))
    fd = fs.open_append(FILE)
    fs.write(fd, b"second\n")
    with pytest.raises(OSError, match="Input/output"):
        fs.fsync(fd)
    fs.fsync(fd)
    assert fs.content(FILE) == b"first\nsecond\n"
    assert fs.after_power_loss(Tear.ALL, names_kept=True).content(FILE) == b"first\n" + bytes(7)


@pytest.mark.parametrize("content", [b"", b"whole\n", b"whole\nhal"])
def test_end_line_glues_nothing_to_a_fragment(content):
    fs = memory(content=content)
    file = AppendFile(fs, FILE)
    file.end_line()
    file.append(b"next\n")
    assert fs.content(FILE) == content + (b"\n" if content.endswith(b"l") else b"") + b"next\n"


def test_errors_of_close_are_output_errors(monkeypatch):
    fs = memory()
    file = AppendFile(fs, FILE)

    def close(fd):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(fs, "close", close)
    with pytest.raises(OutputError, match="quota"):
        file.close()


# ── Replacing ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_atomic_write_leaves_the_old_or_the_new_file_wherever_it_crashes():
    operations = len(_replace(memory(content=b"old")).log)
    assert operations >= 5
    for crash_at in range(1, operations + 1):
        fs = memory(content=b"old", crash_at=crash_at, tear=Tear.HALF)
        with pytest.raises(Crashed):
            _replace(fs)
        images = [fs.after_power_loss(tear, names_kept=kept) for tear in Tear for kept in (False, True)]
        for image in [fs.after_kill(), *images]:
            assert image.content(FILE) in (b"old", b"new content")


def _replace(fs: MemoryFiles) -> MemoryFiles:
    atomic_write(fs, FILE, b"new content")
    return fs


def test_what_atomic_write_wrote_is_durable():
    fs = _replace(memory(content=b"old"))
    assert fs.after_power_loss(Tear.NOTHING, names_kept=False).content(FILE) == b"new content"
    assert not fs.open_descriptors


@pytest.mark.parametrize("number", ERRNOS)
@pytest.mark.parametrize("operation", ["create", "write", "fsync", "rename", "fsync_dir"])
def test_a_failed_atomic_write_is_an_output_error_and_can_be_repeated(operation, number):
    fs = memory(WriteFault(number, frozenset({operation}), times=1))
    with pytest.raises(OutputError, match=os.strerror(number)):
        _replace(fs)
    assert fs.content(FILE) in (b"first\n", b"new content")
    assert _replace(fs).content(FILE) == b"new content"
    assert not fs.open_descriptors


def test_read_file_of_nothing_is_none():
    fs = memory()
    assert read_file(fs, FILE) == b"first\n"
    assert read_file(fs, FILE.with_name("other")) is None
    assert not fs.open_descriptors


# ── Directories ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_made_folder_is_durable_with_those_above_it_even_when_it_took_two_runs():
    folder = Path("/a/b/c")
    whole = MemoryFiles()
    make_folder(whole, folder)
    for crash_at in range(1, len(whole.log) + 1):
        fs = MemoryFiles(crash_at=crash_at)
        with pytest.raises(Crashed):
            make_folder(fs, folder)
        again = fs.after_kill()
        make_folder(again, folder)
        assert again.after_power_loss(Tear.NOTHING, names_kept=False).exists(folder)


def test_a_folder_above_that_cannot_be_read_does_not_matter(tmp_path, monkeypatch):
    def refuse(self, path):
        raise PermissionError(errno.EACCES, "Permission denied")

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(OsFiles, "fsync_dir", refuse)
    make_folder(OsFiles(), tmp_path / "out")


def test_a_file_system_whose_directories_know_no_fsync_does_not_matter(tmp_path, monkeypatch):
    def refuse(fd):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    OsFiles().fsync_dir(tmp_path)


# ── The real system ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_written_to_a_deleted_file_is_not_acknowledged(tmp_path):
    file = AppendFile(OsFiles(), tmp_path / "results.jsonl")
    file.append(b"first\n")
    file.sync()
    file.append(b"second\n")
    (tmp_path / "results.jsonl").unlink()
    with pytest.raises(OutputError, match=r"results\.jsonl: fsync: the file was deleted while it was written"):
        file.sync()
    file.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda path: os.truncate(path, 0),
        lambda path: os.truncate(path, 3),
        lambda path: path.write_bytes(path.read_bytes() + b"of another run\n"),
    ],
)
def test_what_another_program_cut_or_appended_to_is_not_acknowledged_and_left_as_it_is(tmp_path, change):
    path = tmp_path / "results.jsonl"
    file = AppendFile(OsFiles(), path)
    file.append(b"first\n")
    file.sync()
    change(path)
    file.append(b"second\n")
    left = path.read_bytes()
    with pytest.raises(
        OutputError, match=r"another program changed it while it was written \(it has .* in place of 13"
    ):
        file.sync()
    assert path.read_bytes() == left
    with pytest.raises(OutputError, match="another program changed it"):
        file.append(b"third\n")
    file.close()


def test_a_renamed_file_is_still_there(tmp_path):
    file = AppendFile(OsFiles(), tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    file.append(b"first\n")
    file.sync()
    file.close()
    assert (tmp_path / "new").read_bytes() == b"first\n"


def test_files_are_private(tmp_path):
    AppendFile(OsFiles(), tmp_path / "a").close()
    atomic_write(OsFiles(), tmp_path / "b", b"x")
    with lock_folder(tmp_path):
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"a": 0o600, "b": 0o600, ".lock": 0o600}


@pytest.mark.parametrize("name", ["results.jsonl", ".lock"])
@pytest.mark.parametrize("target", ["elsewhere", "/dev/null"])
def test_a_symbolic_link_is_refused_and_its_target_untouched(tmp_path, name, target):
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (tmp_path / name).symlink_to(target)
    with pytest.raises(UsageError, match=rf"{name} is a symbolic link"):
        _open(tmp_path, name)
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"


def _open(folder: Path, name: str) -> None:
    if name == ".lock":
        with lock_folder(folder):
            pass
    else:
        AppendFile(OsFiles(), folder / name)


@pytest.mark.parametrize("name", ["results.jsonl", ".lock"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, name, make):
    make(tmp_path / name)
    with pytest.raises(UsageError, match=rf"{name} is not a regular file"):
        _open(tmp_path, name)


def test_a_named_pipe_in_the_place_of_the_log_is_refused_at_once(tmp_path):
    """To open one for writing waits for its reader: the run hung before its first word."""
    path = tmp_path / "run.log"
    os.mkfifo(path)

    def refused():
        with pytest.raises(OutputError, match=r"run\.log"), log_to(path, "INFO", Redactor()):
            pass

    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(refused)
        try:
            waiting.result(timeout=30)
        finally:
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))  # lets go whoever waits


def test_a_stale_temporary_link_leads_nowhere(tmp_path):
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "m.new").symlink_to("precious")
    atomic_write(OsFiles(), tmp_path / "m", b"new")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert (tmp_path / "m").read_bytes() == b"new"
    assert not (tmp_path / "m").is_symlink()


def test_a_file_that_may_not_grow_is_left_as_it_was_by_a_real_short_write(tmp_path):
    """RLIMIT_FSIZE makes the kernel write less than it is asked, and then nothing: what a full disk does."""
    program = """if True:
        import resource, sys
        from pathlib import Path
        from runner.errors import OutputError
        from runner.files import AppendFile, OsFiles
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        file = AppendFile(OsFiles(), Path(sys.argv[1]))
        file.append(b"x" * 899 + b"\\n")
        try:
            file.append(b"y" * 499 + b"\\n")
        except OutputError as error:
            print(error)
    """
    path = tmp_path / "results.jsonl"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}: File too large\n"
    assert path.read_bytes() == b"x" * 899 + b"\n"


_steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from("ab"), st.binary(max_size=9)),
        st.tuples(st.just("truncate"), st.sampled_from("ab"), st.integers(0, 9)),
        st.tuples(st.just("fsync"), st.sampled_from("ab"), st.none()),
        st.tuples(st.just("rename"), st.sampled_from("ab"), st.sampled_from("ab")),
        st.tuples(st.just("remove"), st.sampled_from("ab"), st.none()),
        st.tuples(st.just("kill"), st.just("a"), st.none()),
    ),
    max_size=20,
)


@given(steps=_steps)
def test_the_model_reads_like_the_real_system(tmp_path_factory, steps):
    real_folder, folder = tmp_path_factory.mktemp("real"), Path("/out")
    real, model = OsFiles(), MemoryFiles()
    model.make_dir(folder)
    for operation, name, argument in steps:
        if operation == "kill":
            model = model.after_kill()
            continue
        assert _step(real, real_folder, operation, name, argument) == _step(model, folder, operation, name, argument)
        for each in "ab":
            assert read_file(real, real_folder / each) == read_file(model, folder / each)


def _step(fs, folder, operation, name, argument):
    path = folder / name
    try:
        if operation == "remove":
            return fs.remove(path)
        if operation == "rename":
            return fs.rename(path, folder / argument)
        fd = fs.open_append(path)
        try:
            size = fs.size(fd)
            if operation == "truncate":
                argument = min(argument, size)  # the program never makes a file longer this way
            return getattr(fs, operation)(*([fd] if argument is None else [fd, argument])), size
        finally:
            fs.close(fd)
    except OSError as error:
        return error.errno


# ── The lock ─────────────────────────────────────────────────────────────────────────────────────────────────────────

HOLDER = """if True:
    import sys
    from pathlib import Path
    from runner.lock import lock_folder
    with lock_folder(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
"""


@contextmanager
def holder(folder: Path):
    """Another process that holds the lock."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_a_second_run_is_refused_and_told_who_holds_the_folder_also_through_a_link(tmp_path):
    (tmp_path / "link").symlink_to("out")
    with holder(tmp_path / "out") as process:
        for name in ("out", "link"):
            with pytest.raises(LockedError, match=rf"{name} is in use by another run \(pid {process.pid} on "):
                _open(tmp_path / name, ".lock")
        inode = (tmp_path / "out/.lock").stat().st_ino
        process.send_signal(signal.SIGKILL)
        process.wait()
        with lock_folder(tmp_path / "out"):
            assert (tmp_path / "out/.lock").stat().st_ino == inode, "the lock file is never replaced"
            assert (tmp_path / "out/.lock").read_text().startswith(f"pid {os.getpid()} ")
    assert (tmp_path / "out/.lock").exists()


@pytest.mark.slow
def test_a_child_of_the_holder_does_not_keep_the_lock(tmp_path):
    with lock_folder(tmp_path):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with lock_folder(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()


@pytest.mark.usefixtures("no_pause")
def test_in_50_races_for_a_new_folder_one_wins_and_the_other_is_locked_out(tmp_path):
    (tmp_path / "link").symlink_to(".")
    for race in range(50):
        ends: list[str] = []
        start, decided = threading.Barrier(2), threading.Barrier(2)
        contenders = [
            threading.Thread(target=_contend, args=(tmp_path / via / f"out{race}", start, decided, ends))
            for via in (".", "link")
        ]
        for contender in contenders:
            contender.start()
        for contender in contenders:
            contender.join()
        assert sorted(ends) == ["held", "locked"]


@pytest.fixture
def no_pause(monkeypatch):
    monkeypatch.setattr(lock, "_LOCK_PAUSE_S", 0)


def _contend(folder, start, decided, ends):
    start.wait()
    try:
        with lock_folder(folder):
            ends.append("held")
            decided.wait(timeout=60)
    except LockedError:
        ends.append("locked")
        decided.wait(timeout=60)


def test_the_lock_outlives_other_descriptors_of_the_file(tmp_path, monkeypatch):
    """With lockf it would be lost here."""
    monkeypatch.setattr(lock, "_LOCK_PAUSE_S", 0)
    with lock_folder(tmp_path):
        (tmp_path / ".lock").read_bytes()
        with pytest.raises(LockedError):
            _open(tmp_path, ".lock")


@pytest.mark.parametrize("call", ["flock", "write", "ftruncate"])
def test_a_lock_that_cannot_be_taken_or_noted_is_an_output_error(tmp_path, monkeypatch, call):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fcntl if call == "flock" else os, call, fail)
    with pytest.raises(OutputError, match=r"\.lock: No space left"):
        _open(tmp_path, ".lock")


def test_a_lock_file_that_fails_to_close_does_not_fail_what_was_done_under_it(tmp_path, monkeypatch):
    """A run that had every record ended with a traceback."""
    close = os.close

    def failing(fd):
        close(fd)
        raise OSError(errno.EIO, "Input/output error")

    with lock_folder(tmp_path / "out"):
        monkeypatch.setattr(os, "close", failing)
    monkeypatch.undo()
    with lock_folder(tmp_path / "out"):
        pass


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(OutputError, match="out: Not a directory"):
        _open(tmp_path / "out", ".lock")


def test_errors_inside_the_lock_are_left_alone(tmp_path):
    def inside():
        with lock_folder(tmp_path):
            raise OSError("of the run")

    with pytest.raises(OSError, match="of the run"):
        inside()


def test_the_real_seam_really_syncs(monkeypatch):
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    OsFiles().fsync(7)
    assert synced == [7]
