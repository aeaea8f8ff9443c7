from __future__ import annotations

from collections import Counter

import orjson
import pytest

from runner.errors import InputError
from runner.jobs import Job, Rejected
from runner.lines import Line
from runner.load.prompts import CAPPED, FromPool, JobPool, OutputLength, chat_job, numbered
from runner.load.reading import read_jobs
from runner.parsing import JobParser
from tests.scripted import chat_job as scripted_job


def pool_of(*ids, **kwargs):
    pool = JobPool(**kwargs)
    for name in ids:
        pool.add(scripted_job(id=name, size_bytes=10, metadata={"of": name}))
    return pool


def test_a_cycled_file_comes_in_order_and_again_under_ids_of_their_own():
    supply = FromPool(pool_of("a", "b"), "jobs.jsonl")
    assert [supply.job(k).id for k in range(5)] == ["a#0", "b#1", "a#2", "b#3", "a#4"]
    assert supply.job(3).metadata == {"of": "b"}
    assert supply.repeats == 2


def test_no_two_requests_share_an_id_even_if_the_jobs_own_ids_look_numbered():
    supply = FromPool(pool_of("a", "a#1", "a#1#3"), "jobs.jsonl")
    assert len({supply.job(k).id for k in range(1000)}) == 1000


def test_a_sample_takes_each_job_about_as_often_and_is_the_same_for_a_seed():
    supply = FromPool(pool_of(*"abcd"), "jobs.jsonl", "sample", 7)
    counts = Counter(supply.job(k).id[0] for k in range(4_000))
    assert all(900 < count < 1_100 for count in counts.values())
    again = FromPool(pool_of(*"abcd"), "jobs.jsonl", "sample", 7)
    other = FromPool(pool_of(*"abcd"), "jobs.jsonl", "sample", 8)
    assert [supply.job(k) for k in range(50)] == [again.job(k) for k in range(50)]
    assert [supply.job(k) for k in range(50)] != [other.job(k) for k in range(50)]


def test_only_the_name_of_a_job_changes():
    job = scripted_job(id="a", digest=5)
    assert numbered(job, 3) == scripted_job(id="a#3", digest=5)


@pytest.mark.parametrize("bounds", [{"max_jobs": 2}, {"max_bytes": 15}])
def test_what_does_not_fit_into_memory_is_left_out_and_told(bounds):
    pool = pool_of("a", "b", "c", "d", **bounds)
    pool.add(Rejected("line-1", 5, "invalid_json", "not JSON"))
    assert (len(pool.jobs), pool.left_out, pool.rejected) == (2, 2, 1)
    described = FromPool(pool, "jobs.jsonl").describe()
    told = "jobs.jsonl: 2 jobs, 2 more left out, lines that can't be jobs: 1, in order, again and again"
    assert described["describe"] == told
    assert described["source"] == "file"


@pytest.mark.parametrize(
    ("output", "tokens", "expected"),
    [
        (CAPPED, 9, {"max_tokens": 9}),
        (CAPPED, None, {}),
        (OutputLength(exact=True), 9, {"max_tokens": 9, "min_tokens": 9, "ignore_eos": True}),
        (OutputLength(cap="max_completion_tokens"), 9, {"max_completion_tokens": 9}),
    ],
)
def test_the_length_of_an_answer_is_asked_for(output, tokens, expected):
    assert output.keys(tokens) == expected


def test_a_made_job_is_what_the_parser_makes_of_its_line():
    made = chat_job("j", 4, [{"role": "user", "content": "hi"}], {"max_tokens": 3})
    data = orjson.dumps({"custom_id": "j", **made.body})
    parsed = JobParser().parse(Line(5, data, len(data)))
    assert isinstance(parsed, Job)
    assert (parsed.id, parsed.line) == (made.id, made.line)
    assert (parsed.body, parsed.api, parsed.stream) == (made.body, made.api, made.stream)


async def test_where_no_line_is_a_job_it_is_said_how_to_learn_why(tmp_path):
    for text, why in (("", "no job to send$"), ("{}\n[1]\n", "can't be jobs: 2, `python -m runner check` says why$")):
        path = tmp_path / "jobs.jsonl"
        path.write_text(text)
        with pytest.raises(InputError, match=why):
            await read_jobs([str(path)])
