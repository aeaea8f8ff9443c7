from __future__ import annotations

from runner.limits import MAX_LANES
from runner.reservation import BEFORE_ANY, ENOUGH, REMEMBERED, Reservation


def test_before_there_are_answers_it_is_the_stated_guess():
    reservation = Reservation()
    for _ in range(ENOUGH - 1):
        reservation.observe("m", 5)
    assert reservation.output_tokens("m") == BEFORE_ANY


def test_it_follows_the_real_outputs_of_each_model():
    reservation = Reservation()
    for i in range(100):
        reservation.observe("small", 10 + i % 10)
        reservation.observe("large", 5_000)
    assert 17 <= reservation.output_tokens("small") <= 19
    assert reservation.output_tokens("large") == 5_000
    assert reservation.output_tokens("other") == BEFORE_ANY


def test_what_was_long_ago_no_longer_counts():
    reservation = Reservation()
    for _ in range(1_000):
        reservation.observe("m", 4_000)
    for _ in range(REMEMBERED):
        reservation.observe("m", 100)
    assert reservation.output_tokens("m") == 100


def test_the_users_own_number_stays():
    reservation = Reservation(77)
    for _ in range(100):
        reservation.observe("m", 4_000)
    assert reservation.output_tokens("m") == 77
    assert "77" in reservation.stated


def test_nothing_is_reserved_as_nothing():
    reservation = Reservation()
    for _ in range(100):
        reservation.observe(None, 0)
    assert reservation.output_tokens(None) == 1


def test_a_file_that_names_a_million_models_fills_no_memory():
    reservation = Reservation()
    for i in range(10 * MAX_LANES):
        reservation.observe(f"m{i}", 5)
    assert len(reservation._recent) == MAX_LANES
