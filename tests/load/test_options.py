"""What may be asked of a load test, what it makes of it, and what it refuses before anything is sent."""

from __future__ import annotations

import orjson
import pytest

from runner.errors import UsageError
from runner.load.options import LoadOptions


def options(**said):
    return LoadOptions(**({"paths": ("jobs.jsonl",)} | said))


def values(found):
    return [(spec.kind, spec.value, spec.repeat) for spec in found.levels()]


def test_levels_come_in_the_order_in_which_they_were_named_with_their_repeats():
    found = options(concurrency="4,1", repeats=2)
    assert values(found) == [("closed", 4, 0), ("closed", 4, 1), ("closed", 1, 0), ("closed", 1, 1)]


def test_a_rate_is_an_open_loop_and_poisson_unless_said_otherwise():
    assert {spec.arrivals for spec in options(rate="5,20").levels()} == {"poisson"}
    assert {spec.arrivals for spec in options(rate="5", arrivals="gamma:0.5").levels()} == {"gamma:0.5"}


def test_without_a_length_a_level_lasts_half_a_minute_and_a_tenth_is_warm_up():
    (first, *_) = options().levels()
    assert (first.duration_s, first.warmup_s, first.requests) == (30.0, 3.0, None)


@pytest.mark.parametrize(("arrivals", "lasts_s"), [("ramp:1..50/60s", 60), ("step:10x30s,20x40s,poisson", 70)])
def test_a_ramp_and_steps_last_as_long_as_they_say_unless_a_length_is_given(arrivals, lasts_s):
    assert options(arrivals=arrivals).levels()[0].duration_s == lasts_s
    assert options(arrivals=arrivals, duration="5m").levels()[0].duration_s == 300
    assert options(arrivals=arrivals, requests=9).levels()[0].duration_s is None


@pytest.mark.parametrize("arrivals", ["constant", "poisson", "gamma:0.5"])
def test_a_rate_that_never_changes_says_no_length(arrivals):
    assert options(rate="5", arrivals=arrivals).levels()[0].duration_s == 30


def test_the_warm_up_has_a_bound_and_can_be_said():
    assert options(duration="10m").levels()[0].warmup_s == 5.0
    assert options(duration="10m", warmup="1m").levels()[0].warmup_s == 60.0
    assert options(duration="10m", warmup="0s").levels()[0].warmup_s == 0.0


def test_with_a_number_of_requests_all_of_them_count():
    (first, *_) = options(requests=100).levels()
    assert (first.requests, first.duration_s, first.warmup_s) == (100, None, 0.0)


@pytest.mark.parametrize(("said", "drain_s"), [(None, 300.0), ("20s", 20.0), ("0s", 0.0)])
def test_the_last_answers_are_waited_for_within_a_bound_whatever_ends_the_level(said, drain_s):
    for changes in ({"duration": "5s"}, {"requests": 9}, {"rate": "2"}, {"trace": "t.csv"}):
        assert options(drain=said, **changes).levels()[0].drain_s == drain_s


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ({"concurrency": "16"}, "16 concurrent"),
        ({"rate": "0.5"}, "0.5/s"),
        ({"arrivals": "ramp:1..50/60s"}, "ramp:1..50/60s"),
        ({"trace": "t.csv", "trace_speed": 2.0}, "trace ×2"),
    ],
)
def test_a_level_is_called_what_the_user_asked_for(said, label):
    assert options(**said).levels()[0].label == label


def test_the_folder_is_not_that_of_a_run_of_the_same_jobs():
    assert str(options(paths=("a/jobs.jsonl.gz",)).folder) == "results/jobs-load"
    assert str(LoadOptions(synthetic=True).folder) == "results/synthetic-load"
    assert str(LoadOptions(sharegpt="x/v3.json", out="there").folder) == "there"


def test_options_are_the_same_behind_a_pipe():
    found = options(rate="5", export=("vllm",), slo="ttft=1s", workers=3)
    assert LoadOptions.from_dict(orjson.loads(orjson.dumps(found.to_dict()))) == found


