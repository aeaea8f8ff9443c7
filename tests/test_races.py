"""Two runs for one folder, as real processes: one runs, the other is refused at once; a dead holder holds nothing.

tests/test_files.py has the lock alone, by threads. Here each racer is a whole run, forked from a process that has
imported everything, so that two of them really meet: with a second of imports in between they seldom do. The server
never answers the racers, so that the winner holds the folder until it is killed, however slow the machine is.
"""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from runner.simulator import Profile, simulator_process
from tests.killed import by_fork
from tests.process import TIMEOUT_S, by_id, write_jobs

pytestmark = pytest.mark.slow
RACES = 50
JOBS = 3
APART_S = 0.03
"""A racer starts so much after the other at most: about the time in which a run gets to its lock."""


@pytest.fixture(scope="module")
def silent_simulator():
    """One that answers nobody."""
    profile = Profile(fault_rates={"slow_headers": 1.0})
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(simulator_process(profile)) as simulator:
        yield simulator


class Course:
    """One race: a folder that is reached by two names, and what becomes of those who want it."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self.root, self.rng = root, rng
        (root / "real").mkdir(parents=True)
        (root / "linked").symlink_to("real")
        self.path = write_jobs(root / "jobs.jsonl", ({"custom_id": f"job-{i}", "prompt": f"{i}"} for i in range(JOBS)))

    def start(self, server, via, name):
        options = ("--base-url", server.base_url, "--model", "synthetic-1", "--progress", "none")
        return by_fork([str(self.path), "--out", str(self.root / via / "out"), *options], self.root, self.root / name)

    def race(self, silent):
        """Starts two runs; returns the one that goes on when the other has ended."""
        vias = self.rng.choice((("real", "real"), ("real", "linked"), ("linked", "real")))
        racers = [self.start(silent, vias[0], "said-0")]
        time.sleep(self.rng.choice((0.0, self.rng.uniform(0.0, APART_S))))
        racers.append(self.start(silent, vias[1], "said-1"))
        give_up = time.monotonic() + TIMEOUT_S
        while all(racer.is_alive() for racer in racers) and time.monotonic() < give_up:
            time.sleep(0.005)  # another process is awaited: there is no event for it
        alive = [racer.is_alive() for racer in racers]
        assert alive.count(True) == 1, (vias, alive)
        loser = alive.index(False)
        assert racers[loser].end() == 3
        said = (self.root / f"said-{loser}").read_text()
        assert said.count("\n") == 1
        assert f"is in use by another run (pid {racers[1 - loser].pid} on " in said or "(unknown)" in said
        return racers[1 - loser]


def test_in_50_races_one_runs_the_other_exits_3_and_when_the_holder_is_killed_the_next_starts_at_once(
    silent_simulator, simulator, tmp_path
):
    seed = random.randrange(2**32)
    print("seed", seed)

    def run_race(number):
        course = Course(tmp_path / f"race-{number}", random.Random(f"{seed}/{number}"))
        holder = course.race(silent_simulator)
        assert course.start(silent_simulator, "linked", "said").end() == 3
        holder.kill()
        assert holder.end() == -9
        assert course.start(simulator, "real", "said").end() == 0, (course.root / "said").read_text()
        assert by_id(course.root / "real" / "out").keys() == {f"job-{i}" for i in range(JOBS)}
        return True

    with ThreadPoolExecutor(3) as threads:
        assert sum(threads.map(run_race, range(RACES))) == RACES
