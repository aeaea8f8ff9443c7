"""Mistakes about what is sent and believed: limits, retries, streams, redirects, secrets, signals."""

from __future__ import annotations

from _mutant import Edit, Mutant

MUTANTS = (
    Mutant(
        "retry everything: every fault",
        (Edit("runner/faults.py", "return self.row.retry\n", "return True\n"),),
        (
            "tests/test_retries.py::test_what_it_cannot_mend_fails_at_once",
            "tests/test_pipeline.py::test_a_refused_job_has_one_attempt",
        ),
    ),
    Mutant(
        "retry everything: every exception, cancellation too",
        (
            Edit("runner/retries.py", "        if failed is None:\n            return False\n", ""),
            Edit(
                "runner/retries.py",
                "        if failed.elsewhere:  # no fault",
                "        if failed and failed.elsewhere:  # no fault",
            ),
            Edit(
                "runner/retries.py",
                "        if failed.fault.row.throttle:\n",
                "        if failed and failed.fault.row.throttle:\n",
            ),
            Edit("runner/retries.py", "        return failed.fault.retry\n", "        return state.outcome.failed\n"),
            Edit(
                "runner/retries.py",
                "        assert failed is not None\n        if failed.elsewhere:\n",
                "        if failed is None or failed.elsewhere:\n",
            ),
        ),
        (
            "tests/test_retries.py::test_cancellation_passes_through_at_once",
            "tests/test_retries.py::test_other_exceptions_are_not_retried",
        ),
    ),
    Mutant(
        "stop the socket for bytes that are taken at once",
        (
            Edit("runner/native/connection.py", "        body.wake()\n        # Asked when", "        # Asked when"),
            Edit(
                "runner/native/connection.py",
                '            cast("asyncio.Transport", self._transport).pause_reading()\n',
                '            cast("asyncio.Transport", self._transport).pause_reading()\n        body.wake()\n',
            ),
        ),
        ("tests/native/test_pour.py::test_a_burst_on_top_of_what_has_gathered_does_not_stop_the_socket",),
    ),
    Mutant(
        "success at the end of the stream",
        (
            Edit(
                "runner/attempt.py", "if answer.complete and _survives(fault):", "if fault is None or answer.complete:"
            ),
        ),
        (
            "tests/test_attempt.py::test_every_prefix_is_a_success_only_with_the_finish_reason_in_it",
            "tests/test_attempt.py::test_done_without_finish_reason_is_no_success_and_keeps_the_partial_text",
        ),
    ),
    Mutant(
        "success at [DONE]",
        (
            Edit(
                "runner/accumulate/choices.py",
                "        return len(self._choices) >= self._asked and ",
                "        return self._done or len(self._choices) >= self._asked and ",
            ),
        ),
        ("tests/test_attempt.py::test_done_without_finish_reason_is_no_success_and_keeps_the_partial_text",),
    ),
    Mutant(
        "AsyncLimiter(rpm, 60)",
        (
            Edit(
                "runner/buckets.py",
                "AsyncLimiter(self.burst, self.burst / self.rate_per_s)",
                "AsyncLimiter(per_minute, 60)",
            ),
        ),
        ("tests/test_buckets.py::test_no_window_of_60_s_is_above_the_limit_and_98_percent_are_used",),
    ),
    Mutant(
        "redirects on",
        (Edit("runner/transport.py", "allow_redirects=False", "allow_redirects=True"),),
        ("tests/test_scenarios.py::test_a_redirect_is_not_followed[aiohttp]",),
    ),
    Mutant(
        "burst of the RPM bucket doubled",
        (Edit("runner/buckets.py", "self.per_minute * BURST_S / 60)", "2 * self.per_minute * BURST_S / 60)"),),
        ("tests/test_buckets.py::test_no_window_of_60_s_is_above_the_limit_and_98_percent_are_used",),
    ),
    Mutant(
        "refund ignored",
        (Edit("runner/lanes.py", "self._gate.correct(unused,", "self._gate.correct(0,"),),
        ("tests/test_admission.py::test_refunds_raise_the_throughput_to_the_real_usage",),
    ),
    Mutant(
        "refund doubled",
        (
            Edit(
                "runner/lanes.py",
                "self._gate.correct(unused,",
                "self._gate.correct(2 * unused,",
            ),
        ),
        (
            "tests/test_promises.py::"
            "test_over_a_virtual_hour_no_window_of_60_s_is_above_the_limit_and_one_admission[0]",
            "tests/test_admission.py::test_what_was_used_beyond_the_reservation_is_paid_later",
        ),
    ),
    Mutant(
        "Retry-After taken as it comes",
        (
            Edit(
                "runner/faults.py",
                "return max(seconds, 0.0) if seconds <= MAX_RETRY_AFTER_S else None",
                "return seconds",
            ),
        ),
        ("tests/test_faults.py::test_retry_after_is_read_and_clamped",),
    ),
    Mutant(
        "POST tried again on 400",
        (
            Edit(
                "runner/faults.py",
                'FaultKind.BAD_REQUEST: Row("request")',
                'FaultKind.BAD_REQUEST: Row("request", retry=True)',
            ),
        ),
        (
            "tests/test_retries.py::test_what_it_cannot_mend_fails_at_once",
            "tests/test_pipeline.py::test_a_refused_job_has_one_attempt",
        ),
    ),
    Mutant(
        "a bad certificate is tried again",
        (
            Edit(
                "runner/faults.py",
                'FaultKind.CERTIFICATE: Row("user", stops_run=True)',
                'FaultKind.CERTIFICATE: Row("network", retry=True)',
            ),
        ),
        ("tests/test_promises.py::test_a_certificate_nobody_vouches_for_stops_the_run_and_is_not_tried_again",),
    ),
    Mutant(
        "a bad key does not stop the run",
        (Edit("runner/faults.py", 'FaultKind.AUTH: Row("account", stops_run=True)', 'FaultKind.AUTH: Row("account")'),),
        (
            "tests/test_run.py::test_a_bad_key_stops_the_run_and_its_jobs_stay_for_the_next",
            "tests/test_pipeline.py::test_a_fault_that_every_job_would_meet_stops_the_run",
        ),
    ),
    Mutant(
        "redaction off: the canary gets through",
        (
            Edit(
                "runner/redact.py",
                '        """The text without secrets."""\n',
                '        """The text without secrets."""\n        return text\n',
            ),
        ),
        (
            "tests/test_run.py::test_a_canary_key_is_in_no_file_and_no_stream_whatever_the_server_does",
            "tests/test_redact.py::test_a_known_key_is_found_however_it_is_written",
        ),
    ),
    Mutant(
        "a server's message is cut before secrets are looked for",
        (
            Edit(
                "runner/faults.py",
                "return shortened(text, MAX_ERROR_TEXT_CHARS).strip()",
                "return text.strip()[:MAX_ERROR_TEXT_CHARS]",
            ),
        ),
        (
            "tests/test_redact.py::"
            "test_a_key_that_a_server_names_across_the_cut_of_its_message_is_in_no_file_and_no_stream",
        ),
    ),
    Mutant(
        "terminal escapes off",
        (Edit("runner/escape.py", "    return _UNSAFE.sub(_spelt_out, text)\n", "    return text\n"),),
        ("tests/test_escape.py::test_nothing_that_moves_a_cursor_gets_through",),
    ),
    Mutant(
        "empty deltas push the idle deadline back",
        (
            Edit(
                "runner/streaming.py",
                "        if not content:\n            return False\n",
                "        if not content:\n            self._watch.progress()\n            return False\n",
            ),
        ),
        ("tests/test_attempt.py::test_empty_deltas_do_not_keep_a_stream_alive",),
    ),
    Mutant(
        "texts of a run are joined by what may stand in one of them",
        (Edit("runner/accumulate/repeated.py", 'b",\\n".join', 'b",".join'),),
        ("tests/accumulate/test_repeated.py::test_a_run_of_events_says_what_each_says_for_itself_or_nothing",),
    ),
    Mutant(
        "half an event counts as one that has come",
        (
            Edit(
                "runner/streaming.py",
                "        if not all(block.endswith(end) for block in run):\n",
                "        if False:\n",
            ),
        ),
        ("tests/native/test_gather.py::test_an_event_that_comes_in_two_blocks_came_with_the_second",),
    ),
    Mutant(
        "who is admitted at once overtakes those who wait at the gate",
        (Edit("runner/gate.py", "            not self._turn.locked()\n            and ", "            "),),
        ("tests/test_gate.py::test_nobody_enters_at_once_while_somebody_waits_at_the_gate",),
    ),
    Mutant(
        "what arrived before a deadline is looked at after it",
        (Edit("runner/deadlines.py", "        self.catch_up()\n", ""),),
        ("tests/native/test_gather.py::test_what_was_waiting_when_a_deadline_passed_had_come_before_it",),
    ),
    Mutant(
        "a standstill of this process is the server's silence",
        (Edit("runner/deadlines.py", "            self._put_off(late_s)\n", ""),),
        ("tests/test_deadlines.py::test_time_in_which_the_process_stood_still_is_not_the_servers",),
    ),
    Mutant(
        "the second signal is not heard",
        (Edit("runner/signals.py", "                on_second()\n", "                pass\n"),),
        (
            "tests/test_signals.py::test_the_first_signal_is_reported_once_and_every_later_one_as_the_second",
            "tests/test_run.py::test_the_second_signal_ends_what_would_never_end",
        ),
    ),
)
