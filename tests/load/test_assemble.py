"""What was measured of a level, as load.json has it."""

from __future__ import annotations

import pytest

from runner.load.assemble import level_of
from runner.load.crew import Measured
from runner.load.samples import RequestSample
from runner.load.spec import LevelSpec


def assembled(spec, due, lasted_s, *, complete=True):
    """A level whose requests were due at these times and answered a tenth of a second later."""
    statistics = spec.statistics(None)
    for when in due:
        statistics.add(RequestSample(scheduled=when, admitted=when, sent=when, end=when + 0.1, ok=True))
    return level_of(spec, Measured(statistics, lasted_s, complete, len(due)), 0.0)


def test_the_time_in_which_nothing_was_due_any_more_is_a_part_of_an_open_level():
    # Five requests in 10 s are 0.5 a second, though the last one was answered after 6.1 s.
    level = assembled(LevelSpec("open", 0.5, "x", duration_s=10.0), range(2, 7), 6.1)
    assert level.window_s == (0, 10)
    assert level.rates.offered_per_s == level.rates.succeeded_per_s == 0.5


def test_a_closed_level_whose_streams_were_held_back_until_its_end_lasts_as_long_as_it_was_to():
    level = assembled(LevelSpec("closed", 1.0, "x", duration_s=10.0, cooldown_s=2.0), range(4), 7.0)
    assert (level.duration_s, level.window_s, level.rates.offered_per_s) == (10, (0, 8), 0.5)


def test_answers_that_came_late_make_a_level_longer_and_not_what_counts_of_it():
    level = assembled(LevelSpec("open", 0.5, "x", duration_s=10.0), range(5), 14.0)
    assert (level.duration_s, level.window_s) == (14, (0, 10))


@pytest.mark.parametrize("kind", ["open", "closed"])
def test_a_level_that_was_cut_short_counts_over_what_there_was_of_it(kind):
    level = assembled(LevelSpec(kind, 1.0, "x", duration_s=10.0), range(5), 5.0, complete=False)
    assert (level.window_s, level.rates.offered_per_s) == ((0, 5), 1)


def test_an_open_level_of_so_many_requests_counts_to_where_the_next_one_would_be_due():
    level = assembled(LevelSpec("open", 1.0, "x", requests=4, duration_s=10.0, ends_s=4.0), range(4), 3.1)
    assert (level.window_s, level.rates.offered_per_s) == ((0, 4), 1)


def test_a_closed_level_of_so_many_requests_ends_with_its_last_answer():
    level = assembled(LevelSpec("closed", 1.0, "x", requests=4, duration_s=10.0), range(4), 3.2)
    assert level.window_s == (0, 3.2)
