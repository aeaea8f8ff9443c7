"""kill -9 at random moments; see tests/killed.py for the oracle, and scripts/soak kill for a thousand of them."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from anyio.from_thread import start_blocking_portal

from runner.simulator import PRESETS, simulator_process
from tests.killed import Folder, Tally, by_fork

KILLS = 100
JOBS = 2_000
FOLDERS = 4
"""Side by side: while one run waits for its answers, another starts."""
REFUSALS = {"http_429", "http_529", "in_stream_rate_limit"}
RARE = 0.1
"""Each refusal makes its whole run wait for a second or two, in which there is nothing to lose: scripts/soak kill has
them as often as the preset has."""


@pytest.mark.slow
def test_killed_a_hundred_times_every_job_has_one_right_record_and_nothing_written_is_lost(tmp_path):
    seed = random.randrange(2**32)
    print("seed", seed)
    rates = {name: rate * (RARE if name in REFUSALS else 1) for name, rate in PRESETS["flaky"].fault_rates.items()}
    profile = replace(PRESETS["flaky"], fault_rates=rates, ttft_s=0.02, tokens_per_s=400.0)
    log = tmp_path / "server.jsonl"

    def live(number):
        root = tmp_path / f"folder-{number}"
        root.mkdir()
        rng = random.Random(f"{seed}/{number}")
        folder = Folder(root, simulator.base_url, log, JOBS // FOLDERS, rng, by_fork, early_s=0.3, concurrency=16)
        return folder.live(KILLS // FOLDERS)

    with start_blocking_portal() as portal:
        server = simulator_process(profile, log=log)
        with portal.wrap_async_context_manager(server) as simulator, ThreadPoolExecutor(FOLDERS) as threads:
            tallies = list(threads.map(live, range(FOLDERS)))
    total = Tally()
    for tally in tallies:
        total.add(tally)
    print(total)
    assert not total.violations
    assert total.kills == KILLS
    assert total.records == total.counted == JOBS
