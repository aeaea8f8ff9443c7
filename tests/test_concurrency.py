from __future__ import annotations

from runner.concurrency import AdaptiveConcurrency, FixedConcurrency


def rounds(concurrency, count):
    for _ in range(count):
        for _ in range(concurrency.limit):
            concurrency.succeeded(concurrency.limit)


def test_slow_start_doubles_each_clean_round_up_to_the_maximum():
    concurrency = AdaptiveConcurrency(start=8, maximum=100)
    found = []
    for _ in range(5):
        found.append(concurrency.limit)
        rounds(concurrency, 1)
    assert found == [8, 16, 32, 64, 100]


def test_after_a_cut_it_grows_by_a_twentieth():
    concurrency = AdaptiveConcurrency(start=100, maximum=1000)
    concurrency.throttled()
    assert concurrency.limit == 80
    rounds(concurrency, 1)
    assert concurrency.limit == 84


def test_it_never_falls_below_one_and_always_grows_again():
    concurrency = AdaptiveConcurrency(start=8)
    for _ in range(100):
        concurrency.throttled()
    assert concurrency.limit == 1
    rounds(concurrency, 1)
    assert concurrency.limit == 2


def test_what_is_not_in_use_earns_no_growth():
    concurrency = AdaptiveConcurrency(start=10)
    for _ in range(1000):
        concurrency.succeeded(7)
    assert concurrency.limit == 10
    for _ in range(10):
        concurrency.succeeded(8)
    assert concurrency.limit == 20


def test_a_fixed_one_stays():
    concurrency = FixedConcurrency(5)
    concurrency.throttled()
    rounds(concurrency, 10)
    assert concurrency.limit == 5