def test_what_does_not_change_a_measurement_may_change_when_it_goes_on():
    assert options(strict_client=True, export=("vllm",)).identity == options().identity
    assert options(duration="9s").identity != options().identity


def test_a_search_begins_at_the_first_value_and_finds_its_levels_itself():
    found = options(rate="4", find_max="ttft=500ms", max_value=64.0, goal=0.95)
    assert found.levels() == []
    assert found.search().start == 4
    assert (found.search().maximum, found.search().goal, found.search().whole) == (64.0, 0.95, False)
    assert found.objectives.limits == {"ttft": 0.5}


def test_a_search_may_go_by_the_slo():
    found = options(concurrency="8", find_max="slo", slo="e2e=2s")
    assert found.search().whole
    assert found.objectives.limits == {"e2e": 2.0}


@pytest.mark.parametrize(
    "said",
    [
        {"paths": ()},
        {"synthetic": True},
        {"sharegpt": "a.json"},
        {"paths": (), "synthetic": True, "sharegpt": "a.json"},
        {"paths": ("-", "a")},
        {"paths": ("-",), "workers": 2},
        {"input_tokens": "5"},
        {"turns": "3"},
        {"paths": (), "synthetic": True, "think": "3"},
        {"paths": (), "synthetic": True, "shared_prefix": 1.5},
        {"paths": (), "synthetic": True, "sample": True},
        {"paths": (), "sharegpt": "a.json", "turns": "2", "sample": True},
        {"output_cap": "max_completion_tokens"},
        {"out": ""},
        {"concurrency": "1", "rate": "1"},
        {"concurrency": "1", "arrivals": "poisson"},
        {"concurrency": "0"},
        {"concurrency": ""},
        {"concurrency": "1.5"},
        {"concurrency": "nan"},
        {"concurrency": "x"},
        {"concurrency": "1,1"},
        {"concurrency": "99999999"},
        {"rate": "0"},
        {"rate": "-1"},
        {"rate": "inf"},
        {"rate": ""},
        {"arrivals": "poisson"},
        {"arrivals": "often", "rate": "1"},
        {"arrivals": "ramp:1..5/9s", "rate": "1"},
        {"arrivals": "ramp:1..5/9s", "find_max": "ttft=1s"},
        {"trace": "t", "rate": "1"},
        {"trace": "t", "trace_speed": 0.0},
        {"trace": "t", "find_max": "ttft=1s"},
        {"rate": "1", "trace_speed": 2.0},
        {"trace_unit": "ms"},
        {"duration": "soon"},
        {"duration": "0s"},
        {"duration": "10s", "warmup": "9s", "cooldown": "1s"},
        {"requests": 5, "cooldown": "1s"},
        {"requests": 0},
        {"requests": 10_000_001},
        {"repeats": 0},
        {"repeats": 10_000},
        {"workers": 0},
        {"max_in_flight": 0},
        {"find_max": "slo"},
        {"find_max": "ttft=1s", "slo": "ttft=1s"},
        {"find_max": "ttft=1s", "rate": "1,2"},
        {"find_max": "ttft=1s", "rate": "9", "max_value": 5.0},
        {"find_max": "fast"},
        {"find_max": "ttft=1s", "rate": "1", "goal": 0.0},
        {"find_max": "ttft=1s", "rate": "1", "goal": 99.0},
        {"goal": 0.9},
        {"max_value": 64.0},
        {"slo": "ttft"},
        {"export": ("excel",)},
        {"server_metrics": "localhost:8000/metrics"},
    ],
    ids=str,
)
def test_what_contradicts_itself_is_refused_before_anything_is_sent(said):
    with pytest.raises(UsageError):
        options(**said)


def test_a_word_that_was_taken_for_a_file_is_named():
    with pytest.raises(UsageError, match=r"one of them \(JOBS is 'strom'\)"):
        options(paths=("strom",), synthetic=True)


@pytest.mark.parametrize("goal", [0.0, 99.0])
def test_a_goal_out_of_range_is_not_taken_for_a_wrong_highest_value(goal):
    with pytest.raises(UsageError, match="--goal is a share"):
        options(find_max="ttft=1s", rate="1", goal=goal)
