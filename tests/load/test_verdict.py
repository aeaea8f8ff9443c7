from __future__ import annotations

import math
from itertools import product

import pytest

from runner.load.verdict import COALESCED_SHARE, CPU_SHARE, LAG_S, ClientSigns, judge


@pytest.mark.parametrize(
    ("lag", "cpu", "verdict"),
    [
        (0.0, 0.0, "ok"),
        (0.010, 0.50, "ok"),
        (0.0101, 0.50, "suspect"),
        (0.010, 0.51, "suspect"),
        (0.030, 0.75, "suspect"),
        (0.0301, 0.0, "client-bound"),
        (0.0, 0.76, "client-bound"),
        (math.nan, 0.0, "client-bound"),
        (0.0, math.nan, "client-bound"),
    ],
)
def test_the_thresholds_are_those_that_were_measured(lag, cpu, verdict):
    assert judge(ClientSigns(lag, cpu_share=cpu)).verdict == verdict
    assert judge(ClientSigns(0.0, schedule_delay_p99_s=lag, cpu_share=cpu)).verdict == verdict


def test_the_worst_sign_decides_and_stands_first():
    order = ["ok", "suspect", "client-bound"]
    values = [(0.001, 0.02, 1.0), (0.001, 0.02, 1.0), (0.1, 0.6, 0.9), (0.0, 0.5, 0.9)]
    for lag, delay, cpu, coalesced in product(*values):
        alone = [
            judge(ClientSigns(lag if i == 0 else 0.0, delay if i == 1 else 0.0, cpu if i == 2 else 0.0, share)).verdict
            for i in range(4)
            for share in [coalesced if i == 3 else 0.0]
        ]
        found = judge(ClientSigns(lag, delay, cpu, coalesced))
        assert found.verdict == max(alone, key=order.index)
        assert len(found.reasons) == sum(verdict != "ok" for verdict in alone)


def test_the_reasons_are_words_with_the_figure_and_the_threshold():
    found = judge(ClientSigns(0.0421, 0.012, 0.8, 0.9))
    assert found.verdict == "client-bound"
    assert found.reasons == (
        "the event loop woke 42.1 ms late at p99 (more than 30 ms)",
        "a process used 80% of a core (more than 75%)",
        "requests were sent 12 ms late at p99 (more than 10 ms)",
        "90% of the chunks were read together with another (more than 25%)",
    )


def test_chunks_read_together_alone_are_at_most_suspect():
    assert judge(ClientSigns(0.0, 0.0, 0.0, 1.0)).verdict == "suspect"


def test_what_was_not_measured_is_no_proof_of_a_sound_client():
    assert judge(ClientSigns(None, cpu_share=0.1)).verdict == "suspect"
    found = judge(ClientSigns(None))
    assert found.reasons == ("the event loop's lag was not measured", "CPU use was not measured")
    assert judge(ClientSigns(0.5)).verdict == "client-bound"


@pytest.mark.parametrize("limits", [LAG_S, CPU_SHARE, COALESCED_SHARE])
def test_thresholds_are_in_order(limits):
    assert 0 < limits.ok < limits.suspect
