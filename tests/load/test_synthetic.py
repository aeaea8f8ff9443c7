from __future__ import annotations

import sys
from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import tokens
from runner.load.draws import Constant, Uniform
from runner.load.prompts import OutputLength
from runner.load.synthetic import OVERHEAD_TOKENS, WORDS, Synthetic, words
from runner.wire import encode_body

BLOCK_CHARS = 64
"""16 tokens: the block of vLLM's prefix cache."""


@pytest.fixture(autouse=True)
def _no_tiktoken(monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    tokens._encoding_for.cache_clear()
    yield
    tokens._encoding_for.cache_clear()


def supply(n_input=512, n_output=128, **kwargs):
    return Synthetic(Constant(n_input), Constant(n_output), **kwargs)


def text_of(job):
    return job.body["messages"][0]["content"]


def common(first, second):
    pairs = zip(text_of(first), text_of(second), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def test_there_is_a_different_word_of_three_letters_for_every_byte():
    assert len(set(WORDS)) == len(WORDS) == 256
    assert {len(word) for word in WORDS} == {3}
    assert words(bytes([0, 255])) == f"{WORDS[0]} {WORDS[255]}"


@given(st.integers(OVERHEAD_TOKENS + 1, 3_000), st.floats(0, 1), st.integers(0, 10**9))
def test_the_estimate_is_exactly_what_was_asked_for(n, shared, k):
    job = supply(n, 33, shared=shared).job(k)
    assert tokens.estimate(job, default_output_tokens=1) == ((n, 33, 0), "heuristic")


@pytest.mark.parametrize("n", [0, 1, OVERHEAD_TOKENS])
def test_the_shortest_prompt_is_a_word(n):
    assert text_of(supply(n).job(0)) in WORDS


def test_half_of_the_input_is_the_same_for_all_and_nothing_else_is():
    jobs = [supply(512, shared=0.5).job(k) for k in range(50)]
    for i, first in enumerate(jobs):
        for second in jobs[i + 1 :]:
            assert 256 * 4 <= common(first, second) < 256 * 4 + BLOCK_CHARS


def test_without_a_share_no_cache_hits_by_accident():
    jobs = [supply(512).job(k) for k in range(300)]
    assert len({text_of(job)[:BLOCK_CHARS] for job in jobs}) == 300


@pytest.mark.parametrize("shared", [0, 0.5, 1])
def test_the_salt_makes_every_text_another_and_leaves_the_lengths(shared):
    first = Synthetic(Uniform(50, 900), Uniform(1, 99), shared=shared, salt="run 1")
    second = Synthetic(Uniform(50, 900), Uniform(1, 99), shared=shared, salt="run 2")
    for k in range(50):
        assert common(first.job(k), second.job(k)) < BLOCK_CHARS
        assert len(text_of(first.job(k))) == len(text_of(second.job(k)))
        assert first.job(k).body["max_tokens"] == second.job(k).body["max_tokens"]


def test_requests_of_different_lengths_share_as_much_as_the_shorter_one_has():
    made = Synthetic(Uniform(100, 1000), Constant(1), shared=1.0)
    jobs = [made.job(k) for k in range(30)]
    longest = max(map(text_of, jobs), key=len)
    assert all(longest.startswith(text_of(job)) for job in jobs)


def test_a_request_is_the_same_in_whatever_order_and_process_it_is_made():
    forwards, backwards = supply(shared=0.3, seed=4), supply(shared=0.3, seed=4)
    assert [forwards.job(k) for k in range(20)] == [backwards.job(k) for k in reversed(range(20))][::-1]
    assert supply(seed=4).job(1) != supply(seed=5).job(1)


def test_requests_have_ids_of_their_own_and_can_be_sent():
    job = supply(20, 9, output=OutputLength(exact=True)).job(6)
    assert (job.id, job.line) == ("synthetic#6", 7)
    sent = encode_body(job, model="m", stream_options="none")
    assert b'"max_tokens":9,"min_tokens":9,"ignore_eos":true' in sent


def test_it_is_described_in_words():
    described = Synthetic(Constant(512), Uniform(1, 99), shared=0.5).describe()
    assert described["describe"] == "synthetic: 512 tokens in, uniform:1..99 out, 50% of the input shared"
    assert described["source"] == "synthetic"
