"""Every operation of a run's life is once the last one: killed, or without power, with every tear.

A life is four runs in one folder: cut short by a limit, resumed, --retry-failed, and --accept-changes after an edit of
the jobs file. The machine dies at its N-th operation; another starts with what is left and repeats the command.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest

from runner.testing.memory_files import PREFIXES, MemoryFiles, Tear
from tests.memory_run import (
    RESULTS,
    SUPERSEDED,
    Options,
    World,
    check_finished,
    lines_of,
    run,
    whole_records,
)

JOBS = [f"j{n}" for n in range(7)]
FAILING = frozenset({"j1", "j4"})
EDITED = [*JOBS, "j7"]
PHASES = [
    (Options(limit=4), JOBS, 0, FAILING),
    (Options(), JOBS, 0, FAILING),
    (Options({"retry_failed": True}), JOBS, 0, frozenset()),
    (Options({"accept_changes": True}), EDITED, 1, frozenset()),
]


@dataclass
class Life:
    """A folder's life on one machine after another."""

    world: World
    durability: str = "batch"
    phase: int = 0

    def copy(self) -> Life:
        world = replace(self.world, acknowledged=list(self.world.acknowledged))
        return Life(world, self.durability, self.phase)

    def live(self, fs: MemoryFiles) -> bool:
        """Runs the phases from where it stands; False if the machine died, in the phase `self.phase`."""
        while self.phase < len(PHASES):
            options, jobs, version, self.world.failing = PHASES[self.phase]
            options = Options(options.plan, options.limit, self.durability)
            self.world.write_jobs(jobs, version=version)
            if not run(fs, self.world, options):
                return False
            self.phase += 1
        return True


@pytest.fixture
def jobs_file(tmp_path):
    return tmp_path / "jobs.jsonl"


def operations_of(jobs_file, durability="batch"):
    fs = MemoryFiles()
    assert Life(World(jobs_file), durability).live(fs)
    return fs.log


def die(jobs_file, crash_at, tear=Tear.NOTHING, durability="batch") -> tuple[Life, MemoryFiles]:
    life, fs = Life(World(jobs_file), durability), MemoryFiles(crash_at=crash_at, tear=tear)
    assert not life.live(fs)
    return life, fs


def live_on(life: Life, fs: MemoryFiles) -> None:
    assert life.live(fs)
    check_finished(fs, life.world, EDITED)
    # What it says at the end must be true of the disk as well.
    check_finished(fs.after_power_loss(Tear.NOTHING, names_kept=False), life.world, EDITED)


class Sweep:
    """Lives on after many deaths; what another death left exactly so has been tried already."""

    def __init__(self) -> None:
        self.points = 0
        self._tried: set[object] = set()

    def point(self, life: Life, fs: MemoryFiles) -> None:
        self.points += 1
        state = (life.phase, tuple(life.world.acknowledged), fs.state())
        if state not in self._tried:
            self._tried.add(state)
            live_on(life.copy(), fs)

    def conclude(self, what: str, at_least: int) -> None:
        print(f"{self.points} {what}, {len(self._tried)} of them different")
        assert self.points >= at_least


def test_a_whole_life_without_a_crash(jobs_file):
    life, fs = Life(World(jobs_file)), MemoryFiles()
    live_on(life, fs)
    assert life.world.answers == len(JOBS) + len(FAILING) + len(EDITED)
    assert len(lines_of(fs, SUPERSEDED)) == len(FAILING) + 1 + len(JOBS)  # 1: the line that is no job
    assert not fs.open_descriptors


def test_killed_at_every_operation_nothing_written_is_lost(jobs_file):
    sweep = Sweep()
    for number, (operation, _) in enumerate(operations_of(jobs_file), 1):
        for tear in PREFIXES if operation == "write" else [Tear.NOTHING]:
            life, dead = die(jobs_file, number, tear)
            written = whole_records(lines_of(dead, RESULTS))
            fs = dead.after_kill()
            sweep.point(life, fs)
            assert set(written) <= {*lines_of(fs, RESULTS), *lines_of(fs, SUPERSEDED)}
    sweep.conclude("kills", 300)


def test_without_power_at_every_operation_nothing_acknowledged_is_lost(jobs_file):
    sweep = Sweep()
    for number in range(1, len(operations_of(jobs_file)) + 1):
        life, dead = die(jobs_file, number, Tear.ALL)
        for tear in Tear:
            for names_kept in (False, True):
                sweep.point(life, dead.after_power_loss(tear, names_kept=names_kept))
    sweep.conclude("power losses", 1_000)


def test_each_file_and_name_torn_for_itself_nothing_acknowledged_is_lost(jobs_file):
    seed = random.randrange(1 << 32)
    print("seed", seed)
    rng, sweep = random.Random(seed), Sweep()
    for number in range(1, len(operations_of(jobs_file)) + 1):
        life, dead = die(jobs_file, number, Tear.ALL)
        for _ in range(4):
            sweep.point(life, dead.after_random_power_loss(rng))
    sweep.conclude("random power losses", 400)


def test_crashed_again_at_every_operation_of_the_recovery(jobs_file):
    """Where the first death leaves something to repair or to move, the second comes while that is done."""
    sweep = Sweep()
    for number, (operation, _) in enumerate(operations_of(jobs_file), 1):
        if operation not in ("write", "rename") or number % 5:
            continue
        first, dead = die(jobs_file, number, Tear.ALL)
        for tear in (Tear.HALF, Tear.HOLE):
            for second in range(1, 30):
                fs = dead.after_power_loss(tear, names_kept=True, crash_at=second, next_tear=Tear.HALF)
                life = first.copy()
                if life.live(fs):
                    break
                sweep.point(life, fs.after_kill())
                sweep.point(life, fs.after_power_loss(Tear.NOTHING, names_kept=second % 2 == 0))
    sweep.conclude("second crashes", 600)


@pytest.mark.parametrize("durability", ["each", "none"])
def test_exactly_one_final_record_under_every_durability(jobs_file, durability):
    sweep = Sweep()
    for number in range(1, len(operations_of(jobs_file, durability)) + 1, 2):
        life, dead = die(jobs_file, number, Tear.ALL, durability)
        if durability == "none":
            life.world.acknowledged.clear()  # nothing was promised
        for tear in (Tear.NOTHING, Tear.HALF, Tear.HOLE):
            sweep.point(life, dead.after_power_loss(tear, names_kept=True))
    sweep.conclude("power losses", 150)
