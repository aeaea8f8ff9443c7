"""kill -9 of the real process, again and again, at moments drawn at random; what is left is checked each time.

Steps: a folder is begun, killed some 25 times and then run to its end, against a simulator in a process of its own;
so are others beside it, with the presets in turn, until there have been as many kills as were asked for. Every run is
`python -m runner` as a user starts it. The oracle, and what is checked after each kill, is in tests/killed.py. A kill
can fall into the start, the recovery, the work or the end of a run.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from anyio.from_thread import start_blocking_portal

from runner.simulator import PRESETS, simulator_process
from tests.killed import Folder, Tally

KILLS_A_FOLDER = 25
SIDE_BY_SIDE = 4
"""Folders: a run among refusals mostly waits."""


def soak(times: int, jobs: int, seed: int) -> int:
    print(f"seed {seed}", flush=True)
    root = Path(tempfile.mkdtemp(prefix="soak-kill-"))
    full, rest = divmod(times, KILLS_A_FOLDER)
    kills = [KILLS_A_FOLDER] * full + [rest] * bool(rest)

    def live(number: int) -> Tally:
        preset = ("default", "flaky")[number % 2]
        began = time.monotonic()
        rng = random.Random(f"{seed}/{number}")
        tally = one_folder(root / str(number), preset, jobs, kills[number], rng)
        print(f"{number}: {preset}, {time.monotonic() - began:.0f} s, {tally}", flush=True)
        return tally

    total = Tally()
    with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
        for tally in threads.map(live, range(len(kills))):
            total.add(tally)
    kept = f"; kept in {root}" if total.violations else ""
    if not total.violations:
        shutil.rmtree(root)
    print(f"{'VIOLATED' if total.violations else 'OK'}: {len(kills)} folders, {total}, seed {seed}{kept}")
    return 1 if total.violations else 0


def one_folder(root: Path, preset: str, jobs: int, kills: int, rng: random.Random) -> Tally:
    root.mkdir(parents=True)
    profile = replace(PRESETS[preset], ttft_s=0.02, tokens_per_s=400.0)
    log = root / "server.jsonl"
    with start_blocking_portal() as portal:
        server = simulator_process(profile, log=log)
        with portal.wrap_async_context_manager(server) as simulator:
            return Folder(root, simulator.base_url, log, jobs, rng).live(kills)
