"""Mistakes about what is kept: durability, recovery, the lock, what is done and what is void."""

from __future__ import annotations

from _mutant import Edit, Mutant

MUTANTS = (
    Mutant(
        "no fsync: records are acknowledged without one",
        (Edit("runner/journal.py", "            if self._sync:\n                results.sync()\n", ""),),
        (
            "tests/test_journal.py::test_a_record_is_acknowledged_when_it_is_durable_and_not_before",
            "tests/test_crash.py::test_without_power_at_every_operation_nothing_acknowledged_is_lost",
        ),
    ),
    Mutant(
        "no fsync: the seam doesn't call it",
        (Edit("runner/files.py", "        os.fsync(fd)\n        if os.fstat", "        if os.fstat"),),
        ("tests/test_files.py::test_the_real_seam_really_syncs",),
    ),
    Mutant(
        "a deleted results.jsonl is written to the end",
        (Edit("runner/files.py", "if os.fstat(fd).st_nlink == 0:", "if os.fstat(fd).st_nlink < 0:"),),
        ("tests/test_files.py::test_what_was_written_to_a_deleted_file_is_not_acknowledged",),
    ),
    Mutant(
        "a jobs file is read to wherever it ends now",
        (Edit("runner/source.py", "yield io.BufferedReader(_AsLongAsItWas(raw), READ_BLOCK_BYTES)", "yield raw"),),
        (
            "tests/test_promises.py::test_what_is_appended_while_a_file_is_read_is_for_the_next_run",
            "tests/test_promises.py::test_a_file_that_becomes_shorter_while_it_is_read_is_an_error_that_names_it",
        ),
    ),
    Mutant(
        "a folder of a later version is taken for one of ours",
        (Edit("runner/manifest.py", "or schema > SCHEMA", ""),),
        ("tests/test_promises.py::test_a_folder_of_a_later_version_is_refused_and_left_alone",),
    ),
    Mutant(
        "no fsync: of the folder after a rename",
        (
            Edit(
                "runner/files.py",
                "        fs.rename(temporary, path)\n        fs.fsync_dir(path.parent)\n",
                "        fs.rename(temporary, path)\n",
            ),
        ),
        ("tests/test_files.py::test_what_atomic_write_wrote_is_durable",),
    ),
    Mutant(
        "finished before written",
        (
            Edit(
                "runner/journal.py",
                "        try:\n            await anyio.to_thread.run_sync(self._write,",
                "        for _, acknowledged in group:\n            acknowledged.set_result(None)\n"
                "        try:\n            await anyio.to_thread.run_sync(self._write,",
            ),
        ),
        (
            "tests/test_journal.py::test_a_record_is_acknowledged_when_it_is_durable_and_not_before",
            "tests/test_crash.py::test_without_power_at_every_operation_nothing_acknowledged_is_lost",
        ),
    ),
    Mutant(
        "short write ignored",
        (Edit("runner/files.py", "view = view[written:]", "view = view[len(view) :]"),),
        (
            "tests/test_files.py::test_a_short_write_is_completed",
            "tests/test_journal.py::test_short_writes_that_the_disk_gets_over_are_not_noticed",
        ),
    ),
    Mutant(
        "buffered append: fsync, but of what was handed over",
        (
            Edit(
                "runner/files.py",
                "        self._refuse_if_broken()\n        view = memoryview(data)\n",
                "        self._refuse_if_broken()\n"
                "        data = self._held = getattr(self, '_held', b'') + data\n"
                "        if len(data) < 8192:\n            return\n"
                "        self._held = b''\n        view = memoryview(data)\n",
            ),
            Edit(
                "runner/files.py",
                "        with output_errors(self.path):\n            self._fs.close(self._fd)\n",
                "        with output_errors(self.path):\n"
                "            self._fs.write(self._fd, getattr(self, '_held', b''))\n"
                "            self._fs.close(self._fd)\n",
            ),
        ),
        (
            "tests/test_journal.py::test_a_record_is_acknowledged_when_it_is_durable_and_not_before",
            "tests/test_crash.py::test_killed_at_every_operation_nothing_written_is_lost",
        ),
    ),
    Mutant(
        "buffered append: flushed by fsync alone",
        (
            Edit(
                "runner/files.py",
                "        self._refuse_if_broken()\n        view = memoryview(data)\n",
                "        self._refuse_if_broken()\n"
                "        data = self._held = getattr(self, '_held', b'') + data\n"
                "        if len(data) < 8192:\n            return\n"
                "        self._held = b''\n        view = memoryview(data)\n",
            ),
            Edit(
                "runner/files.py",
                "            self._fs.fsync(self._fd)\n",
                "            self._fs.write(self._fd, getattr(self, '_held', b'')), setattr(self, '_held', b'')\n"
                "            self._fs.fsync(self._fd)\n",
            ),
        ),
        (
            "tests/test_journal.py::test_with_durability_none_it_is_acknowledged_when_it_is_written_and_durable_at_the_end",
        ),
    ),
    Mutant(
        "lockf in the place of flock",
        (Edit("runner/lock.py", "fcntl.flock(", "fcntl.lockf("),),
        ("tests/test_files.py::test_the_lock_outlives_other_descriptors_of_the_file",),
    ),
    Mutant(
        "a torn tail is left where it is",
        (Edit("runner/recovery.py", "if found.tail is not None and not found.holes:", "if False:"),),
        ("tests/test_crash.py::test_killed_at_every_operation_nothing_written_is_lost",),
    ),
    Mutant(
        "a job that has its record is sent again",
        (Edit("runner/pipeline.py", "if resumes and id_key(item.id) in self.done:", "if False:"),),
        ("tests/test_pipeline.py::test_jobs_that_are_done_are_passed_over",),
    ),
    Mutant(
        "files that anybody may read",
        (Edit("runner/files.py", "_PRIVATE: Final = 0o600", "_PRIVATE: Final = 0o644"),),
        ("tests/test_files.py::test_files_are_private", "tests/test_run.py::test_files_belong_to_their_owner_alone"),
    ),
    Mutant(
        "links followed: O_NOFOLLOW dropped",
        (Edit("runner/files.py", " | os.O_NOFOLLOW | os.O_NONBLOCK\n", " | os.O_NONBLOCK\n"),),
        ("tests/test_files.py::test_a_symbolic_link_is_refused_and_its_target_untouched",),
    ),
    Mutant(
        "lock not taken",
        (Edit("runner/lock.py", "    if not _try_lock(fd):\n", "    if False:\n"),),
        (
            "tests/test_run.py::test_a_folder_that_is_held_is_refused_at_once",
            "tests/test_races.py::test_in_50_races_one_runs_the_other_exits_3_and_when_the_holder_is_killed_"
            "the_next_starts_at_once",
        ),
    ),
    Mutant(
        "lock file unlinked at the end",
        (
            Edit(
                "runner/lock.py",
                "    finally:\n        with suppress(OSError):  # the lock",
                "    finally:\n        (folder / '.lock').unlink()\n        with suppress(OSError):  # the lock",
            ),
        ),
        ("tests/test_files.py::test_a_second_run_is_refused_and_told_who_holds_the_folder_also_through_a_link",),
    ),
    Mutant(
        "a failed fsync is tried again",
        (
            Edit(
                "runner/files.py",
                '            self._broken = f"{self.path}: fsync: {error.strerror or error}"\n',
                '            self._broken = f"{self.path}: fsync: {error.strerror or error}"\n'
                "            self._fs.fsync(self._fd)\n",
            ),
        ),
        ("tests/test_files.py::test_a_failed_fsync_is_never_retried",),
    ),
    Mutant(
        "damage in the middle passed over",
        (
            Edit(
                "runner/recovery.py",
                "        if self._damage is not None:\n            raise self._damaged(self._damage)\n",
                "",
            ),
        ),
        (
            "tests/test_recovery.py::"
            "test_damage_in_the_middle_is_refused_by_line_number_with_advice_and_nothing_is_touched",
        ),
    ),
    Mutant(
        "void not written after a retry",
        (Edit("runner/worker.py", "        if history.retries:\n", "        if False:\n"),),
        (
            "tests/test_run.py::test_a_mixed_file_with_faults_ends_with_one_right_record_each",
            "tests/test_pipeline.py::test_attempts_are_bounded_and_each_is_told",
        ),
    ),
    Mutant(
        "void not written by a resumed run",
        (Edit("runner/worker.py", "        elif self._bench.resumed:\n", "        elif False:\n"),),
        ("tests/test_pipeline.py::test_a_resumed_run_voids_what_an_interrupted_one_may_have_left",),
    ),
    Mutant(
        "another body under a known id is taken for done",
        (
            Edit(
                "runner/preflight.py",
                "    return known is not None and isinstance(item, Job) and known != item.digest\n",
                "    return False\n",
            ),
        ),
        ("tests/test_folder.py::test_another_body_under_a_known_id_is_refused_by_name_and_nothing_is_touched",),
    ),
)
