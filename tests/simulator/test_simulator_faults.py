"""Every scenario on every endpoint, as it stands on the wire.

`well` is a reference client that forgives nothing. What it says of a scenario must be what the table says: it finds
the harmless ones whole and true, and every other one faulty. How each of them is faulty is in the tests beside this.
"""

from __future__ import annotations

import pytest

from runner.simulator import SCENARIOS, expected_text, running_app
from tests.simulator.simulator_client import FAST, post
from tests.simulator.simulator_reference import BODIES, DELIVERIES, rehearse, well

STALLS = {"slow_headers", "stall_first", "stall_mid", "comments_forever", "one_byte_per_s", "endless"}
"""Those that don't end by themselves: tests/simulator/test_simulator_stalls.py."""
TOO_MUCH = {"huge_line"}
"""Correct but for its size, which is no client's duty to refuse."""


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in STALLS | TOO_MUCH])
async def test_a_client_that_forgives_nothing_sees_what_the_table_says(name):
    async with running_app(FAST) as url:
        for endpoint, stream in DELIVERIES:
            path, body = BODIES[endpoint]
            raw = await post(url, path, rehearse(name, body, stream), ["authorization: Bearer sk-canary"])
            text = well(raw, path, stream)
            assert (text is not None) == SCENARIOS[name].harmless, (endpoint, stream, raw[:2], raw.body[:300])
            if SCENARIOS[name].harmless and endpoint != "embeddings" and name != "response_incomplete":
                assert text == expected_text(body), (endpoint, stream)


@pytest.mark.parametrize(("endpoint", "stream"), DELIVERIES)
async def test_without_a_scenario_every_answer_is_whole_and_true(endpoint, stream):
    path, body = BODIES[endpoint]
    async with running_app(FAST) as url:
        raw = await post(url, path, {**body, "stream": stream})
    assert well(raw, path, stream) == ("" if endpoint == "embeddings" else expected_text(body))


@pytest.mark.parametrize(("endpoint", "stream"), DELIVERIES)
async def test_a_scenario_changes_nothing_but_what_it_says_of_the_answers_words(endpoint, stream):
    path, body = BODIES[endpoint]
    async with running_app(FAST) as url:
        good = await post(url, path, {**body, "stream": stream})
        cut = await post(url, path, rehearse("fin_mid_stream", body, stream))
    assert cut.ending == "whole"
    assert good.body.startswith(cut.body)
    assert 0 < len(cut.body) < len(good.body)
