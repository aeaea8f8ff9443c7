from __future__ import annotations

import io
import random
import statistics
from collections import defaultdict

import pytest
from rich.console import Console

from runner.load import compare, noise
from tests.load import examples
from tests.load.test_html import Page


def rows(made, level=0):
    return {row.name: row for row in made.levels[level].rows}


def shown(made, width=100):
    out = io.StringIO()
    Console(width=width, file=out, highlight=False).print(compare.render(made))
    return out.getvalue()


def test_a_test_compared_with_itself_differs_in_nothing():
    made = compare.compare(examples.healthy(), examples.healthy())
    assert not made.differences
    assert not made.only_a + made.only_b
    judged = {row.judgement for matched in made.levels for row in matched.rows}
    assert judged <= {"noise", "not judged"}
    assert {row.change for matched in made.levels for row in matched.rows} == {"0 %"}


def test_what_differs_in_the_making_is_listed_the_worst_first():
    made = compare.compare(
        examples.healthy(), examples.healthy(model="other", versions={"python": "3.12"}, settings={"rpm": 5})
    )
    names = [difference.name for difference in made.differences]
    assert names[0] == "model"
    assert {"versions.python", "settings.rpm"} <= set(names)
    assert names.index("versions.python") < names.index("settings.rpm")


def test_a_faster_server_is_better_beyond_noise_over_repeats():
    made = rows(compare.compare(examples.repeated(1), examples.repeated(2, speed=1.25)), 1)
    assert made["ICL p50"].judgement == made["E2E mean"].judgement == made["Output tokens/s"].judgement == "better"
    back = rows(compare.compare(examples.repeated(2, speed=1.25), examples.repeated(1)), 1)
    assert back["ICL p50"].judgement == "worse"
    assert back["Offered requests/s"].judgement == "changed"


def test_two_repeats_are_too_few_to_judge():
    made = rows(compare.compare(examples.repeated(1, times=2), examples.repeated(2, 2.0, times=2)))
    assert {row.judgement for row in made.values()} == {"not judged"}


def test_a_rate_is_not_judged_without_repeats():
    made = rows(compare.compare(examples.healthy(1), examples.healthy(2, speed=2.0)), 2)
    assert made["Output tokens/s"].judgement == "not judged"
    assert made["TTFT p50"].judgement == "better"


def test_too_few_requests_are_never_significant():
    few = {"seconds": 7}
    a, b = (examples.result([examples.level(4, speed=speed, **few)]) for speed in (1.0, 5.0))
    assert a.levels[0].metric("ttft").n < noise.MIN_REQUESTS
    judged = {row.judgement for row in rows(compare.compare(a, b)).values()}
    assert judged == {"not judged"}


def test_a_client_bound_level_is_shown_and_not_judged():
    a, b = examples.open_loop(), examples.open_loop(9)
    made = compare.compare(a, b)
    bound = made.levels[-1]
    assert {row.judgement for row in bound.rows} == {"not judged"}
    assert any("client-bound" in note for note in bound.notes)


def test_a_suspect_level_is_judged_and_says_why_it_is_suspect():
    suspect = examples.level(4, verdict="suspect")
    made = compare.compare(examples.result([examples.level(4)]), examples.result([suspect]))
    assert made.levels[0].notes == ("suspect in B: CPU share 69 % (suspect above 50 %)",)
    assert {row.judgement for row in made.levels[0].rows} != {"not judged"}


def test_a_level_that_was_cut_short_is_not_judged():
    made = compare.compare(examples.healthy(), examples.interrupted())
    cut = made.levels[1]
    assert "cut short in B: not judged" in cut.notes
    assert {row.judgement for row in cut.rows} == {"not judged"}
    assert {row.judgement for row in made.levels[0].rows} != {"not judged"}


def test_of_repeats_only_the_whole_ones_are_compared():
    whole = [examples.level(4, repeat=i) for i in range(3)]
    cut = examples.level(4, repeat=3, seconds=7, speed=0.2, complete=False)
    a, b = examples.result(whole), examples.result([*whole, cut])
    made = compare.compare(a, b)
    assert {row.change for row in made.levels[0].rows} == {"0 %"}
    assert "repeats: 3 in A, 3 in B" in made.levels[0].notes
    assert "1 of 4 repeats in B left out: cut short or client-bound" in made.levels[0].notes


