"""Any life of a folder: whatever happens in whatever order, each job ends with one record, and none is lost.

A hypothesis state machine on a disk in memory: jobs are added, reordered and changed; runs end well, by a limit, by a
kill or a power loss at their N-th operation, or because the disk is full; recoveries die too. A short version runs with
the suite; SOAK_EXAMPLES makes it long (`scripts/soak machine`).
"""

from __future__ import annotations

import errno
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random

import orjson
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from runner.errors import OutputError, UsageError
from runner.recovery import recover
from runner.source import JobSource
from runner.testing.memory_files import PREFIXES, Crashed, MemoryFiles, Tear, WriteFault
from tests.memory_run import (
    OUT,
    RESULTS,
    SUPERSEDED,
    Options,
    World,
    check_finished,
    execute,
    lines_of,
    run,
    whole_records,
)

EXAMPLES = int(os.environ.get("SOAK_EXAMPLES", "50"))
STEPS = 30
NAMES = [f"j{n}" for n in range(8)]


@dataclass(frozen=True, slots=True)
class Death:
    """How a machine dies at its N-th operation from now."""

    at: int
    power: bool
    tear: Tear
    """Of the write under way at a kill; of everything that wasn't synced at a power loss."""
    seed: int | None
    """At a power loss: each file and name is torn for itself; None: all alike."""


DEATHS = st.builds(
    Death, st.integers(1, 60), st.booleans(), st.sampled_from(list(Tear)), st.none() | st.integers(0, 99)
)
FULL_DISKS = st.builds(
    WriteFault,
    st.just(errno.ENOSPC),
    st.sampled_from([frozenset({"write"}), frozenset({"write", "create", "make_dir", "rename"})]),
    first=st.integers(1, 12),
    short=st.none() | st.integers(1, 200),
)
PLANS = st.fixed_dictionaries({"retry_failed": st.booleans(), "accept_changes": st.booleans()})
DURABILITIES = st.sampled_from(["batch", "each", "none"])


