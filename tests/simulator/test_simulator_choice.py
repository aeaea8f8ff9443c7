"""Which scenario a request meets: by its own wish, by chance, or by the storm over everybody."""

from __future__ import annotations

import random
from collections import Counter
from hashlib import blake2b

import pytest

from runner.errors import UsageError
from runner.simulator import PRESETS, SCENARIOS, Ledger, Profile, make_app, prompt_key, running_app
from runner.simulator.faults import choose, storm_left_s
from runner.simulator.profile import FLAKY, preset
from runner.simulator.rehearsal import Rehearsal
from tests.simulator.simulator_client import FAST, Clock, chat, post
from tests.simulator.simulator_reference import BODIES, rehearse

NOTHING = Rehearsal()
RATES = {"http_500": 0.1, "http_429": 0.05, "no_finish": 0.2}


def keys(count):
    return [blake2b(b"%d" % number, digest_size=16).hexdigest() for number in range(count)]


def fates(profile, count=20_000, nth=1):
    return [choose(profile, NOTHING, key, nth) for key in keys(count)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("nth", [1, 2, 7])
def test_each_scenario_is_met_as_often_as_its_rate_says(seed, nth):
    counts = Counter(fates(Profile(seed=seed, fault_rates=RATES), nth=nth))
    for name, rate in RATES.items():
        sigma = (rate * (1 - rate) * 20_000) ** 0.5
        assert abs(counts[name] - rate * 20_000) < 5 * sigma
    assert set(counts) == {*RATES, None}


def test_the_seed_decides_and_so_does_the_try():
    profile = Profile(seed=1, fault_rates=RATES)
    assert fates(profile) == fates(profile)
    assert fates(profile) != fates(Profile(seed=2, fault_rates=RATES))
    both = Counter(zip(fates(profile), fates(profile, nth=2), strict=True))
    # independent of each other: a second try meets the first one's fault no oftener than chance has it
    assert abs(both["no_finish", "no_finish"] - 0.2 * 0.2 * 20_000) < 5 * (0.04 * 0.96 * 20_000) ** 0.5


def test_rates_that_add_up_to_one_spare_nobody():
    assert None not in fates(Profile(fault_rates={"http_500": 0.5, "http_502": 0.5}))
    assert set(fates(Profile(fault_rates={"http_500": 0.0}), 1_000)) == {None}


def test_random_faults_end_with_the_number_of_tries_that_the_profile_names():
    profile = Profile(fault_rates={"http_500": 1.0}, fault_times=2)
    assert [choose(profile, NOTHING, "00", nth) for nth in (1, 2, 3, 4)] == ["http_500", "http_500", None, None]


def test_a_request_that_names_its_scenario_meets_no_other():
    profile = Profile(fault_rates={"http_500": 1.0})
    asked = Rehearsal(fault="no_finish", times=1)
    assert [choose(profile, asked, "00", nth) for nth in (1, 2)] == ["no_finish", None]


async def test_two_runs_of_the_same_jobs_meet_the_same_faults_in_any_order():
    profile = Profile(ttft_s=0, tokens_per_s=float("inf"), seed=5, fault_rates={"http_500": 0.3, "no_finish": 0.3})
    met = []
    for seed in (1, 2):
        bodies = [chat(f"prompt {number}") for number in range(60)] * 2
        random.Random(seed).shuffle(bodies)
        ledger = Ledger()
        async with running_app(profile, ledger) as url:
            for body in bodies:
                await post(url, "/chat/completions", body)
        by_key: dict[str | None, list[str | None]] = {}
        for entry in ledger.log:
            by_key.setdefault(entry.key, []).append(entry.fault)
        met.append(by_key)
    assert met[0] == met[1]
    assert {fault for faults in met[0].values() for fault in faults} == {None, "http_500", "no_finish"}


@pytest.mark.parametrize("endpoint", ["chat", "responses", "completions", "embeddings"])
async def test_times_counts_requests_with_the_same_content_however_delivered(endpoint):
    path, body = BODIES[endpoint]
    other = {**body, "user": "somebody else"}
    asked = {"simulate": {"fault": "http_500", "times": 2}}
    async with running_app(FAST) as url:
        assert [(await post(url, path, {**body, **asked})).status for _ in range(4)] == [500, 500, 200, 200]
        assert (await post(url, path, {**other, **asked})).status == 500
        if endpoint != "embeddings":
            assert (await post(url, path, {**body, **asked, "stream": True})).status == 200


async def test_a_request_that_the_limits_refuse_is_no_try():
    ledger = Ledger(clock=Clock())
    body = rehearse("http_500", chat(), times=1)
    async with running_app(Profile(ttft_s=0, tokens_per_s=float("inf"), rpm=60), ledger) as url:
        assert (await post(url, "/chat/completions", chat("another"))).status == 200
        assert (await post(url, "/chat/completions", body)).status == 429
        ledger.clock.now_s += 1  # type: ignore[attr-defined]
        assert (await post(url, "/chat/completions", body)).status == 500


@pytest.mark.parametrize("endpoint", ["chat", "responses", "completions", "embeddings"])
async def test_the_models_suffix_names_a_scenario_and_only_of_the_simulators_own_model(endpoint):
    path, body = BODIES[endpoint]
    ledger = Ledger()
    async with running_app(FAST, ledger) as url:
        assert (await post(url, path, {**body, "model": "synthetic-1#http_503"})).status == 503
        assert (await post(url, path, {**body, "model": "gpt-4o#http_503"})).status == 200
        assert (await post(url, path, {**body, "model": "synthetic-1"})).status == 200
        once = {**body, "model": "synthetic-1#http_503", "simulate": {"times": 1}}
        assert (await post(url, path, once)).status == 200
        assert (await post(url, path, {**body, "model": "synthetic-1#http_5"})).status == 400
    # the suffix is no part of what is asked: same words, same identity
    assert ledger.log[0].key == ledger.log[2].key == prompt_key({**body, "model": "synthetic-1"})
    assert ledger.by_fault == {"http_503": 1}


def test_the_presets_are_what_their_names_say():
    assert set(PRESETS) == {"default", "storm", "flaky"}
    default = preset("default")
    assert (default.fault_rates, default.storm_s, default.rpm, default.tpm) == ({}, 0, None, None)
    assert fates(default, 1_000) == [None] * 1_000
    assert set(FLAKY) <= set(SCENARIOS)
    assert sum(FLAKY.values()) == pytest.approx(0.2)
    flaky = Counter(fates(preset("flaky")))
    assert abs(flaky[None] - 16_000) < 5 * (0.2 * 0.8 * 20_000) ** 0.5
    assert set(fates(preset("flaky"), nth=3)) == {None}
    with pytest.raises(UsageError, match="default, storm, flaky"):
        preset("strom")


@pytest.mark.parametrize(
    ("since_s", "left_s"), [(0, 1.5), (1, 0.5), (1.5, 0), (5.9, 0), (6, 1.5), (7.25, 0.25), (7.5, 0)]
)
def test_a_storm_comes_and_goes(since_s, left_s):
    assert storm_left_s(PRESETS["storm"], since_s) == pytest.approx(left_s)
    assert storm_left_s(PRESETS["default"], since_s) == 0


async def test_a_storm_refuses_everybody_until_the_moment_it_names():
    clock = Clock()
    ledger = Ledger(clock=clock)
    async with running_app(PRESETS["storm"], ledger) as url:
        for endpoint in ("chat", "responses", "completions", "embeddings"):
            path, body = BODIES[endpoint]
            raw = await post(url, path, body)
            assert (raw.status, raw.headers["retry-after"], raw.headers["retry-after-ms"]) == (429, "2", "1500")
        clock.now_s += 1.5
        assert (await post(url, "/embeddings", BODIES["embeddings"][1])).status == 200
        clock.now_s += 4.5
        assert (await post(url, "/embeddings", BODIES["embeddings"][1])).status == 429
    assert ledger.by_fault == {"storm": 5}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        *(({"fault_rates": {"http_500": 1.1}}, "fault_rates"), ({"fault_rates": {"http_500": -0.1}}, "fault_rates")),
        *(({"fault_rates": {"http_500": 0.6, "http_502": 0.6}}, "fault_rates"), ({"ttft_s": -1}, "ttft_s")),
        *(({"ttft_s": float("nan")}, "ttft_s"), ({"tokens_per_s": 0}, "tokens_per_s"), ({"rpm": 0}, "rpm")),
        *(({"tpm": float("inf")}, "tpm"), ({"burst_s": 0}, "burst_s"), ({"output_tokens": (9, 3)}, "output_tokens")),
        *(({"output_tokens": 10**9}, "output_tokens"), ({"jitter": 3}, "jitter")),
    ],
)
def test_a_profile_out_of_range_names_what_is(changes, named):
    with pytest.raises(UsageError, match=named):
        Profile(**changes)


def test_a_profile_of_a_scenario_that_does_not_exist_is_refused():
    with pytest.raises(UsageError, match="http_501"):
        make_app(Profile(fault_rates={"http_501": 0.1}))


@pytest.mark.parametrize("profile", [*PRESETS.values(), FAST, Profile(output_tokens=(2, 9), rpm=1.5, api_key="sk-x")])
def test_a_profile_survives_its_way_to_another_process(profile):
    assert Profile.from_json(profile.to_json()) == profile
    assert b"\n" not in profile.to_json()


def test_a_key_is_not_shown_with_its_profile():
    assert "sk-secret" not in repr(Profile(api_key="sk-secret"))
