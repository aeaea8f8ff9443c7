"""What the processes of `--workers` get of the limits, and what stops them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from runner.drain import Reason
from runner.load.level import LevelStatistics
from runner.load.processes import Processes, divided
from runner.settings import EndpointSettings, ModelLimits, Settings


def test_limits_are_divided_by_the_number_of_processes():
    found = divided(Settings(rpm=600, tpm=9_000, limits={"m": ModelLimits(rpm=60, concurrency=5)}), 3)
    assert (found.rpm, found.tpm) == (200, 3_000)
    assert (found.limits["m"].rpm, found.limits["m"].concurrency) == (20, 1)
    assert found.limits["m"].tpm is None


def test_what_is_not_limited_stays_so():
    found = divided(Settings(), 4)
    assert (found.rpm, found.tpm, found.limits) == (None, None, {})


@pytest.mark.parametrize("concurrency", [1, 8])
def test_an_endpoint_keeps_at_least_one_stream_a_process(concurrency):
    endpoint = EndpointSettings(name="a", rpm=40, concurrency=concurrency, limits={"*": ModelLimits(tpm=800)})
    (found,) = divided(Settings(endpoints=(endpoint,)), 4).endpoints
    assert found.limits is not None
    assert (found.rpm, found.limits["*"].tpm) == (10, 200)
    assert found.concurrency == max(1, concurrency // 4)


class Pipe:
    """A child's standard input."""

    def __init__(self):
        self.told = []

    def write(self, line):
        self.told.append(line)


def processes(*said):
    """Two children, the first of which says this of its level."""
    made: Any = Processes({"settings": {"max_cost": None}, "spent": 0.0}, 2, SimpleNamespace(), None)  # type: ignore[arg-type]
    made._children = [SimpleNamespace(stdin=Pipe()), SimpleNamespace(stdin=Pipe())]
    messages = iter(said)

    async def heard(index, child, key):
        return next(messages)

    made._heard = heard
    return made


def level_over(reason):
    statistics = LevelStatistics().to_dict()
    return {"statistics": statistics, "duration_s": 1.0, "complete": False, "numbers": 1, "reason": reason}


def test_what_stops_one_process_stops_the_others_even_if_its_level_ended_with_it():
    made = processes(level_over([4, "not_authorized: wrong key"]), level_over([130, "interrupted"]))
    parts: list[Any] = []
    anyio.run(made._wait, 0, made._children[0], parts)
    assert made.reason == Reason(4, "not_authorized: wrong key")
    assert [child.stdin.told for child in made._children] == [[b'{"stop":true}\n']] * 2
    anyio.run(made._wait, 1, made._children[1], parts)  # it says that it was stopped: that is no reason of its own
    assert made.reason == Reason(4, "not_authorized: wrong key")
    assert len(parts) == 2