def test_a_client_bound_repeat_does_not_speak_for_the_sound_ones():
    sound = [examples.level(4, repeat=i) for i in range(3)]
    bound = examples.level(4, repeat=3, speed=0.2, verdict="client-bound")
    made = compare.compare(examples.result([*sound, bound]), examples.result(sound))
    assert {row.change for row in made.levels[0].rows} == {"0 %"}
    assert "not judged" not in {row.judgement for row in made.levels[0].rows}


@pytest.mark.parametrize("seed", range(5))
def test_two_runs_of_one_server_differ_in_nothing_and_one_that_is_a_tenth_slower_is_found(seed):
    print("seed", seed)

    def run(number, speed=1.0):
        return examples.result([examples.level(16, seed=number, speed=speed)])

    before = run(seed)
    same = rows(compare.compare(before, run(seed + 1000)))
    assert {row.judgement for row in same.values()} <= {"noise", "not judged"}
    slower = rows(compare.compare(before, run(seed + 1000, 0.9)))
    assert {slower[name].judgement for name in ("TTFT mean", "ICL mean", "TPOT mean", "E2E mean")} == {"worse"}


def test_a_change_of_one_in_a_hundred_is_none_within_one_run_however_little_it_scatters():
    def exact(tpot):
        level = examples.level(16)
        level["metrics"]["tpot"] |= {"mean": tpot, "stddev": tpot / 1000}
        return examples.result([level])

    assert rows(compare.compare(exact(0.02), exact(0.0202)))["TPOT mean"].judgement == "noise"
    assert rows(compare.compare(exact(0.02), exact(0.021)))["TPOT mean"].judgement == "worse"


def test_levels_that_only_one_has_are_named():
    made = compare.compare(examples.healthy(), examples.interrupted())
    assert set(made.only_a) == {"1 concurrent", "64 concurrent"}
    assert "Only in A" in shown(made)
    nothing = compare.compare(examples.healthy(), examples.open_loop())
    assert "nothing to compare" in shown(nothing)


def test_a_percentile_that_one_lacks_is_not_compared():
    a, b = examples.healthy(), examples.interrupted()
    row = rows(compare.compare(a, b), 1)["TTFT p99"]
    assert row.judgement == "not judged"
    assert row.b == "–"


@pytest.mark.parametrize("n", [3, 5, 10])
def test_unchanged_repeats_are_called_changed_about_once_in_a_hundred(n):
    rng = random.Random(n)
    trials = 2000
    false = sum(
        noise.welch([rng.gauss(1, 0.1) for _ in range(n)], [rng.gauss(1, 0.1) for _ in range(n)]) for _ in range(trials)
    )
    assert false <= trials * 0.02