class FolderLife(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.home = tempfile.TemporaryDirectory()
        self.world = World(Path(self.home.name) / "jobs.jsonl")
        self.fs = MemoryFiles()
        self.jobs: dict[str, int] = {}
        """The jobs file: each job's version, in the file's order."""
        self.digests: dict[str, int] = {}
        self.may_be_aside: set[bytes] = set()
        """Records that a run was told to supersede."""
        self.write_jobs()

    # ── The jobs file ────────────────────────────────────────────────────────────────────────────────────────────

    def write_jobs(self) -> None:
        lines = [orjson.dumps({"custom_id": name, "prompt": f"{name} {n}"}) for name, n in self.jobs.items()]
        self.world.jobs.write_bytes(b"".join(line + b"\n" for line in [*lines, b"{not a job"]))

        async def digests():
            batches = JobSource([str(self.world.jobs)]).batches()
            return {item.id: getattr(item, "digest", 0) async for batch in batches for item in batch}

        self.digests = execute(digests)

    @initialize(names=st.lists(st.sampled_from(NAMES), min_size=3, unique=True))
    def write_first_jobs(self, names):
        self.add_jobs(names)

    @rule(names=st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    def add_jobs(self, names):
        for name in names:
            self.jobs.setdefault(name, 0)
        self.write_jobs()

    @rule(names=st.permutations(NAMES))
    def reorder_jobs(self, names):
        self.jobs = {name: self.jobs[name] for name in names if name in self.jobs}
        self.write_jobs()

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def change_job(self, data):
        self.jobs[data.draw(st.sampled_from(list(self.jobs)))] += 1
        self.write_jobs()

    @rule(names=st.frozensets(st.sampled_from(NAMES)))
    def let_jobs_fail(self, names):
        self.world.failing = names

    # ── The machine ──────────────────────────────────────────────────────────────────────────────────────────────

    @rule(plan=PLANS, limit=st.none() | st.integers(1, 4), durability=DURABILITIES)
    def run(self, plan, limit, durability):
        self.run_once(plan, limit, durability, None)

    @rule(plan=PLANS, durability=DURABILITIES, death=DEATHS)
    def run_and_die(self, plan, durability, death):
        self.run_once(plan, None, durability, death)

    def run_once(self, plan, limit, durability, death):
        """One command line. It may be the machine's last."""
        before, promised = self.records(), len(self.world.acknowledged)
        refused = self.is_refused(plan)
        if not refused:
            self.may_be_aside |= self.to_be_superseded(plan)
        self.die_later(death)
        complete = False
        try:
            complete = run(self.fs, self.world, Options(plan, limit, durability))
            assert not (complete and refused), "finished jobs ask something else, and nobody said so"
            if complete and limit is None:
                check_finished(self.fs, self.world, list(self.jobs))
        except UsageError:
            assert refused
        except OutputError:
            assert self.fs.fault is not None
        self.after(death, before)
        if durability == "none" and not complete:
            del self.world.acknowledged[promised:]  # they were promised at the end only

    @precondition(lambda self: self.fs.exists(OUT))
    @rule(death=DEATHS)
    def recover_and_die(self, death):
        before = self.records()
        self.die_later(death)
        try:
            recover(self.fs, OUT)
        except Crashed:
            pass
        except OutputError:
            assert self.fs.fault is not None
        self.after(death, before)

    @rule(tear=st.sampled_from(list(Tear)), seed=st.none() | st.integers(0, 99))
    def lose_power(self, tear, seed):
        self.start_anew(Death(0, True, tear, seed))

    @rule(fault=FULL_DISKS)
    def fill_disk(self, fault):
        self.fs.fault, self.fs._matched = fault, 0

    @rule()
    def free_disk(self):
        self.fs.fault = None

    def die_later(self, death):
        if death is not None:
            self.fs.crash_at = len(self.fs.log) + death.at
            self.fs.tear = Tear.ALL if death.power else death.tear if death.tear in PREFIXES else Tear.HALF

    def after(self, death, before):
        """What was there is there, unless the power was lost: then what was acknowledged is (see below)."""
        lost_power = self.fs.crashed and death.power
        if self.fs.crashed:
            self.start_anew(death)
        else:
            assert not self.fs.open_descriptors
            self.fs.crash_at = None
        if not lost_power:
            left = {*self.records(), *self.may_be_aside.intersection(lines_of(self.fs, SUPERSEDED))}
            assert set(before) <= left

    def start_anew(self, death):
        fault = self.fs.fault
        if not death.power:
            self.fs = self.fs.after_kill()
        elif death.seed is None:
            self.fs = self.fs.after_power_loss(death.tear, names_kept=True)
        else:
            self.fs = self.fs.after_random_power_loss(Random(death.seed))
        self.fs.fault = fault  # it is still as full

    # ── What must hold ───────────────────────────────────────────────────────────────────────────────────────────

    def records(self) -> list[bytes]:
        return whole_records(lines_of(self.fs, RESULTS))

    def asks_something_else(self, record) -> bool:
        wanted = self.digests.get(record["id"])
        return (
            record["runner"]["digest"] is not None
            and wanted is not None
            and int(record["runner"]["digest"], 16) != wanted
        )

    def is_refused(self, plan) -> bool:
        changed = [record for record in map(orjson.loads, self.records()) if self.asks_something_else(record)]
        kept = [record for record in changed if not (plan["retry_failed"] and record["error"])]
        return bool(kept) and not plan["accept_changes"]

    def to_be_superseded(self, plan) -> set[bytes]:
        def chosen(record):
            return (plan["retry_failed"] and record["error"]) or self.asks_something_else(record)

        return {line for line in self.records() if chosen(orjson.loads(line))}

    @invariant()
    def no_job_has_two_records(self):
        ids = [orjson.loads(line)["id"] for line in self.records()]
        assert len(set(ids)) == len(ids)

    @invariant()
    def what_was_acknowledged_is_there_or_was_superseded_on_purpose(self):
        kept, aside = self.records(), set(whole_records(lines_of(self.fs, SUPERSEDED)))
        assert aside <= self.may_be_aside
        for line in self.world.acknowledged:
            assert kept.count(line) == 1 or line in aside, line

    def teardown(self):
        """A full run on a disk with room gives each job of now its one record; the next one has nothing to do."""
        self.fs.fault = None
        try:
            for _ in range(2):
                answers = self.world.answers
                assert run(self.fs, self.world, Options({"accept_changes": True}))
            assert answers == self.world.answers
            for fs in (self.fs, self.fs.after_power_loss(Tear.NOTHING, names_kept=False)):
                check_finished(fs, self.world, list(self.jobs))
            assert not any(map(self.asks_something_else, map(orjson.loads, self.records())))
        finally:
            self.home.cleanup()


@pytest.mark.slow
def test_whatever_happens_each_job_has_one_record_in_the_end_and_none_is_lost():
    run_state_machine_as_test(FolderLife, settings=settings(max_examples=EXAMPLES, stateful_step_count=STEPS))
