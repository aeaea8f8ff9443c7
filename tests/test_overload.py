"""Refusals by chance, by overload and by a limit that is called overload: told apart by what a server does.

Each world (`tests.worlds`) is in virtual time, and its server is of one kind and names no limit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.worlds import KINDS, OVERLOADED, Load, Server, about


def load_of(server: Server, *, slots: int | None = 32, **more: Any) -> Load:
    """Short answers, and workers enough to fill the slots while others back off."""
    kwargs: dict[str, Any] = {"answer_s": (0.1, 0.3), "way_s": (0.001, 0.005), "workers": 2 * (slots or 1_024)} | more
    return Load(server, slots=slots, **kwargs)


# ── By chance ────────────────────────────────────────────────────────────────────────────────────────────────────────

UNDISTURBED_S = 14.8
"""What 2,000 jobs take that nobody refuses: 0.2 s each, 32 at once."""


def refused_at_random(kind: str, chance: float, seed: int, wait_s: float | None = None, **more: Any) -> Load:
    server = Server(refusal=replace(KINDS[kind], retry_after_s=wait_s), chance=chance, seed=seed)
    return load_of(server, seed=seed, **{"jobs": 2_000, **more}).run(2_000)


def test_what_is_not_refused_takes_as_long_as_its_slots_allow():
    assert load_of(Server(), jobs=2_000).run(100).took_s == pytest.approx(UNDISTURBED_S, abs=0.2)


@pytest.mark.parametrize(
    ("kind", "chance", "times"), [("529", 0.005, 1.2), ("529", 0.02, 1.5), ("503", 0.1, 2.5), ("529", 0.3, 4.0)]
)
def test_a_server_that_says_by_chance_that_it_is_overloaded_costs_its_share(kind, chance, times):
    for seed in (1, 2):
        run = refused_at_random(kind, chance, seed)
        assert run.took_s <= times * UNDISTURBED_S
        assert run.failed <= (0 if kind == "529" else 1)  # 0.1⁵ of 2,000 are 0.02; 529 has ten times the attempts


@pytest.mark.parametrize(("chance", "mean", "worst"), [(0.005, 1.5, 2.0), (0.02, 2.0, 3.0), (0.1, 3.0, 4.0)])
def test_429_by_chance_costs_little_where_the_server_asks_for_no_pause(chance, mean, worst):
    took = [
        refused_at_random("429", chance, seed, wait_s).took_s for seed, wait_s in enumerate([None, 0.0, None, 0.0], 1)
    ]
    assert sum(took) / len(took) <= mean * UNDISTURBED_S
    assert max(took) <= worst * UNDISTURBED_S


@pytest.mark.parametrize("chance", [0.02, 0.1])
def test_429_by_chance_costs_the_pauses_that_the_server_asks_for_and_no_more(chance):
    for seed in (1, 2):
        run = refused_at_random("429", chance, seed, 1.0)
        pauses_s = 2_000 * chance * (1.0 + 0.5)  # each of a second, and its probe or the slots' filling up
        assert run.took_s <= 2 * UNDISTURBED_S + pauses_s


@pytest.mark.parametrize("kind", ["529"])
def test_the_advice_of_an_overloaded_server_stops_nobody_but_its_attempt(kind):
    run = refused_at_random(kind, 0.02, 1, 5.0, jobs=4_000)
    assert run.took_s <= 2 * 1.5 * UNDISTURBED_S


def test_chance_leaves_adaptive_concurrency_alone():
    run = refused_at_random("529", 0.05, 1, slots=None, jobs=4_000)
    assert run.admission.limit >= 100


# ── Overload ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("slots", [None, 256])
@pytest.mark.parametrize(("at_once", "answer_s"), [(8, (0.5, 1.5)), (8, (5.0, 15.0)), (40, (5.0, 15.0))])
def test_a_server_that_bears_so_many_at_once_is_filled_and_not_hammered(at_once, slots, answer_s):
    server = Server(refusal=OVERLOADED, at_once=at_once)
    load_of(server, slots=slots, answer_s=answer_s).run(240)
    average_s = sum(answer_s) / 2
    assert server.between(60, 240) >= 0.9 * at_once * 180 / average_s
    assert server.refusals <= 0.05


@pytest.mark.parametrize(("kind", "slots"), [("503", None), ("529", 256)])
def test_a_limit_of_requests_that_is_called_overload_is_found(kind, slots):
    server = Server(600, refusal=KINDS[kind])
    load_of(server, slots=slots).run(120)
    assert server.between(0, 60) >= 0.9 * 600
    assert server.between(60, 120) >= 0.9 * 600
    assert server.refusals <= 0.02


def test_a_server_that_bears_less_than_before_is_followed_and_one_that_bears_more_again():
    class Changing(Server):
        def has_room(self, now: float, tokens: int) -> bool:
            return self.serving < (10 if 60 <= now < 120 else 40)

    served = 0
    for seed in (1, 2, 3):
        server = Changing(refusal=OVERLOADED, seed=seed)
        load_of(server, slots=256, answer_s=about(1), seed=seed).run(240)
        served += server.between(70, 120)
        assert server.between(180, 240) >= 0.8 * 40 * 60
        assert server.refusals <= 0.05
    assert served >= 0.9 * 3 * 10 * 50


# ── Storms ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "slots", "start_s"), [("429", 32, 0.0), ("429", None, 5.0), ("503", 32, 5.0), ("529", None, 0.0)]
)
def test_while_everything_is_refused_probes_go_and_then_everybody_is_served(kind, slots, start_s):
    server = Server(refusal=KINDS[kind], storm=(start_s, start_s + 20))
    run = load_of(server, jobs=1_500, slots=slots).run(400)
    assert run.failed == 0
    assert len(server.good) == 1_500
    # The first few, those on their way by then, and one after each of 1, 2, 4, 8 and 16 s.
    assert sum(at >= start_s + 0.1 for at in server.refused) <= 6
    assert run.took_s <= 20 + 12 + 2 * UNDISTURBED_S


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("jobs", "slots"), [(200, 32), (2_000, 32), (2_000, None)])
def test_a_server_that_refuses_every_job_once_is_not_waited_for(kind, jobs, slots):
    run = load_of(Server(refusal=KINDS[kind], first=True), jobs=jobs, slots=slots).run(600)
    assert (run.failed, len(run.server.good), len(run.server.refused)) == (0, jobs, jobs)
    assert run.took_s <= 15 + 2 * jobs * UNDISTURBED_S / 2_000