def test_welch_is_blind_neither_to_equal_figures_nor_to_figures_far_apart():
    assert noise.welch([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    assert not noise.welch([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    assert noise.welch([1.0, 1.1, 0.9], [5.0, 5.1, 4.9])


@pytest.mark.parametrize("q", [0.5, 0.95])
def test_the_interval_of_a_percentile_holds_the_true_one_at_least_95_times_in_a_hundred(q):
    rng = random.Random(5)
    truth = sorted(rng.lognormvariate(0, 0.5) for _ in range(100_000))[int(q * 100_000)]
    held = 0
    for _ in range(200):
        values = [rng.lognormvariate(0, 0.5) for _ in range(200)]
        made = {"label": "4", "kind": "closed", "value": 4, "histograms": {"ttft": examples.bins(values)}}
        made["metrics"] = {"ttft": {"n": len(values)}}
        found = noise.Noise(examples.result([made]).levels[0]).quantile("ttft", q)
        held += found is not None and found.low <= truth <= found.high
    assert held >= 186


def test_a_tail_that_n_cannot_bound_has_no_interval():
    level = examples.healthy().levels[2]
    assert noise.Noise(level).quantile("ttft", 0.5) is not None
    assert noise.Noise(level).quantile("ttft", 0.999) is None
    for n, bounded in ((400, False), (600, True)):
        made = {"label": "4", "kind": "closed", "value": 4, "metrics": {"ttft": {"n": n}}}
        made["histograms"] = {"ttft": examples.bins([1 + i / n for i in range(n)])}
        found = noise.Noise(examples.result([made]).levels[0]).quantile("ttft", 0.99)
        assert (found is not None) is bounded


def waiting(rng, utilisation, n=600):
    """A level whose requests wait for one server, ten a second; at 0 they don't wait, and none depends on another."""
    wait, now, values, steps = 0.0, 0.0, [], defaultdict(list)
    for _ in range(n):
        gap, service = rng.expovariate(1.0), rng.expovariate(1.0)
        wait, now = max(0.0, wait + utilisation * service - gap), now + gap / 10
        values.append(wait + (0.1 if utilisation else rng.lognormvariate(0, 0.3)))
        steps[int(now)].append(values[-1])
    ticks = [{"t": float(t), "ttft_p50": statistics.median(found)} for t, found in steps.items() if len(found) >= 4]
    level = {"label": "x", "kind": "open", "value": 10, "window_s": [0, now], "timeline": ticks}
    found = {"n": n, "mean": statistics.fmean(values), "stddev": statistics.stdev(values)}
    return examples.result([{**level, "metrics": {"ttft": found}}]).levels[0]


@pytest.mark.parametrize("utilisation", [0.0, 0.5])
def test_equal_runs_are_seldom_taken_for_different_ones_though_requests_wait_in_one_queue(utilisation):
    rng = random.Random(3)
    apart = 0
    for _ in range(100):
        a, b = (noise.Noise(waiting(rng, utilisation)).mean("ttft") for _ in range(2))
        apart += a is not None and b is not None and (a.high < b.low or b.high < a.low)
    assert apart <= 4


def test_how_much_its_requests_depend_on_each_other_is_worked_out_once_a_level(monkeypatch):
    asked, dependence = [], noise.dependence

    def counted(level):
        asked.append(level)
        return dependence(level)

    monkeypatch.setattr(noise, "dependence", counted)
    a, b = examples.healthy(1), examples.healthy(2)
    compare.compare(a, b)
    assert len(asked) == len(a.levels) + len(b.levels)


def test_what_cannot_be_held_against_itself_is_taken_as_independent():
    assert noise.dependence(examples.result([{"label": "4", "kind": "closed", "value": 4}]).levels[0]) == 1
    assert noise.dependence(examples.result([examples.level(16, seconds=15)]).levels[0]) == 1


def test_gaps_within_answers_do_not_count_as_independent():
    level = examples.healthy().levels[1]
    wide = noise.Noise(level).mean("icl")
    assert wide is not None
    assert level.metric("icl").n > 40 * level.requests.succeeded
    naive = 1.96 * (level.metric("icl").stddev or 0) / level.metric("icl").n ** 0.5
    assert (wide.high - wide.low) / 2 > 5 * naive


def test_a_share_of_none_or_all_still_has_a_width():
    none, every = noise.share_range(0.0, 100), noise.share_range(1.0, 100)
    assert none is not None
    assert every is not None
    assert none.high == pytest.approx(0.0370, abs=1e-3)
    assert every.low == pytest.approx(0.9630, abs=1e-3)


def test_hostile_names_neither_move_the_cursor_nor_become_markup():
    made = compare.compare(examples.hostile(), examples.healthy(), examples.HOSTILE, "b")
    text = shown(made, 80)
    assert not set(text) & {"\x1b", "\x00", "\u202e"}
    page = Page(compare.to_html(made))
    assert len(page.all("script")) == 1
    assert not page.all("img")


@pytest.mark.parametrize("width", [80, 120])
def test_no_figure_is_cut_from_80_columns_on(width):
    text = shown(compare.compare(examples.healthy(1), examples.healthy(2)), width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width


def test_what_differs_in_every_folder_on_purpose_is_not_told_as_a_difference():
    before, after = (
        examples.result(
            [examples.level(1)], workload={"source": "synthetic", "describe": "x", "salt": salt, "shared": shared}
        )
        for salt, shared in (("a1", 0.0), ("b2", 0.5))
    )
    names = {each.name for each in compare.compare(before, after, "a", "b").differences}
    assert "workload.salt" not in names
    assert "workload.shared" in names
